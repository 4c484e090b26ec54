"""Plans: what is refused, how shared runs are grouped, how often keys are read; and the backend registry."""

from unittest.mock import patch

import pytest
import torch

from kernels.backend import available_backends, get_backend
from kernels.errors import BackendUnavailableError, PlanError, ShapeError, UnknownBackendError
from kernels.kv_cache import KVCache, block_bytes, write_slots
from kernels.plan import AttentionPlan
from kernels.rope import Rope
from kernels.runs import Run, SequencePlan
from kernels.torch_calls import make_gathers

ROPE = Rope(torch.ones(2), 4)


def build(*sequences: SequencePlan, block_size: int = 4, window: int | None = None) -> AttentionPlan:
    return AttentionPlan.build(sequences, rope=ROPE, softmax_scale=1.0, block_size=block_size, sliding_window=window)


@pytest.mark.parametrize(
    ("queries", "runs", "named"),
    [
        (range(1), [Run((1,), 5, 0)], "5 tokens does not fit 1 blocks of 4"),
        (range(1), [Run((1,), -1, 0)], "negative"),
        (range(1), [Run((1,), 4, 3, shift=4)], "before position 0"),
        (range(1), [Run((1,), 4, 4), Run((2,), 4, 0)], "ascending order"),
        (range(1), [Run((1,), 4, 0), Run((2,), 4, 3)], "without overlap"),
        ((3, 3), [], "ascending"),
        ((4, 3), [], "ascending"),
        ((-1, 3), [], "ascending"),
        (range(5, 0, -1), [], "ascending"),
    ],
)
def test_impossible_plans_are_refused(queries, runs, named):
    with pytest.raises(PlanError, match=named):
        build(SequencePlan(queries, tuple(runs)))


def test_a_window_that_shows_nothing_is_refused():
    with pytest.raises(PlanError, match="window of 0"):
        build(window=0)
    with pytest.raises(PlanError, match="window of -1"):
        build().with_window(-1)


def test_rows_positions_and_spans():
    first, second = SequencePlan((0, 1, 5, 6, 9), ()), SequencePlan(range(7, 9), ())
    plan = build(first, SequencePlan((), ()), second)
    assert plan.rows == (range(5), range(5, 5), range(5, 7))
    assert plan.query_positions.tolist() == [0, 1, 5, 6, 9, 7, 8]
    assert list(first.spans()) == [range(2), range(5, 7), range(9, 10)]
    assert list(SequencePlan((), ()).spans()) == []


def test_runs_of_the_same_readers_and_shift_form_a_group():
    template, passage, moved = Run((1, 2), 6, 0), Run((3,), 4, 6), Run((4,), 4, 10, shift=3)
    tails = [Run((5 + i,), 2, 14) for i in range(2)]
    plan = build(*(SequencePlan((15,), (template, passage, moved, tail)) for tail in tails))
    groups = {(group.members, group.shift): group.runs for group in plan.groups}
    assert groups == {
        ((0, 1), 0): (template, passage),
        ((0, 1), 3): (moved,),
        ((0,), 0): (tails[0],),
        ((1,), 0): (tails[1],),
    }


def test_a_shared_run_is_gathered_once_and_similar_tails_in_one_batch():
    template = Run(tuple(range(50)), 200, 0)
    tails = [Run((50 + i,), 4 - i % 2, 200) for i in range(8)]
    plan = build(*(SequencePlan((tail.end - 1,), (template, tail)) for tail in tails))
    cache = KVCache.allocate(64, 4, 1, 1, 4, torch.float32)
    gathers = make_gathers(plan, plan.groups, cache)
    assert sorted((gather.entries, gather.num_keys) for gather in gathers) == [(1, 200), (8, 4)]
    assert sum(len(gather.calls) for gather in gathers) == 2


def test_a_window_leaves_out_keys_that_no_row_sees():
    run = Run(tuple(range(250)), 1000, 0)
    cache = KVCache.allocate(250, 4, 1, 1, 4, torch.float32)
    plan = build(SequencePlan((999,), (run,)), window=10)
    assert [gather.num_keys for gather in make_gathers(plan, plan.groups, cache)] == [10]


def test_windows_share_the_tensors_of_a_plan():
    plan = build(SequencePlan((1,), (Run((0,), 2, 0),)))
    narrow = plan.with_window(1)
    assert narrow.query_positions is plan.query_positions
    assert narrow.groups is plan.groups
    assert plan.with_window(None) is plan


@pytest.mark.parametrize("name", ["reference", "torch"])
@pytest.mark.parametrize(
    ("q_shape", "block_size", "named"),
    [((2, 4, 4), 4, r"must be \[1, heads, 4\]"), ((1, 3, 4), 4, "not a multiple of 2"), ((1, 4, 4), 8, "blocks of 4")],
)
def test_misfits_are_named(name, q_shape, block_size, named):
    plan = build(SequencePlan((0,), (Run((0,), 1, 0),)))
    cache = KVCache.allocate(2, block_size, 1, 2, 4, torch.float32)
    with pytest.raises(ShapeError, match=named):
        get_backend(name).attend(torch.zeros(q_shape), plan, cache, 0)


def test_keys_to_write_must_fit():
    cache = KVCache.allocate(2, 4, 1, 2, 4, torch.float32)
    with pytest.raises(ShapeError, match="must both be"):
        get_backend("reference").write_kv(torch.zeros(1, 2, 4), torch.zeros(1, 1, 4), cache, 0, torch.tensor([0]))
    with pytest.raises(ShapeError, match="empty dimension"):
        KVCache.allocate(0, 4, 1, 2, 4, torch.float32)


def test_one_block_of_all_layers_is_contiguous():
    cache = KVCache.allocate(5, 4, 3, 2, 8, torch.bfloat16)
    assert cache.data[2].is_contiguous()
    assert cache.bytes_per_block == 3 * 2 * 2 * 4 * 8 * 2


@pytest.mark.parametrize("shape", [(5, 4, 3, 2, 8), (2, 16, 2, 3, 64), (3, 1, 2, 1, 2), (1, 3, 2, 5, 20)], ids=str)
def test_one_block_of_int8_holds_its_scales(shape):
    cache = KVCache.allocate(*shape, torch.int8)
    num_blocks, block_size, num_layers, heads, dim = shape
    assert cache.bytes_per_block == block_bytes(*shape[1:], torch.int8)
    assert cache.bytes_per_block % 64 == 0
    assert cache.bytes_per_block >= num_layers * 2 * heads * block_size * (dim + 4)
    blank = torch.zeros((num_blocks, cache.bytes_per_block), dtype=torch.uint8)
    every = KVCache.over(blank, cache.data.shape, torch.int8)
    every.data.fill_(-1)
    every.scales.view(torch.int32).fill_(-1)
    written = int((blank == 255).sum())
    assert written == num_blocks * num_layers * 2 * heads * block_size * (dim + 4), "nothing lies over another"
    with pytest.raises(ShapeError, match="even dimension"):
        KVCache.allocate(1, 4, 1, 1, 3, torch.int8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8], ids=str)
def test_blocks_are_copied_without_what_is_not_theirs(dtype):
    cache = KVCache.allocate(6, 4, 2, 3, 20, dtype)
    for view in cache.block_views(range(6)):
        view.fill_(7)  # also what pads the scales
    k, v = torch.randn(2, 6, 3, 20)
    slots = torch.tensor([8, 9, 10, 11, 4, 5])
    for layer in range(2):
        write_slots(k, v, cache, layer, slots)
    content = cache.read_blocks([2, 1], 6)
    copy = KVCache.over(content, (2, *cache.data.shape[1:]), dtype)
    for part in (copy.data, copy.scales)[: 1 if cache.scales is None else 2]:
        assert part[:, 0].any()
        assert not part[1, :, :, :, 2:].any()
    assert int((content == 7).sum()) < 0.02 * content.numel(), "bytes of others"
    cache.write_blocks([0, 5], content)
    for layer in range(2):
        there = cache.read_slots(layer, slots // 4, slots % 4)
        moved = cache.read_slots(layer, torch.tensor([0, 0, 0, 0, 5, 5]), slots % 4)
        assert all(torch.equal(a, b) for a, b in zip(there, moved, strict=True))
    cache.erase([0])
    assert not cache.block_views([0])[0].any()
    assert cache.block_views([1])[0].any()


def test_registry():
    reasons = available_backends()
    assert list(reasons) == ["cpu", "torch", "triton", "reference"], "best first"
    assert reasons["torch"] is reasons["reference"] is None
    assert get_backend().name == next(name for name, reason in reasons.items() if reason is None)
    assert get_backend("reference").name == "reference"
    with pytest.raises(UnknownBackendError, match=r"'fast'.*torch \(available\).*reference \(available\)"):
        get_backend("fast")
    assert "CPU only" in str(available_backends("cuda")["torch"])
    with pytest.raises(BackendUnavailableError, match="CPU only"):
        get_backend("torch", "cuda")
    with patch("torch.cuda.is_available", return_value=False):
        assert get_backend("auto", "cuda").name == "reference"
