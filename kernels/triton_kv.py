"""What the Triton backend does besides attention: angles, storing KV, merging partial results."""

from contextlib import AbstractContextManager

import torch
import triton
from torch import Tensor

from kernels.errors import ShapeError
from kernels.kv_cache import KVCache
from kernels.rope import Rope
from kernels.triton_kernels import merge_states, store_kv

__all__ = ["RotationTables", "Tables", "device_of", "merge", "padded_dim", "write_kv"]

TOKENS_PER_PROGRAM = 16
STATES_PER_PROGRAM = 16
MIN_POSITIONS = 1024

Tables = tuple[Tensor, Tensor]


class RotationTables:
    """Cosines and sines of a rope by relative position, made with torch so that angles are exact in float32.

    A table grows by doubling. Those that it outgrew are kept: captured graphs hold their addresses.
    """

    def __init__(self) -> None:
        # by identity; the rope is kept, so that its id is not given to another
        self._tables: dict[int, tuple[Rope, list[Tables]]] = {}

    def get(self, rope: Rope, num_positions: int) -> Tables:
        """Return cos and sin [num_positions or more, rotary_dim // 2] float32 on the rope's device."""
        _, tables = self._tables.setdefault(id(rope), (rope, []))
        if not tables or tables[-1][0].shape[0] < num_positions:
            size = triton.next_power_of_2(max(num_positions, MIN_POSITIONS))
            cos, sin = rope.cos_sin(torch.arange(size, device=rope.inv_freq.device))
            tables.append((cos[:, 0].contiguous(), sin[:, 0].contiguous()))
        return tables[-1]


def padded_dim(dim: int) -> int:
    """Return the power of two, 16 at least, in which a head of `dim` is computed."""
    return max(16, int(triton.next_power_of_2(dim)))


def device_of(tensor: Tensor) -> AbstractContextManager[None]:
    """Return a context in which kernels are launched on the tensor's device."""
    context: AbstractContextManager[None] = torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]
    return context


def write_kv(
    k: Tensor,
    v: Tensor,
    kv_cache: KVCache,
    layer: int,
    slot_mapping: Tensor,
    rotation: tuple[Rope, Tensor, Tables] | None = None,
) -> None:
    """Store k and v [T, num_kv_heads, dim] at slots [T]; rows of a negative slot are left out.

    Args:
        k: rotated, unless `rotation` is given; any strides over rows and heads, as v.
        v: values.
        kv_cache: written.
        layer: index of the layer.
        slot_mapping: [T] integers, block_id * block_size + offset.
        rotation: rope, positions [T] and tables from `RotationTables`, to rotate k on the way.

    Raises:
        ShapeError: k, v or slot_mapping do not fit the cache or each other.
    """
    expected = (slot_mapping.shape[0], kv_cache.num_kv_heads, kv_cache.head_dim)
    if k.shape != expected or v.shape != expected:
        raise ShapeError(f"k {tuple(k.shape)} and v {tuple(v.shape)} must both be {expected} to be written")
    if not k.shape[0]:
        return
    k, v = _dense_heads(k), _dense_heads(v)
    keys, values = kv_cache.layer(layer)
    key_scales, value_scales = kv_cache.layer_scales(layer) or (keys, values)
    rope, positions, (cos, sin) = rotation or (None, slot_mapping, (k, k))
    with device_of(k):
        store_kv[triton.cdiv(k.shape[0], TOKENS_PER_PROGRAM), kv_cache.num_kv_heads](
            k,
            v,
            keys,
            values,
            key_scales,
            value_scales,
            slot_mapping,
            positions,
            cos,
            sin,
            k.shape[0],
            *k.stride()[:2],
            *v.stride()[:2],
            keys.stride(0),
            key_scales.stride(0),
            DIM=kv_cache.head_dim,
            DIM_PAD=padded_dim(kv_cache.head_dim),
            ROTARY=rope.rotary_dim if rope else 0,
            INTERLEAVED=rope.interleaved if rope else False,
            BLOCK_SIZE=kv_cache.block_size,
            TOKENS=TOKENS_PER_PROGRAM,
            SCALED=kv_cache.scales is not None,
        )


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Merge as `kernels.merge.merge` says."""
    dim = out_a.shape[-1]
    tensors = [tensor.contiguous() for tensor in (out_a, lse_a, out_b, lse_b)]
    out, lse = torch.empty_like(tensors[0]), torch.empty_like(tensors[1])
    if lse.numel():
        with device_of(out):
            merge_states[(triton.cdiv(lse.numel(), STATES_PER_PROGRAM),)](
                *tensors,
                out,
                lse,
                lse.numel(),
                DIM=dim,
                DIM_PAD=padded_dim(dim),
                STATES=STATES_PER_PROGRAM,
            )
    return out, lse


def _dense_heads(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
