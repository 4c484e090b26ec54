"""From a plan's runs to work items of the Triton kernels: flat int32 tensors, made once a step. Knows no Triton.

A work item is a tile of query rows against a stretch of blocks that all of them may see, with one shift. Rows of
several sequences share a tile where they share runs, so that the runs are read once (cascade); long stretches are cut
so that few rows still keep a whole device busy (split-KV). Each item leaves a partial result, its row's *part*; the
parts of a row are merged afterwards.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kernels.plan import AttentionPlan, RunGroup
from kernels.runs import Run

__all__ = ["DeviceWork", "HostWork", "StaticWork", "Tiling", "make_work"]

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]

ITEM_FIELDS = 5  # first entry, number of entries, first row of `rows`, number of rows, shift
ROW_FIELDS = 2  # query row, part
ENTRY_FIELDS = 3  # block id, prompt position of its first slot, valid tokens


@dataclass(frozen=True, slots=True)
class Tiling:
    """How work is cut.

    Attributes:
        heads_per_kv: query heads that share a key-value head; a row takes as many lanes of a tile.
        lanes: tile heights, ascending; a group of rows takes the lowest that holds it, or several of the highest.
        target_items: stretches are cut until there are about as many items.
        min_blocks: but not into pieces of fewer blocks.
    """

    heads_per_kv: int
    lanes: tuple[int, ...]
    target_items: int
    min_blocks: int

    def lanes_for(self, num_rows: int) -> int:
        """Return the height of the tiles of a group of rows."""
        fitting = (lanes for lanes in self.lanes if num_rows * self.heads_per_kv <= lanes)
        return next(fitting, self.lanes[-1])

    def blocks_per_item(self, tile_blocks: Sequence[int]) -> int:
        """Return how many blocks an item reads at most, given how many each tile sees."""
        total = sum(tile_blocks)
        if len(tile_blocks) >= self.target_items:
            return max(total, 1)
        return max(-(-total // self.target_items), self.min_blocks, 1)


@dataclass(frozen=True, eq=False, slots=True)
class HostWork:
    """The work of one step on the host.

    Attributes:
        items: [I, ITEM_FIELDS] for each tile height, longest first.
        rows: [P, ROW_FIELDS], the rows of the items in order; P is the number of parts.
        entries: [E, ENTRY_FIELDS], blocks of the groups in prompt order.
        row_parts: [T + 1], the parts of row r are row_parts[r] to row_parts[r + 1].
        run_parts: [T * max_runs + 1], the same for every run of a row; empty unless asked for.
        num_angles: relative positions (position minus shift) are below it.
    """

    items: dict[int, Ints]
    rows: Ints
    entries: Ints
    row_parts: Ints
    run_parts: Ints
    num_angles: int

    @property
    def is_direct(self) -> bool:
        """Whether every row has exactly one part, which then is its result."""
        return len(self.rows) == len(self.row_parts) - 1 and bool((np.diff(self.row_parts) == 1).all())


@dataclass(frozen=True, eq=False, slots=True)
class DeviceWork:
    """The same as int32 tensors on the device.

    Attributes:
        items: by tile height.
        num_parts: how many partial results the items leave at most.
        is_direct: items write results, not parts.
        longest: blocks of the longest item, rounded up to a power of 8: each value is tuned for. 0 is any number.
    """

    items: dict[int, Tensor]
    rows: Tensor
    entries: Tensor
    row_parts: Tensor
    run_parts: Tensor
    num_parts: int
    num_angles: int
    is_direct: bool
    longest: int

    @classmethod
    def copy_of(cls, host: HostWork, device: torch.device) -> "DeviceWork":
        """Copy the work of a step to the device in one transfer."""
        parts = [*host.items.values(), host.rows, host.row_parts, host.run_parts, host.entries]
        sizes = [part.size for part in parts]
        packed = torch.from_numpy(np.concatenate([part.ravel() for part in parts])).to(device)
        tensors = [tensor.view(part.shape) for tensor, part in zip(torch.split(packed, sizes), parts, strict=True)]
        rows, row_parts, run_parts, entries = tensors[len(host.items) :]
        longest = max((int(items[0, 1]) for items in host.items.values()), default=0)
        return cls(
            items=dict(zip(host.items, tensors, strict=False)),
            rows=rows,
            entries=entries,
            row_parts=row_parts,
            run_parts=run_parts,
            num_parts=len(host.rows),
            num_angles=host.num_angles,
            is_direct=host.is_direct,
            longest=8 ** -(-max(longest - 1, 0).bit_length() // 3),
        )


class StaticWork:
    """Work tensors whose addresses and shapes stay, so that a captured CUDA graph can read the next step's work.

    Items beyond those of the step have no rows; rows beyond those of the step have no parts.

    Args:
        num_rows: query rows, those that pad the batch included.
        tiling: gives the tile heights; each has room for `target_items` and 16 more a row.
        max_blocks: blocks that all sequences have together, those of shared runs counted once a group.
        num_angles: relative positions must be below it.
        device: of the tensors.
    """

    def __init__(
        self, num_rows: int, tiling: Tiling, *, max_blocks: int, num_angles: int, device: torch.device
    ) -> None:
        max_items = tiling.target_items + 16 * num_rows
        max_parts = 2 * tiling.target_items + 32 * num_rows
        sizes = [max_items * ITEM_FIELDS] * len(tiling.lanes)
        sizes += [max_parts * ROW_FIELDS, num_rows + 1, max_blocks * ENTRY_FIELDS]
        on_gpu = device.type == "cuda"
        self._tiling = tiling
        self._copied = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
        # entries come last: what is copied ends where those of the step end
        self._staged = torch.zeros(sum(sizes), dtype=torch.int32, pin_memory=on_gpu)
        self._buffer = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        self._host = [part.numpy() for part in torch.split(self._staged, sizes)]
        *items, rows, row_parts, entries = torch.split(self._buffer, sizes)
        self.work = DeviceWork(
            items={lanes: part.view(-1, ITEM_FIELDS) for lanes, part in zip(tiling.lanes, items, strict=True)},
            rows=rows.view(-1, ROW_FIELDS),
            entries=entries.view(-1, ENTRY_FIELDS),
            row_parts=row_parts,
            run_parts=row_parts[:0],
            num_parts=max_parts,
            num_angles=num_angles,
            is_direct=False,
            longest=0,
        )

    def fill(self, plan: AttentionPlan) -> bool:
        """Take over the work of a step of at most as many rows; False when it does not fit."""
        host = make_work(plan, self._tiling)
        *items, _, row_parts, entries = self._host
        sources = [host.items.get(lanes, np.empty(0, np.int32)) for lanes in self._tiling.lanes]
        sources += [host.rows, host.row_parts, host.entries]
        fits = all(source.size <= target.size for source, target in zip(sources, self._host, strict=True))
        if not fits or host.num_angles > self.work.num_angles:
            return False
        if self._copied is not None:
            self._copied.synchronize()  # the last step's work may still be on its way
        for source, target in zip(sources, self._host, strict=True):
            target[: source.size] = source.ravel()
        for source, target in zip(sources, items, strict=False):
            target[source.size :] = 0
        row_parts[len(host.row_parts) :] = host.row_parts[-1]
        used = len(self._staged) - entries.size + host.entries.size
        self._buffer[:used].copy_(self._staged[:used], non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        return True


@dataclass(frozen=True, eq=False, slots=True)
class _Tile:
    """Query rows that one item attends with, and the stretch of entries that any of them sees."""

    rows: list[int]
    slots: list[int]  # of each row the index of the run in its sequence, where runs are kept apart
    lanes: int
    first: int
    stop: int
    shift: int
    highest: int  # position of a row


def make_work(plan: AttentionPlan, tiling: Tiling, *, per_run: bool = False) -> HostWork:
    """Cut the attention of a plan into work items.

    Args:
        plan: of the step.
        tiling: how to cut.
        per_run: keep runs apart, so that each run's log-sum-exp can be told.

    Returns:
        Items that cover every visible pair of row and key exactly once.
    """
    groups = _single_runs(plan) if per_run else plan.groups
    entries, bounds = _entries(groups, plan.block_size)
    tiles = list(_tiles(plan, tiling, groups, entries, bounds, per_run=per_run))
    blocks = tiling.blocks_per_item([tile.stop - tile.first for tile in tiles])
    items: dict[int, list[tuple[int, ...]]] = {}
    rows: list[int] = []
    slots: list[int] = []
    for tile in tiles:
        for first in range(tile.first, tile.stop, blocks):
            num_entries = min(blocks, tile.stop - first)
            items.setdefault(tile.lanes, []).append((first, num_entries, len(rows), len(tile.rows), tile.shift))
            rows += tile.rows
            slots += tile.slots
    num_rows, max_runs = sum(map(len, plan.rows)), plan.max_runs if per_run else 0
    owners, of_run = np.array(rows, dtype=np.int64), np.array(slots, dtype=np.int64)
    return HostWork(
        items={lanes: _longest_first(listed) for lanes, listed in sorted(items.items())},
        rows=np.stack((owners, _parts(owners, of_run)), axis=1).astype(np.int32),
        entries=entries,
        row_parts=_bounds(owners, num_rows),
        run_parts=_bounds(owners * max_runs + of_run, num_rows * max_runs) if per_run else np.empty(0, np.int32),
        num_angles=max((tile.highest - tile.shift + 1 for tile in tiles), default=1),
    )


def _single_runs(plan: AttentionPlan) -> list[RunGroup]:
    """Return every run that a query may read as a group of its own."""
    members: dict[Run, list[int]] = {}
    for index, sequence in enumerate(plan.sequences):
        for run in sequence.runs:
            if run.num_tokens and plan.rows[index]:
                members.setdefault(run, []).append(index)
    return [RunGroup((run,), tuple(readers), run.shift) for run, readers in members.items()]


def _entries(groups: Sequence[RunGroup], block_size: int) -> tuple[Ints, list[int]]:
    """Return [E, ENTRY_FIELDS] of the blocks that the groups use, and where each group's begin and the last end."""
    runs = [run for group in groups for run in group.runs]
    used = [-(-run.num_tokens // block_size) for run in runs]
    ends = list(accumulate(used, initial=0))
    blocks = chain.from_iterable(run.block_ids[:count] for run, count in zip(runs, used, strict=True))
    firsts = (np.arange(ends[-1]) - np.repeat(np.array(ends[:-1], dtype=np.int64), used)) * block_size
    starts = np.repeat(np.array([run.start for run in runs], dtype=np.int64), used) + firsts
    lengths = np.repeat(np.array([run.num_tokens for run in runs], dtype=np.int64), used) - firsts
    entries = np.stack((np.fromiter(blocks, np.int64, ends[-1]), starts, np.minimum(lengths, block_size)), axis=1)
    last_runs = accumulate((len(group.runs) for group in groups), initial=0)
    return entries.astype(np.int32), [ends[run] for run in last_runs]


def _tiles(
    plan: AttentionPlan,
    tiling: Tiling,
    groups: Sequence[RunGroup],
    entries: Ints,
    bounds: Sequence[int],
    *,
    per_run: bool,
) -> Iterator[_Tile]:
    """Yield the tiles of all groups that see anything."""
    starts, ends = entries[:, 1].tolist(), (entries[:, 1] + entries[:, 2]).tolist()
    for group, (begin, end) in zip(groups, pairwise(bounds), strict=True):
        rows = [row for member in group.members for row in plan.rows[member]]
        positions = [p for member in group.members for p in plan.sequences[member].query_positions]
        slots = _run_slots(plan, group) if per_run else [0] * len(rows)
        lanes = tiling.lanes_for(len(rows))
        step = lanes // tiling.heads_per_kv
        for low in range(0, len(rows), step):
            tile = slice(low, low + step)
            highest = max(positions[tile])
            first, stop = begin, bisect_right(starts, highest, begin, end)
            if plan.sliding_window is not None:
                first = bisect_right(ends, min(positions[tile]) - plan.sliding_window + 1, begin, end)
            if first < stop:
                yield _Tile(rows[tile], slots[tile], lanes, first, stop, group.shift, highest)


def _run_slots(plan: AttentionPlan, group: RunGroup) -> list[int]:
    """Return for each row of a group of one run the index of that run in the row's sequence."""
    indices = ((member, plan.sequences[member].runs.index(group.runs[0])) for member in group.members)
    return [index for member, index in indices for _ in plan.rows[member]]


def _longest_first(items: list[tuple[int, ...]]) -> Ints:
    """Return [I, ENTRY_FIELDS] with the longest items first, so that none of them is the last to start."""
    return np.array(sorted(items, key=lambda item: -item[1]), dtype=np.int32)


def _parts(rows: Longs, slots: Longs) -> Longs:
    """Return [P], a part for each row of each item: those of a row adjacent, in the order of its runs."""
    parts = np.empty(len(rows), np.int64)
    parts[np.lexsort((slots, rows))] = np.arange(len(rows))
    return parts


def _bounds(owners: Longs, num_owners: int) -> Ints:
    """Return [num_owners + 1]: how many of the owners are below each number."""
    counts = np.bincount(owners, minlength=num_owners)
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
