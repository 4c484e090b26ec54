"""From segments to rungs: which cached blocks serve which part of a prompt (DESIGN section 4).

Reads the tree and changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from engine.prompt import Reuse, Segment, SegmentKind, block_keys
from engine.radix_tree import Node, Owner, RadixTree

__all__ = ["Outcome", "Placed", "Placement", "is_known", "place", "shared_end"]


class Outcome(StrEnum):
    """The rung on which a segment ended."""

    PATH = "path"
    CANONICAL = "canonical"
    SHIFTED = "shifted"
    COMPUTED = "computed"


@dataclass(frozen=True, slots=True)
class Placement:
    """How one segment gets its KV.

    Attributes:
        start: prompt position of the segment's first token.
        num_tokens: the segment's length.
        first_block: how many of its blocks are computed before the reused ones (the repaired head).
        blocks: the tree's blocks that serve it after those.
        hit_tokens: the tokens in those blocks.
        shift: prompt position minus the position at which those blocks were computed.
        outcome: the rung; `computed` where any token outside a repaired head is computed.
        from_disk: whether the blocks were filled from the disk for this request.
    """

    start: int
    num_tokens: int
    first_block: int = 0
    blocks: tuple[int, ...] = ()
    hit_tokens: int = 0
    shift: int = 0
    outcome: Outcome = Outcome.COMPUTED
    from_disk: bool = False


@dataclass(frozen=True, slots=True)
class Placed:
    """One placement a segment, and the tree nodes that they use."""

    placements: tuple[Placement, ...]
    nodes: tuple[Node, ...]


def place(
    segments: Sequence[Segment],
    tree: RadixTree,
    *,
    reuse: Reuse,
    owner: Owner = None,
    repair: int = 0,
    private_tails: RadixTree | None = None,
) -> Placed:
    """Climb the ladder: the longest exact path, then (chunk reuse) canonical KV at another position.

    The prompt's last token is always left to compute.

    Args:
        segments: the prompt's segments in order.
        tree: the namespace's tree.
        reuse: EXACT or CHUNK.
        owner: the conversation whose private nodes may be matched.
        repair: tokens at a shifted passage's head to compute in context; whole blocks.
        private_tails: what the owner's conversation has of tails over these very segments, where they are approximate.
    """
    assert repair % tree.block_size == 0, f"repair {repair} is not a multiple of block size {tree.block_size}"
    placements, nodes = _place_path(segments, tree, owner)
    if reuse is Reuse.CHUNK and segments[0].kind is SegmentKind.TEMPLATE:
        template = segments[0]
        for i, segment in enumerate(segments):
            if segment.kind is SegmentKind.PASSAGE and placements[i].outcome is Outcome.COMPUTED:
                placements[i], used = _place_shifted(placements[i], template, segment, tree, repair)
                nodes += used
        if private_tails is not None and shared_end(segments, placements, reuse) < placements[-1].start:
            placements[-1], used = _place_tail(placements[-1], segments[-1], private_tails)
            nodes += used
    return Placed(tuple(_leave_last_token(placements, tree.block_size)), tuple(nodes))


def _place_path(segments: Sequence[Segment], tree: RadixTree, owner: Owner) -> tuple[list[Placement], list[Node]]:
    """Rungs 0 and 1: the prompt's own path from the root."""
    keys = [block_keys(segment.tokens, tree.block_size, sealed=segment.sealed) for segment in segments]
    num_sealed = sum(len(part) for segment, part in zip(segments, keys, strict=True) if segment.sealed)
    match = tree.match([key for part in keys for key in part], owner, num_shared_keys=num_sealed)
    placements, start, used, passages = [], 0, 0, 0
    for segment, part in zip(segments, keys, strict=True):
        passages += segment.kind is SegmentKind.PASSAGE
        blocks = match.blocks[used : used + len(part)]
        hit = sum(len(key) for key in part[: len(blocks)])
        outcome = Outcome.COMPUTED
        if hit == len(segment.tokens):
            first_passage = segment.kind is SegmentKind.PASSAGE and passages == 1
            outcome = Outcome.CANONICAL if first_passage else Outcome.PATH
        placements.append(Placement(start, len(segment.tokens), blocks=blocks, hit_tokens=hit, outcome=outcome))
        start += len(segment.tokens)
        used += len(part)
    return placements, list(match.nodes)


def _place_shifted(
    placement: Placement, template: Segment, passage: Segment, tree: RadixTree, repair: int
) -> tuple[Placement, tuple[Node, ...]]:
    """Rung 2: the passage's canonical KV below the template, at the position where the prompt has it.

    Only where it serves more tokens than the exact path does already, which has no error.
    """
    size = tree.block_size
    head = block_keys(template.tokens, size, sealed=True)
    body = block_keys(passage.tokens, size, sealed=True)
    shift = placement.start - len(template.tokens)
    match = tree.match([*head, *body])
    known = len(match.blocks) == len(head) + len(body)
    if not known or shift == 0 or len(passage.tokens) - repair <= placement.hit_tokens:
        return placement, ()
    shifted = Placement(
        placement.start,
        placement.num_tokens,
        first_block=repair // size,
        blocks=match.blocks[len(head) + repair // size :],
        hit_tokens=len(passage.tokens) - repair,
        shift=shift,
        outcome=Outcome.SHIFTED,
    )
    return shifted, match.nodes


def is_known(tree: RadixTree, path: Sequence[Segment]) -> bool:
    """Tell whether the tree has the whole of these sealed segments, one after the other from the root."""
    keys = [key for segment in path for key in block_keys(segment.tokens, tree.block_size, sealed=True)]
    return len(tree.match(keys).blocks) == len(keys)


def shared_end(
    segments: Sequence[Segment], placements: Sequence[Placement], reuse: Reuse, end: int | None = None
) -> int:
    """Find the position up to which a request's KV, once computed, may be shared or owned as exact.

    It ends before the first shifted run. Chunk reuse also leaves out a passage that it computes after the first one
    (too short to be worth shifting, say): a new order of known passages writes nothing.

    Args:
        segments: of the prompt; there may be fewer placements or more.
        placements: one a segment.
        reuse: EXACT or CHUNK.
        end: what to return when nothing is in the way; the end of the last placement if None.
    """
    passages = 0
    for segment, placement in zip(segments, placements, strict=False):
        passages += segment.kind is SegmentKind.PASSAGE
        is_later = segment.kind is SegmentKind.PASSAGE and passages > 1
        if placement.shift or (reuse is Reuse.CHUNK and is_later and placement.outcome is Outcome.COMPUTED):
            return placement.start
    return placements[-1].start + placements[-1].num_tokens if end is None else end


def _place_tail(placement: Placement, tail: Segment, tree: RadixTree) -> tuple[Placement, tuple[Node, ...]]:
    """A conversation's own KV over approximate context, which serves nobody else and nothing else."""
    if tail.sealed:
        return placement, ()
    keys = block_keys(tail.tokens, tree.block_size, sealed=False)
    match = tree.match(keys)
    hit = len(match.blocks) * tree.block_size
    outcome = Outcome.PATH if hit == len(tail.tokens) else Outcome.COMPUTED
    return replace(placement, blocks=match.blocks, hit_tokens=hit, outcome=outcome), match.nodes


def _leave_last_token(placements: list[Placement], block_size: int) -> list[Placement]:
    """Give back the prompt's last block when it was found, since the last token's logits must be computed."""
    last = placements[-1]
    if last.first_block * block_size + last.hit_tokens < last.num_tokens:
        return placements
    if len(last.blocks) == 1:
        return [*placements[:-1], Placement(last.start, last.num_tokens)]
    dropped = last.num_tokens - (last.num_tokens - 1) // block_size * block_size
    trimmed = Placement(
        last.start,
        last.num_tokens,
        first_block=last.first_block,
        blocks=last.blocks[:-1],
        hit_tokens=last.hit_tokens - dropped,
        shift=last.shift,
    )
    return [*placements[:-1], trimmed]
