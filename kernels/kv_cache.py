"""The tensor that holds keys and values of every block."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.errors import ShapeError

__all__ = ["KVCache", "write_slots"]


@dataclass(frozen=True, eq=False, slots=True)
class KVCache:
    """Keys and values in blocks; one block of all layers is one contiguous stretch of bytes.

    Attributes:
        data: [num_blocks, num_layers, 2 (K, V), num_kv_heads, block_size, head_dim]; K is rotated at the
            position at which it was computed.
        scales: scales of a quantised cache; None for bf16 and float32.
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
        """Allocate an uninitialised cache."""
        shape = (num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim)
        if min(shape) < 1:
            raise ShapeError(f"a KV cache of shape {shape} has an empty dimension; every size must be at least 1")
        return cls(torch.empty(shape, dtype=dtype, device=device))

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
        """Return the bytes of one block over all layers."""
        return self.data[0].numel() * self.data.element_size()

    def block_views(self, blocks: Sequence[int]) -> list[Tensor]:
        """Return the bytes of blocks as flat uint8 views [bytes_per_block], in the order in which they are stored."""
        content = self.data.flatten(1).view(torch.uint8)
        return [content[block] for block in blocks]

    def read_blocks(self, blocks: Sequence[int], num_tokens: int) -> Tensor:
        """Copy blocks to uint8 [len(blocks), bytes_per_block] on the CPU.

        Args:
            blocks: hold a run's tokens in order.
            num_tokens: of the run; slots of the last block behind them are zero in the copy, whatever they hold.

        Raises:
            ShapeError: the blocks are not as many as the tokens need.
        """
        if len(blocks) != -(-num_tokens // self.block_size) or not blocks:
            raise ShapeError(f"{num_tokens} tokens are not {len(blocks)} blocks of {self.block_size}")
        index = torch.tensor(blocks, device=self.data.device)
        content = self.data.index_select(0, index)
        content[-1, :, :, :, num_tokens - (len(blocks) - 1) * self.block_size :] = 0
        return content.view(len(blocks), -1).view(torch.uint8).cpu()

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

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return views of K and V of one layer, each [num_blocks, num_kv_heads, block_size, head_dim]."""
        return self.data[:, layer, 0], self.data[:, layer, 1]


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
    keys, values = kv_cache.layer(layer)
    keys[blocks, :, offsets] = k.to(kv_cache.dtype)
    values[blocks, :, offsets] = v.to(kv_cache.dtype)
