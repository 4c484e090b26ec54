"""The tensor that holds keys and values of every block."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.errors import ShapeError

__all__ = ["KVCache", "block_bytes", "write_slots"]

CACHE_LINE_BYTES = 64
SCALE_BYTES = 4
LARGEST_INT8 = 127  # -128 is not used, so that a sign costs nothing


@dataclass(frozen=True, eq=False, slots=True)
class KVCache:
    """Keys and values in blocks; one block of all layers is one contiguous stretch of bytes.

    Attributes:
        data: [num_blocks, num_layers, 2 (K, V), num_kv_heads, block_size, head_dim]; K is rotated at the
            position at which it was computed.
        scales: [num_blocks, num_layers, 2, num_kv_heads, block_size] float32 of an int8 cache, whose values are data
            times scale: one a token and head. In memory, those of a layer follow its data. None for floats.
    """

    data: Tensor
    scales: Tensor | None = None

    @classmethod
    def allocate(
        cls,
        num_blocks: int,
        block_size: int,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: str | torch.device = "cpu",
    ) -> "KVCache":
        """Allocate an uninitialised cache.

        Raises:
            ShapeError: an empty dimension, or int8 heads of odd dimension.
        """
        shape = (num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim)
        if min(shape) < 1:
            raise ShapeError(f"a KV cache of shape {shape} has an empty dimension; every size must be at least 1")
        if dtype is torch.int8 and head_dim % 2:
            raise ShapeError(f"int8 KV is for heads of even dimension, not {head_dim}; choose another KV dtype")
        nbytes = block_bytes(block_size, num_layers, num_kv_heads, head_dim, dtype)
        return cls.over(torch.empty((num_blocks, nbytes), dtype=torch.uint8, device=device), shape, dtype)

    @classmethod
    def over(cls, memory: Tensor, shape: Sequence[int], dtype: torch.dtype) -> "KVCache":
        """Lay a cache with data of this shape over memory [num_blocks, bytes_per_block] uint8."""
        if dtype is not torch.int8:
            return cls(memory.view(dtype).view(*shape))
        _, num_layers, parts, heads, slots, dim = shape
        words, size = memory.view(torch.float32), memory.shape[1]
        inner, layer = (heads * slots, slots, 1), size // num_layers
        data = memory.view(torch.int8).as_strided(tuple(shape), (size, layer, *(dim * step for step in inner), 1))
        first = words.storage_offset() + parts * heads * slots * dim // SCALE_BYTES
        strides = (size // SCALE_BYTES, layer // SCALE_BYTES, *inner)
        return cls(data, words.as_strided(tuple(shape[:5]), strides, first))

    @property
    def dtype(self) -> torch.dtype:
        """Return the element type."""
        return self.data.dtype

    @property
    def num_blocks(self) -> int:
        """Return how many blocks there are."""
        return self.data.shape[0]

    @property
    def num_layers(self) -> int:
        """Return how many layers each block covers."""
        return self.data.shape[1]

    @property
    def num_kv_heads(self) -> int:
        """Return the number of key-value heads."""
        return self.data.shape[3]

    @property
    def block_size(self) -> int:
        """Return the slots of a block."""
        return self.data.shape[4]

    @property
    def head_dim(self) -> int:
        """Return the dimension of a head."""
        return self.data.shape[5]

    @property
    def bytes_per_block(self) -> int:
        """Return the bytes of one block over all layers, scales included."""
        return self.data.stride(0) * self.data.element_size()

    @property
    def _memory(self) -> Tensor:
        """All bytes: uint8 [num_blocks, bytes_per_block]."""
        stride = self.data.stride(0)
        return self.data.as_strided((self.num_blocks, stride), (stride, 1)).view(torch.uint8)

    def block_views(self, blocks: Sequence[int]) -> list[Tensor]:
        """Return the bytes of blocks as flat uint8 views [bytes_per_block], in the order in which they are stored."""
        memory = self._memory
        return [memory[block] for block in blocks]

    def read_blocks(self, blocks: Sequence[int], num_tokens: int) -> Tensor:
        """Copy blocks to uint8 [len(blocks), bytes_per_block] on the CPU.

        Args:
            blocks: hold a run's tokens in order.
            num_tokens: of the run; slots of the last block behind them are zero in the copy, whatever they hold, and
                so is what pads the scales.

        Raises:
            ShapeError: the blocks are not as many as the tokens need.
        """
        if len(blocks) != -(-num_tokens // self.block_size) or not blocks:
            raise ShapeError(f"{num_tokens} tokens are not {len(blocks)} blocks of {self.block_size}")
        index = torch.tensor(blocks, device=self.data.device)
        content = self._memory.index_select(0, index)
        copy = self.over(content, (len(blocks), *self.data.shape[1:]), self.dtype)
        unused = slice(num_tokens - (len(blocks) - 1) * self.block_size, None)
        copy.data[-1, :, :, :, unused] = 0
        if copy.scales is not None:
            copy.scales[-1, :, :, :, unused] = 0
            padding = copy.scales[0, 0].numel() * (self.head_dim + SCALE_BYTES)
            content.view(len(blocks), self.num_layers, -1)[..., padding:] = 0
        return content.cpu()

    def write_blocks(self, blocks: Sequence[int], content: Tensor) -> None:
        """Fill blocks with what `read_blocks` returned.

        Raises:
            ShapeError: it is not that of so many blocks.
        """
        if content.shape != (len(blocks), self.bytes_per_block) or content.dtype is not torch.uint8:
            raise ShapeError(
                f"{content.dtype} {tuple(content.shape)} is not the content of {len(blocks)} blocks of "
                f"{self.bytes_per_block} bytes"
            )
        for view, stored in zip(self.block_views(blocks), content, strict=True):
            view.copy_(stored, non_blocking=True)

    def erase(self, blocks: Sequence[int]) -> None:
        """Overwrite blocks with zeros."""
        self._memory[torch.tensor(blocks, dtype=torch.int64, device=self.data.device)] = 0

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return views of K and V of one layer, each [num_blocks, num_kv_heads, block_size, head_dim]."""
        return self.data[:, layer, 0], self.data[:, layer, 1]

    def layer_scales(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return views of their scales [num_blocks, num_kv_heads, block_size], where there are any."""
        return None if self.scales is None else (self.scales[:, layer, 0], self.scales[:, layer, 1])

    def read_slots(self, layer: int, blocks: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Return K and V of one layer at slots [S], each [S, num_kv_heads, head_dim] float32."""
        read = []
        for part in range(2):
            x = self.data[:, layer, part][blocks, :, offsets].to(torch.float32)
            read.append(x if self.scales is None else x * self.scales[:, layer, part][blocks, :, offsets, None])
        return read[0], read[1]


def block_bytes(block_size: int, num_layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Return the bytes that a block of a cache takes."""
    if dtype is torch.int8:
        return num_layers * _quantised_layer_bytes(num_kv_heads, block_size, head_dim)
    return num_layers * 2 * num_kv_heads * block_size * head_dim * dtype.itemsize


def write_slots(k: Tensor, v: Tensor, kv_cache: KVCache, layer: int, slot_mapping: Tensor) -> None:
    """Store k and v [T, num_kv_heads, head_dim] at slots [T]; slot = block_id * block_size + offset.

    Raises:
        ShapeError: k, v or slot_mapping do not fit the cache or each other.
    """
    expected = (slot_mapping.shape[0], kv_cache.num_kv_heads, kv_cache.head_dim)
    if k.shape != expected or v.shape != expected:
        raise ShapeError(f"k {tuple(k.shape)} and v {tuple(v.shape)} must both be {expected} to be written")
    blocks = slot_mapping // kv_cache.block_size
    offsets = slot_mapping - blocks * kv_cache.block_size
    for part, x in enumerate((k, v)):
        target = kv_cache.data[:, layer, part]
        if kv_cache.scales is None:
            target[blocks, :, offsets] = x.to(kv_cache.dtype)
        else:
            target[blocks, :, offsets], kv_cache.scales[:, layer, part][blocks, :, offsets] = _quantise(x)


def _quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x [..., dim] as int8 and the float32 scales [...] of its rows; NaN where one of a row is not finite."""
    x = x.to(torch.float32)
    scales = x.abs().amax(-1) / LARGEST_INT8
    scales = scales.where(scales.isfinite(), torch.nan)
    whole = (x / scales.where(scales > 0, torch.inf)[..., None]).round().nan_to_num(0.0)
    # a scale of few bits, which only the least of all numbers have, may leave more than 127
    return whole.clamp(-LARGEST_INT8, LARGEST_INT8).to(torch.int8), scales


def _quantised_layer_bytes(num_kv_heads: int, block_size: int, head_dim: int) -> int:
    """Return the bytes of one layer of an int8 block: in whole cache lines and whole rows, so that both are aligned."""
    used = 2 * num_kv_heads * block_size * (head_dim + SCALE_BYTES)
    unit = math.lcm(CACHE_LINE_BYTES, head_dim)
    return -(-used // unit) * unit
