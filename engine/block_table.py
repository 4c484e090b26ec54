"""From placements to a block table: the runs of a request's KV and the spans that it has to compute.

Knows token positions and block ids; who else holds a block is the prefix cache's business.
"""

from collections.abc import Callable, Sequence

from engine.ladder import Placement
from engine.request import Admission, TableRun

__all__ = ["build_admission", "check_admission", "uncached"]

Allocate = Callable[[int], list[int]]


def build_admission(
    placements: Sequence[Placement], block_size: int, allocate: Allocate, *, sealed_end: bool
) -> Admission:
    """Lay out the block table; every segment begins at the start of a block of its own.

    Args:
        placements: one a segment.
        block_size: tokens a block.
        allocate: gives n blocks; there are enough.
        sealed_end: whether the last segment is never extended, so that sampled tokens need a run of their own.
    """
    runs: list[TableRun] = []
    spans: list[tuple[int, int]] = []
    for placement in placements:
        runs += _runs_of(placement, block_size, allocate)
        for start, end in uncached(placement, block_size):
            if spans and spans[-1][1] == start:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((start, end))
    if sealed_end:
        runs.append(TableRun(placements[-1].start + placements[-1].num_tokens, 0, []))
    return Admission(runs, spans, tuple(placements))


def uncached(placement: Placement, block_size: int) -> list[tuple[int, int]]:
    """The intervals of a segment that its placement leaves to compute."""
    start, end = placement.start, placement.start + placement.num_tokens
    reused_start = min(start + placement.first_block * block_size, end)
    reused_end = reused_start + placement.hit_tokens
    return [(low, high) for low, high in ((start, reused_start), (reused_end, end)) if low < high]


def check_admission(admission: Admission, name: str) -> None:
    """Assert that table and spans are ordered, whole and not ahead of what is computed."""
    position = 0
    for run in admission.runs:
        assert run.start == position, f"{name}: a run starts at {run.start}, not {position}"
        position = run.end
    for (start, end), (following, _) in zip(admission.spans, admission.spans[1:], strict=False):
        assert start < end < following, f"{name}: spans {admission.spans} are not ordered"
    assert admission.published_to <= admission.computed_end, (
        f"{name}: published to {admission.published_to}, computed to {admission.computed_end}"
    )


def _runs_of(placement: Placement, block_size: int, allocate: Allocate) -> list[TableRun]:
    """The runs of one segment: repaired head, reused blocks, then what is computed after them."""
    size, end = block_size, placement.start + placement.num_tokens
    head = min(placement.first_block * size, placement.num_tokens)
    reused = TableRun(placement.start + head, placement.hit_tokens, list(placement.blocks), placement.shift)
    runs = []
    if head:
        runs.append(TableRun(placement.start, head, allocate(placement.first_block)))
    if placement.shift == 0 and not head:
        reused.blocks += allocate(-(-placement.num_tokens // size) - len(reused.blocks))
        reused.num_tokens = placement.num_tokens
        return [reused]
    if reused.num_tokens:
        runs.append(reused)
    if reused.end < end:
        runs.append(TableRun(reused.end, end - reused.end, allocate(-(-(end - reused.end) // size))))
    return runs
