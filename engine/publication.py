"""What a request may give to the tree: up to which position, along which path, and what others can expect of it."""

from collections.abc import Sequence

from engine.ladder import shared_end
from engine.prompt import Segment, SegmentKind, block_keys
from engine.radix_tree import PathPart
from engine.request import Admission, Request

__all__ = ["common_end", "path_to", "publishable_end"]


def publishable_end(request: Request, admission: Admission, computed: int, block_size: int) -> int:
    """Find the position up to which blocks may be offered when `computed` are, without building any key."""
    segments, start = request.prompt.segments, 0
    computed = request.publishable(computed)
    end = min(computed, shared_end(segments, admission.placements, request.reuse, computed))
    for segment in segments:
        segment_end = start + len(segment.tokens)
        if segment.sealed:
            if segment_end > end:
                return start
            start = segment_end
        elif segment.kind is SegmentKind.TEXT and request.owner is None:
            return start + (min(end, segment_end) - start) // block_size * block_size
    if request.owner is None:
        return start
    return start + max(end - start, 0) // block_size * block_size


def path_to(request: Request, admission: Admission, end: int, block_size: int) -> list[PathPart]:
    """The path from the root to a prompt position that `publishable_end` found."""
    tables = {run.start: run for run in admission.runs}
    parts, start = [], 0
    for segment in request.segments:
        if start >= end:
            break
        keys = block_keys(segment.tokens[: end - start], block_size, sealed=segment.sealed)
        owner = None if segment.sealed else request.owner
        parts.append(PathPart(keys, tables[start].blocks[: len(keys)], owner, whole=segment.sealed))
        start += len(segment.tokens)
    return parts


def common_end(request: Request, segments: Sequence[Segment], other: Request, block_size: int) -> int:
    """Find up to which position a request can use what another, live one has yet to publish; 0 for nothing."""
    admission = other.held
    end = publishable_end(other, admission, admission.spans[-1][1], block_size)
    if other.namespace != request.namespace or not other.may_publish or end <= admission.published_to:
        return 0
    theirs = [(key, part.owner) for part in path_to(other, admission, end, block_size) for key in part.keys]
    ours = [
        (key, None if segment.sealed else request.owner)
        for segment in segments
        for key in block_keys(segment.tokens, block_size, sealed=segment.sealed)
    ]
    common = 0
    for (key, reader), (published, owner) in zip(ours, theirs, strict=False):
        if key != published or owner not in (None, reader):
            break
        common += len(key)
    return common
