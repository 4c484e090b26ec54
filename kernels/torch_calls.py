"""From a plan's runs to calls of torch's attention: which rows, which keys, which mask. Made once a step."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.kv_cache import KVCache
from kernels.plan import AttentionPlan, RunGroup

__all__ = ["Call", "Gather", "Rows", "make_gathers"]

# up to so many rows one call with a mask beats several calls and their merges
FEW_ROWS = 64
# a window is cut along chunks of so many rows, so that keys outside of all their windows are left out
WINDOW_ROWS = 256

Rows = slice | Tensor


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """One call: per batch entry `num_rows` query rows against a stretch of the gathered keys.

    Attributes:
        rows: query rows of all entries in order; a slice where they are adjacent.
        num_rows: rows of one entry.
        keys: stretch of the gathered keys.
        causal: row i sees keys 0..i of the stretch.
        mask: additive [entries, 1, 1 or num_rows, keys] float32; None shows every key.
        fresh: no earlier call has written these rows.
    """

    rows: Rows
    num_rows: int
    keys: slice
    causal: bool = False
    mask: Tensor | None = None
    fresh: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Gather:
    """Keys and values that are read together, and the calls that use them.

    Attributes:
        shift: of all their runs.
        entries: the batch size; every entry has `num_keys` keys, shorter ones are padded and masked.
        num_keys: keys of one entry.
        index: [2 * entries * num_kv_heads * num_keys], rows of a layer of the cache seen as [-1, head_dim].
        scales: of an int8 cache: where theirs are in its scales seen as [-1, 1].
        calls: in order.
    """

    shift: int
    entries: int
    num_keys: int
    index: Tensor
    scales: Tensor | None
    calls: tuple[Call, ...]


@dataclass(frozen=True, eq=False, slots=True)
class _Entry:
    """Few rows of one group with the keys that at least one of them sees."""

    rows: Tensor  # [R]
    slots: Tensor  # [S]
    visible: Tensor  # [R, S]


def make_gathers(plan: AttentionPlan, groups: Sequence[RunGroup], kv_cache: KVCache) -> tuple[Gather, ...]:
    """Return the gathers that cover every visible pair of row and key of the groups exactly once."""
    gathers: list[Gather] = []
    small: dict[tuple[int, int], list[_Entry]] = defaultdict(list)
    for group in groups:
        if sum(len(plan.rows[member]) for member in group.members) > FEW_ROWS:
            gathers += _large_gather(plan, group, kv_cache)
        elif (entry := _small_entry(plan, group)) is not None:
            small[group.shift, len(entry.rows)].append(entry)
    for (shift, _), entries in small.items():
        gathers += [_batched_gather(shift, bucket, kv_cache) for bucket in _buckets(entries)]
    return _mark_fresh(gathers, plan.num_rows)


def _small_entry(plan: AttentionPlan, group: RunGroup) -> _Entry | None:
    """Return the rows and keys of a group without those that see or show nothing; None if nothing is left."""
    rows = torch.tensor([row for member in group.members for row in plan.rows[member]])
    rows = rows.to(plan.query_positions.device)
    slots, positions = plan.keys(group.runs)
    visible = _visible(plan.query_positions[rows], positions, plan.sliding_window)
    seen, seeing = visible.any(dim=0), visible.any(dim=1)
    if not seeing.any():
        return None
    if seen.all() and seeing.all():
        return _Entry(rows, slots, visible)
    return _Entry(rows[seeing], slots[seen], visible[seeing][:, seen])


def _visible(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Return [T, S]: which positions of keys [S] the positions of queries [T] see."""
    distance = queries[:, None] - keys
    visible = distance >= 0
    return visible if window is None else visible & (distance < window)


def _buckets(entries: list[_Entry]) -> Iterable[list[_Entry]]:
    """Yield entries of similar length and disjoint rows together, so that little of a batch is padding."""
    bucket: list[_Entry] = []
    taken: set[int] = set()
    for entry in sorted(entries, key=lambda entry: -len(entry.slots)):
        longest = len(bucket[0].slots) if bucket else 0
        rows = set(entry.rows.tolist())
        if bucket and (longest - len(entry.slots) > max(0.4 * longest, 64) or rows & taken):
            yield bucket
            bucket, taken = [], set()
        bucket.append(entry)
        taken |= rows
    yield bucket


def _batched_gather(shift: int, entries: list[_Entry], kv_cache: KVCache) -> Gather:
    """Return one call for entries with equally many rows; shorter ones repeat a valid slot, masked."""
    num_rows, num_keys = len(entries[0].rows), len(entries[0].slots)
    slots = torch.stack([_padded(entry.slots, num_keys) for entry in entries])
    mask = None
    if not all(len(entry.slots) == num_keys and bool(entry.visible.all()) for entry in entries):
        visible = torch.zeros((len(entries), 1, num_rows, num_keys), dtype=torch.bool, device=slots.device)
        for index, entry in enumerate(entries):
            visible[index, 0, :, : len(entry.slots)] = entry.visible
        mask = _additive(visible)
    rows = torch.cat([entry.rows for entry in entries])
    call = Call(_as_slice(rows), num_rows, slice(0, num_keys), mask=mask)
    return Gather(shift, len(entries), num_keys, *_cache_indexes(slots, kv_cache), (call,))


def _padded(slots: Tensor, length: int) -> Tensor:
    return torch.cat((slots, slots[:1].expand(length - len(slots))))


def _additive(visible: Tensor) -> Tensor:
    return torch.zeros(visible.shape, dtype=torch.float32, device=visible.device).masked_fill(~visible, -torch.inf)


def _large_gather(plan: AttentionPlan, group: RunGroup, kv_cache: KVCache) -> list[Gather]:
    """Return calls without masks where positions allow it: the past of each span, then its causal square."""
    slots, positions = plan.keys(group.runs)
    keys: list[int] = positions.tolist()
    full: dict[tuple[int, int], list[int]] = defaultdict(list)  # stretch of keys -> rows that see all of it
    calls: list[Call] = []
    for queries, first_row in _spans(plan, group):
        past, end = bisect_left(keys, queries.start), bisect_left(keys, queries.stop)
        window = plan.sliding_window
        begin = 0 if window is None else bisect_left(keys, queries.start - window + 1)
        rows = range(first_row, first_row + len(queries))
        if begin == end:
            continue
        if (window is not None and queries[-1] - keys[begin] >= window) or (
            past < end and keys[end - 1] - keys[past] != end - 1 - past
        ):
            calls += _masked_call(plan, rows, positions[begin:end], begin)
            continue
        if begin < past:
            full[begin, past] += rows
        if past < end:
            above = keys[past] - queries.start
            square = rows[above : above + end - past]
            calls.append(Call(slice(square.start, square.stop), len(square), slice(past, end), causal=True))
            full[past, end] += rows[above + end - past :]
    for (begin, end), seeing in full.items():
        if seeing:
            calls.append(Call(_as_slice(torch.tensor(seeing, device=slots.device)), len(seeing), slice(begin, end)))
    return [Gather(group.shift, 1, len(keys), *_cache_indexes(slots[None], kv_cache), tuple(calls))] if calls else []


def _spans(plan: AttentionPlan, group: RunGroup) -> Iterable[tuple[range, int]]:
    """Yield the spans of all members with their first query row, in chunks where there is a window."""
    for member in group.members:
        row = plan.rows[member].start
        for span in plan.sequences[member].spans():
            size = len(span) if plan.sliding_window is None else WINDOW_ROWS
            for first in range(0, len(span), size):
                yield span[first : first + size], row + first
            row += len(span)


def _masked_call(plan: AttentionPlan, rows: range, positions: Tensor, begin: int) -> list[Call]:
    """Return a call over keys at `positions`, which start at index `begin`, for the rows that see any of them."""
    visible = _visible(plan.query_positions[rows.start : rows.stop], positions, plan.sliding_window)
    seeing = visible.any(dim=1)
    chosen = torch.arange(rows.start, rows.stop, device=positions.device)[seeing]
    if not len(chosen):
        return []
    keys = slice(begin, begin + len(positions))
    return [Call(_as_slice(chosen), len(chosen), keys, mask=_additive(visible[seeing][None, None]))]


def _as_slice(rows: Tensor) -> Rows:
    """Return adjacent ascending rows as a slice, which reads and writes without copies."""
    first, count = int(rows[0]), len(rows)
    adjacent = int(rows[-1]) == first + count - 1 and bool((rows.diff() == 1).all())
    return slice(first, first + count) if adjacent else rows


def _cache_indexes(slots: Tensor, kv_cache: KVCache) -> tuple[Tensor, Tensor | None]:
    """Return where K and V of slots [entries, S] lie in a layer seen as [-1, head_dim], and their scales as [-1, 1]."""
    size, heads = kv_cache.block_size, kv_cache.num_kv_heads
    blocks = (slots // size)[:, None]
    head = torch.arange(heads, device=slots.device)[:, None] * size
    part = torch.arange(2, device=slots.device)[:, None, None, None] * (heads * size)
    inside = (slots % size)[:, None] + head + part  # of a block
    index = (blocks * (kv_cache.data.stride(0) // kv_cache.head_dim) + inside).flatten()
    return index, None if kv_cache.scales is None else (blocks * kv_cache.scales.stride(0) + inside).flatten()


def _mark_fresh(gathers: list[Gather], num_rows: int) -> tuple[Gather, ...]:
    """Mark the calls that are the first to write their rows."""
    written = torch.zeros(num_rows, dtype=torch.bool)
    marked = []
    for gather in gathers:
        calls = []
        for call in gather.calls:
            fresh = not bool(written[call.rows].any())
            written[call.rows] = True
            calls.append(Call(call.rows, call.num_rows, call.keys, call.causal, call.mask, fresh))
        marked.append(Gather(gather.shift, gather.entries, gather.num_keys, gather.index, gather.scales, tuple(calls)))
    return tuple(marked)
