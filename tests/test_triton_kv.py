"""Storing and merging with Triton: against torch, bit for bit where nothing is computed."""

import pytest
import torch
from test_kernel_merge import EMPTY, attend, same

from kernels.errors import ShapeError
from kernels.kv_cache import KVCache, write_slots
from kernels.plan import AttentionPlan
from kernels.rope import Rope
from kernels.runs import SequencePlan
from kernels.triton_attention import TritonBackend
from kernels.triton_kernels import INTERPRETED
from kernels.triton_kv import RotationTables

DEVICE = "cpu" if INTERPRETED else "cuda"


def nan_cache(dtype: torch.dtype, head_dim: int = 8) -> KVCache:
    cache = KVCache.allocate(5, 4, 3, 2, head_dim, dtype, DEVICE)
    cache.data.fill_(torch.nan)
    return cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [8, 20])
def test_write_kv_touches_only_its_slots(dtype, head_dim):
    cache = nan_cache(dtype, head_dim)
    # q, k and v of a fused product; already rounded, since the interpreter cuts bf16 off where a GPU rounds it
    wide = torch.randn(4, 6, head_dim, device=DEVICE).to(dtype).float()
    k, v = wide[:, 2:4], wide[:, 4:]
    TritonBackend().write_kv(k, v, cache, 1, torch.tensor([19, 0, -1, 6], device=DEVICE))
    keys, values = cache.layer(1)
    for token, (block, offset) in {0: (4, 3), 1: (0, 0), 3: (1, 2)}.items():
        assert torch.equal(keys[block, :, offset], k[token].to(dtype))
        assert torch.equal(values[block, :, offset], v[token].to(dtype))
    assert int(cache.data.isnan().logical_not().sum()) == 3 * 2 * 2 * head_dim


@pytest.mark.parametrize("head_dim", [8, 20])
def test_int8_is_written_as_the_reference_writes_it(head_dim):
    cache, expected = (KVCache.allocate(5, 4, 3, 2, head_dim, torch.int8, device) for device in (DEVICE, "cpu"))
    for empty in (cache, expected):
        empty.erase(range(5))
    wide = torch.randn(7, 6, head_dim) * torch.tensor([1.0, 1e-3, 500, 0, 1e-44, torch.nan, torch.inf])[:, None, None]
    wide[5:, :, 1:] = 3.0
    slots = torch.tensor([19, 0, -1, 6, 7, 8, 9])
    written = slots >= 0
    write_slots(wide[written, 2:4], wide[written, 4:], expected, 1, slots[written])
    wide = wide.to(DEVICE)
    TritonBackend().write_kv(wide[:, 2:4], wide[:, 4:], cache, 1, slots.to(DEVICE))
    assert torch.equal(cache.data.cpu(), expected.data)
    torch.testing.assert_close(cache.scales.cpu(), expected.scales, rtol=0.0, atol=0.0, equal_nan=True)


def test_more_tokens_than_a_program_takes():
    cache = KVCache.allocate(10, 4, 1, 2, 8, torch.float32, DEVICE)
    k, v = torch.randn(2, 39, 2, 8, device=DEVICE)
    slots = torch.randperm(40, device=DEVICE)[:39]
    TritonBackend().write_kv(k, v, cache, 0, slots)
    keys, values = (part.transpose(1, 2).flatten(0, 1) for part in cache.layer(0))
    assert torch.equal(keys[slots], k)
    assert torch.equal(values[slots], v)


def test_no_tokens_and_misfits():
    cache = nan_cache(torch.float32)
    none = torch.empty(0, 2, 8, device=DEVICE)
    TritonBackend().write_kv(none, none, cache, 0, torch.empty(0, dtype=torch.int64, device=DEVICE))
    assert cache.data.isnan().all()
    with pytest.raises(ShapeError, match="must both be"):
        TritonBackend().write_kv(none, none, cache, 0, torch.tensor([0], device=DEVICE))


@pytest.mark.parametrize("interleaved", [False, True])
def test_keys_are_rotated_on_the_way(interleaved):
    rope = Rope(torch.tensor([1.0, 0.2, 0.03], device=DEVICE), 6, interleaved, scale=1.2)
    sequences = [SequencePlan((3, 4, 900), ()), SequencePlan((0,), ())]
    plan = AttentionPlan.build(sequences, rope=rope, softmax_scale=1.0, block_size=4, device=DEVICE)
    k, v = torch.randn(2, 4, 2, 10, device=DEVICE)
    slots = torch.tensor([1, 2, -1, 17], device=DEVICE)
    cache = nan_cache(torch.float32, 10)
    TritonBackend().rotate_and_write_kv(k, v, plan, cache, 2, slots)
    keys, values = (part.transpose(1, 2).flatten(0, 1) for part in cache.layer(2))
    kept = slots >= 0
    expected = rope.rotate(k, plan.query_positions)
    torch.testing.assert_close(keys[slots[kept]], expected[kept], rtol=0.0, atol=1e-6)
    assert torch.equal(values[slots[kept]], v[kept])
    assert int(cache.data.isnan().logical_not().sum()) == 2 * 3 * 2 * 10


def test_angle_tables_grow_and_outgrown_ones_stay():
    tables, rope, other = RotationTables(), Rope(torch.tensor([0.5]), 2), Rope(torch.tensor([0.7]), 2)
    small = tables.get(rope, 10)
    assert tables.get(rope, 1024) is small
    address, first = small[0].data_ptr(), small[0].clone()
    large = tables.get(rope, 1025)
    assert large[0].shape == (2048, 1)
    assert torch.equal(large[0][:1024], first)
    assert small[0].data_ptr() == address
    assert tables.get(rope, 1) is large
    assert not torch.equal(tables.get(other, 10)[0], first)
    assert torch.equal(large[1][:, 0], (torch.arange(2048) * 0.5).sin())


def states(seed: int, spread: float, hidden: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(3, 2, 5, generator=generator).double() * spread
    hide = torch.rand(scores.shape, generator=generator) < hidden
    out, lse = attend(scores.masked_fill(hide, -torch.inf), torch.randn(5, 4, generator=generator).double())
    return out.to(DEVICE), lse.to(DEVICE)


@pytest.mark.parametrize("spread", [1.0, 1000.0])
@pytest.mark.parametrize("hidden", [0.0, 0.6, 1.0])
def test_merge_is_commutative_associative_and_has_an_empty(spread, hidden):
    merge = TritonBackend().merge
    a, b, c = (states(seed, spread, hidden) for seed in range(3))
    empty = tuple(part.to(DEVICE) for part in EMPTY)
    same(merge(*a, *b), merge(*b, *a))
    same(merge(*merge(*a, *b), *c), merge(*a, *merge(*b, *c)))
    same(merge(*a, *empty), a)
    same(merge(*empty, *a), a)


def test_merging_the_parts_of_a_set_gives_the_whole():
    generator = torch.Generator().manual_seed(5)
    scores, values = (
        torch.randn(3, 2, 9, generator=generator).double() * 5,
        torch.randn(9, 4, generator=generator).double(),
    )
    parts = [attend(s, v) for s, v in zip(scores.split([4, 5], -1), values.split([4, 5]), strict=True)]
    merged = TritonBackend().merge(*(tensor.to(DEVICE) for part in parts for tensor in part))
    same(tuple(tensor.cpu() for tensor in merged), attend(scores, values))


def test_merge_keeps_the_first_dtype_and_takes_any_strides():
    a = (torch.randn(40, 2, 6, device=DEVICE).bfloat16()[::2], torch.zeros(40, 2, device=DEVICE)[::2])
    out, lse = TritonBackend().merge(*a, *a)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(out, a[0])
    torch.testing.assert_close(lse, torch.full((20, 2), 2.0, device=DEVICE).log())
