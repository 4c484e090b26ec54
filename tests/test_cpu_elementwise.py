"""Norms, activation and the rotary write of the C++ library against torch, in every variant that runs here."""

import ctypes

import pytest
import torch
from kernel_backends import VARIANTS
from test_kernel_parity import fill_with_nan

from kernels.cpu import CpuBackend, RmsNormArgs, RopeWriteArgs, SiluMulArgs
from kernels.cpu_library import DTYPE_CODES, load_library
from kernels.kv_cache import KVCache, write_slots
from kernels.rope import Rope

SHAPES = [(1, 576), (7, 64), (3, 33), (2, 5), (40, 16)]


def call(variant: str, name: str, arguments: ctypes.Structure) -> None:
    load_library(variant).function(name, [ctypes.c_void_p])(ctypes.addressof(arguments))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rms_norm(shape, variant):
    rows, dim = shape
    x, weight = torch.randn(rows, dim + 3)[:, :dim] * 4, torch.randn(dim)
    y = torch.empty(rows, dim)
    arguments = RmsNormArgs(
        x.data_ptr(), y.data_ptr(), weight.data_ptr(), x_stride=dim + 3, y_stride=dim, rows=rows, heads=1, dim=dim,
        eps=1e-5,
    )  # fmt: skip
    wide = torch.randn(rows, dim + 3)
    wide[:, :dim] = x
    arguments.x = wide.data_ptr()
    call(variant, "preread_rms_norm", arguments)
    torch.testing.assert_close(y, torch.nn.functional.rms_norm(x, (dim,), weight, 1e-5), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rms_norm_of_heads_in_place(variant):
    rows, heads, dim = 5, 3, 20
    qkv, weight = torch.randn(rows, heads * dim + 7), torch.randn(dim)
    expected = qkv.clone()
    part = expected[:, : heads * dim].view(rows, heads, dim)
    expected[:, : heads * dim] = torch.nn.functional.rms_norm(part, (dim,), weight, 1e-6).flatten(1)
    stride = heads * dim + 7
    call(
        variant,
        "preread_rms_norm",
        RmsNormArgs(
            qkv.data_ptr(), qkv.data_ptr(), weight.data_ptr(), x_stride=stride, y_stride=stride, rows=rows, heads=heads,
            dim=dim, eps=1e-6,
        ),
    )  # fmt: skip
    torch.testing.assert_close(qkv, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_silu_mul(shape, variant):
    rows, dim = shape
    both, y = torch.randn(rows, 2 * dim) * 20, torch.empty(rows, dim)
    gate, up = both[:, :dim], both[:, dim:]
    call(
        variant,
        "preread_silu_mul",
        SiluMulArgs(gate.data_ptr(), up.data_ptr(), y.data_ptr(), x_stride=2 * dim, y_stride=dim, rows=rows, dim=dim),
    )
    torch.testing.assert_close(y, torch.nn.functional.silu(gate) * up, rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPE_CODES, ids=str)
@pytest.mark.parametrize(("interleaved", "rotary_dim"), [(False, 64), (False, 24), (True, 64), (True, 10)])
def test_rotated_keys_are_written_to_their_slots_only(rotary_dim, interleaved, dtype, variant):
    rows, kv_heads, dim, layer = 5, 3, 64, 1
    cache, expected = (KVCache.allocate(4, 4, 2, kv_heads, dim, dtype) for _ in range(2))
    for blank in (cache, expected):
        fill_with_nan(blank)
    qkv = torch.randn(rows, 1000)
    k, v = (qkv[:, first : first + kv_heads * dim].view(rows, kv_heads, dim) for first in (300, 600))
    slots, positions = torch.tensor([3, 15, 0, 8, 9]), torch.tensor([0, 7, 1000, 8, 9])
    rope = Rope(torch.rand(rotary_dim // 2), rotary_dim, interleaved, 1.1)
    cos, sin = rope.cos_sin(positions)
    write_slots(rope.apply(k, cos, sin), v, expected, layer, slots)
    call(
        variant,
        "preread_rope_write_kv",
        RopeWriteArgs(
            k.data_ptr(), v.data_ptr(), cos.data_ptr(), sin.data_ptr(), slots.data_ptr(), cache.data.data_ptr(),
            k_stride=1000, v_stride=1000, rows=rows, kv_heads=kv_heads, head_dim=dim, rotary_dim=rotary_dim,
            block_size=4, block_stride=cache.data.stride(0), layer_stride=cache.data.stride(1), layer=layer,
            interleaved=interleaved, dtype=DTYPE_CODES[dtype],
        ),
    )  # fmt: skip
    # one unit in the last place where a fused product rounds the other way
    if dtype is torch.int8:
        assert int((cache.data.int() - expected.data.int()).abs().max()) <= 1
        torch.testing.assert_close(cache.scales, expected.scales, rtol=1e-6, atol=0.0, equal_nan=True)
        return
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    torch.testing.assert_close(cache.data, expected.data, rtol=tolerance, atol=1e-6, equal_nan=True)


def hard_to_quantise(dim: int) -> torch.Tensor:
    """Heads [9, dim]: of any magnitude, halfway between whole numbers, nothing, too little, and what is no number."""
    x = torch.randn(9, dim)
    x[2] /= x[2].abs().amax()
    x *= torch.tensor([1.0, 1e-3, 3e38, 0.0, 1e-44, 1e-38, 1.0, 1.0, 1.0])[:, None]
    x[6] = (torch.arange(dim) % 126) + 0.5
    x[6, 0] = 127.0
    x[7, -1], x[8, 0] = torch.nan, -torch.inf
    return x


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dim", [2, 6, 18, 64])
def test_int8_is_written_as_the_reference_writes_it(dim, variant):
    """Bit for bit, so that what is stored does not depend on who stored it."""
    heads = hard_to_quantise(dim)[:, None]
    cache, expected = (KVCache.allocate(3, 4, 1, 1, dim, torch.int8) for _ in range(2))
    for blank in (cache, expected):
        blank.erase(range(3))
    slots = torch.tensor([11, 0, 3, 4, 5, 6, 7, 8, 9])
    CpuBackend(variant).write_kv(heads, heads.flip(0), cache, 0, slots)
    write_slots(heads, heads.flip(0), expected, 0, slots)
    assert torch.equal(cache.data, expected.data)
    torch.testing.assert_close(cache.scales, expected.scales, rtol=0.0, atol=0.0, equal_nan=True)
    keys, _ = cache.read_slots(0, slots // 4, slots % 4)
    assert keys[7:].isnan().all(), "no finite number stands for one that is not"
    error, limit = (keys - heads).abs()[:7, 0].amax(-1), heads[:7, 0].abs().amax(-1) / 253
    assert (error <= limit.clamp(min=1e-43)).all()
    alone = KVCache.allocate(1, 4, 1, 1, dim, torch.int8)
    CpuBackend(variant).write_kv(heads[6:7], heads[6:7], alone, 0, torch.tensor([2]))
    assert torch.equal(alone.data[0, 0, 0, 0, 2], cache.data[1, 0, 0, 0, 3]), "other rows have no part in it"
