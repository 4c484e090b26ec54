"""Norms, activation and the rotary write of the C++ library against torch, in every variant that runs here."""

import ctypes

import pytest
import torch
from kernel_backends import VARIANTS

from kernels.cpu import RmsNormArgs, RopeWriteArgs, SiluMulArgs
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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("interleaved", "rotary_dim"), [(False, 64), (False, 24), (True, 64), (True, 10)])
def test_rotated_keys_are_written_to_their_slots_only(rotary_dim, interleaved, dtype, variant):
    rows, kv_heads, dim, layer = 5, 3, 64, 1
    cache = KVCache.allocate(4, 4, 2, kv_heads, dim, dtype)
    cache.data.fill_(torch.nan)
    expected = KVCache(cache.data.clone())
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
            block_size=4, num_layers=2, layer=layer, interleaved=interleaved, dtype=DTYPE_CODES[dtype],
        ),
    )  # fmt: skip
    # one unit in the last place where a fused product rounds the other way
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    torch.testing.assert_close(cache.data, expected.data, rtol=tolerance, atol=1e-6, equal_nan=True)
