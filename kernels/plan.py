"""The plan of a step: made once, used by every layer. Knows positions and blocks, not values."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from kernels.errors import PlanError, ShapeError
from kernels.kv_cache import KVCache
from kernels.rope import Rope
from kernels.runs import Run, SequencePlan

__all__ = ["AttentionPlan", "RunGroup"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunGroup:
    """Runs that the same sequences read with the same shift: read once for all their queries.

    Attributes:
        runs: ascending; not necessarily adjacent.
        members: indices of the sequences that read them.
        shift: common to all runs.
    """

    runs: tuple[Run, ...]
    members: tuple[int, ...]
    shift: int


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """Everything about a step's attention that does not depend on the layer.

    Attributes:
        sequences: as given; their query rows lie one sequence after the other.
        rope: rotates the queries.
        softmax_scale: multiplies the scores.
        block_size: slots of a block.
        sliding_window: a key is visible while query - key position < sliding_window; None is no window.
        query_positions: [T] int64, prompt position of every query row.
        rows: per sequence its range of query rows.
    """

    sequences: tuple[SequencePlan, ...]
    rope: Rope
    softmax_scale: float
    block_size: int
    sliding_window: int | None
    query_positions: Tensor
    rows: tuple[range, ...]
    _memo: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def build(
        cls,
        sequences: Sequence[SequencePlan],
        *,
        rope: Rope,
        softmax_scale: float,
        block_size: int,
        sliding_window: int | None = None,
        device: str | torch.device = "cpu",
    ) -> "AttentionPlan":
        """Check the sequences and lay out their query rows.

        Raises:
            PlanError: runs or positions overlap, descend or do not fit their blocks; a window below 1.
        """
        _check_window(sliding_window)
        for sequence in sequences:
            sequence.check(block_size)
        positions = [position for sequence in sequences for position in sequence.query_positions]
        bounds = accumulate((len(sequence.query_positions) for sequence in sequences), initial=0)
        return cls(
            sequences=tuple(sequences),
            rope=rope,
            softmax_scale=softmax_scale,
            block_size=block_size,
            sliding_window=sliding_window,
            query_positions=torch.tensor(positions, dtype=torch.int64, device=device),
            rows=tuple(range(start, stop) for start, stop in pairwise(bounds)),
        )

    def with_window(self, sliding_window: int | None) -> "AttentionPlan":
        """Return the same plan under another window; tensors are shared."""
        if sliding_window == self.sliding_window:
            return self
        _check_window(sliding_window)
        return replace(self, sliding_window=sliding_window)

    @property
    def num_rows(self) -> int:
        """Return the number of query rows T."""
        return self.query_positions.shape[0]

    @property
    def max_runs(self) -> int:
        """Return the largest number of runs that a sequence has."""
        return max((len(sequence.runs) for sequence in self.sequences), default=0)

    @property
    def groups(self) -> tuple[RunGroup, ...]:
        """Return the runs of all sequences, each shared one once."""
        return self.memo("groups", lambda: _group_runs(self.sequences))

    def keys(self, runs: Sequence[Run]) -> tuple[Tensor, Tensor]:
        """Return slots [S] (block_id * block_size + offset) and prompt positions [S] of the valid tokens of runs."""
        counts = torch.tensor([run.num_tokens for run in runs])
        used_blocks = [run.block_ids[: -(-run.num_tokens // self.block_size)] for run in runs]
        blocks = torch.tensor([block for blocks in used_blocks for block in blocks], dtype=torch.int64)
        first_blocks = torch.tensor(list(accumulate(map(len, used_blocks), initial=0))[:-1], dtype=torch.int64)
        starts = torch.tensor([run.start for run in runs], dtype=torch.int64)
        owners = torch.repeat_interleave(torch.arange(len(runs)), counts)
        offsets = torch.arange(owners.shape[0]) - (counts.cumsum(0) - counts)[owners]
        slots = blocks[first_blocks[owners] + offsets // self.block_size] * self.block_size
        device = self.query_positions.device
        return (slots + offsets % self.block_size).to(device), (starts[owners] + offsets).to(device)

    def memo(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` made the first time; shared by all layers and by all windows (key by window)."""
        if key not in self._memo:
            self._memo[key] = make()
        value: T = self._memo[key]
        return value

    def rotate_queries(self, q: Tensor, shift: int) -> Tensor:
        """Rotate q [T, heads, dim] by position minus `shift`, to meet keys that were computed `shift` earlier."""
        cos, sin = self.memo(("rotation", shift), lambda: self.rope.cos_sin(self.query_positions - shift))
        return self.rope.apply(q, cos, sin)

    def check(self, q: Tensor, kv_cache: KVCache) -> None:
        """Raise `ShapeError` unless q [T, heads, dim] and the cache fit this plan."""
        if q.dim() != 3 or q.shape[0] != self.num_rows or q.shape[2] != kv_cache.head_dim:
            raise ShapeError(f"q {tuple(q.shape)} must be [{self.num_rows}, heads, {kv_cache.head_dim}] for this plan")
        if q.shape[1] % kv_cache.num_kv_heads:
            raise ShapeError(f"{q.shape[1]} query heads are not a multiple of {kv_cache.num_kv_heads} key-value heads")
        if kv_cache.block_size != self.block_size:
            raise ShapeError(
                f"the plan was built for blocks of {self.block_size} slots, the cache has {kv_cache.block_size}; "
                "build it with the block size of the cache"
            )


def _check_window(sliding_window: int | None) -> None:
    if sliding_window is not None and sliding_window < 1:
        raise PlanError(f"a sliding window of {sliding_window} shows no key; use None for no window")


def _group_runs(sequences: Sequence[SequencePlan]) -> tuple[RunGroup, ...]:
    members: dict[Run, list[int]] = {}
    for index, sequence in enumerate(sequences):
        for run in sequence.runs:
            if run.num_tokens and len(sequence.query_positions):
                members.setdefault(run, []).append(index)
    grouped: dict[tuple[tuple[int, ...], int], list[Run]] = {}
    for run, readers in members.items():
        grouped.setdefault((tuple(readers), run.shift), []).append(run)
    return tuple(RunGroup(tuple(runs), readers, shift) for (readers, shift), runs in grouped.items())
