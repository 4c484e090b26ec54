"""One request: what it asks for, how far it is, and the blocks that it holds.

Knows token ids and block ids; sampling, text and tensors are elsewhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from engine.ladder import Placement
from engine.prompt import Prompt, Reuse, Segment, SegmentKind
from engine.radix_tree import Owner

__all__ = ["Admission", "FinishReason", "Request", "RequestState", "TableRun"]


class RequestState(StrEnum):
    """Where a request is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(slots=True)
class TableRun:
    """The blocks of contiguous prompt positions with one shift; its first token is at its first block's start.

    Attributes:
        start: prompt position of its first token.
        num_tokens: how many positions it covers, computed or not.
        blocks: append-only.
        shift: start minus the position at which its KV was (or will be) computed.
    """

    start: int
    num_tokens: int
    blocks: list[int]
    shift: int = 0

    @property
    def end(self) -> int:
        """The prompt position after its last token."""
        return self.start + self.num_tokens


@dataclass(slots=True)
class Admission:
    """What the prefix cache granted: the block table and what is left to compute.

    Attributes:
        runs: the block table, in prompt order; together they cover every position.
        spans: intervals `[start, end)` of prompt positions to compute, ordered and disjoint. The last one grows
            with each sampled token.
        placements: how each segment got its KV.
        num_computed_tokens: progress along the spans.
        published_to: the prompt position up to which its blocks were offered to the tree.
    """

    runs: list[TableRun]
    spans: list[tuple[int, int]]
    placements: tuple[Placement, ...]
    num_computed_tokens: int = 0
    published_to: int = 0

    @property
    def blocks(self) -> list[int]:
        """Every block it holds, in prompt order."""
        return [block for run in self.runs for block in run.blocks]

    @property
    def num_remaining_tokens(self) -> int:
        """How many tokens of the spans are still to compute."""
        return sum(end - start for start, end in self.spans) - self.num_computed_tokens

    def next_positions(self, n: int) -> list[range]:
        """Return the next n prompt positions to compute, as ranges in order."""
        return list(self._intervals(self.num_computed_tokens, self.num_computed_tokens + n))

    @property
    def computed_end(self) -> int:
        """The first prompt position whose KV does not exist yet."""
        remaining = next(self._intervals(self.num_computed_tokens, self.num_computed_tokens + 1), None)
        return self.spans[-1][1] if remaining is None else remaining.start

    def grow(self) -> None:
        """Add the position of a newly sampled token to what is to compute."""
        start, end = self.spans[-1]
        self.spans[-1] = (start, end + 1)

    def _intervals(self, done: int, until: int) -> Iterator[range]:
        """Yield the part [done, until) of the spans, counted along them, as prompt positions."""
        passed = 0
        for start, end in self.spans:
            low, high = max(done - passed, 0), min(until - passed, end - start)
            if low < high:
                yield range(start + low, start + high)
            passed += end - start


@dataclass(eq=False, slots=True)
class Request:
    """A prompt on its way to an answer.

    Attributes:
        id: unique in its engine.
        prompt: the segments as submitted.
        max_tokens: how many tokens to sample at most; 0 computes (and publishes) the prompt only.
        namespace: the tree it reads and publishes to.
        principal: whose share of the engine it takes.
        owner: the conversation (with its principal) whose private nodes it may use, or None.
        reuse: EXACT or CHUNK.
        repair: tokens at a shifted passage's head that chunk reuse computes in context; whole blocks.
        groups: sizes of consecutive passages of the prompt that may change places until it is first admitted.
        keeps_answer: whether a conversation keeps the answer's KV too; without, that may be computed with 8-bit
            weights, and the next turn computes it from the prompt that it is then part of.
        forced: the answer that it has to give, whatever the model says; None lets it answer.
        background: runs only while no other request does.
        prerequisites: requests that compute the canonical KV of its passages; it is admitted after them.
        may_publish: False once what it reads was to be forgotten: it must not come back.
        output_tokens: sampled so far; kept when it is preempted.
        admission: the blocks it holds while it runs.
        first_admission: the placements of its first admission, which the cache report tells of.
        num_charged_tokens: how many of the sampled tokens count as served to its principal.
        load_seconds: how long reading KV from the tier below took, for it.
    """

    id: int
    prompt: Prompt
    max_tokens: int
    reuse: Reuse = Reuse.EXACT
    namespace: str = ""
    owner: Owner = None
    repair: int = 0
    groups: tuple[int, ...] = ()
    keeps_answer: bool = True
    forced: tuple[int, ...] | None = None
    background: bool = False
    prerequisites: "tuple[Request, ...]" = ()
    may_publish: bool = True
    output_tokens: list[int] = field(default_factory=list)
    state: RequestState = RequestState.WAITING
    admission: Admission | None = None
    first_admission: tuple[Placement, ...] = ()
    num_preemptions: int = 0
    num_charged_tokens: int = 0
    principal: str = ""
    load_seconds: float = 0.0

    @property
    def is_ready(self) -> bool:
        """Whether every request that it waits for has ended."""
        return all(other.state is RequestState.FINISHED for other in self.prerequisites)

    @property
    def num_tokens(self) -> int:
        """Prompt and sampled tokens."""
        return self.prompt.num_tokens + len(self.output_tokens)

    @property
    def private_from(self) -> int | None:
        """The prompt position from which on its KV is never published; None where a conversation keeps all its own."""
        if self.owner is not None:
            return None if self.keeps_answer else self.prompt.num_tokens
        last = self.prompt.segments[-1]
        return self.prompt.num_tokens - (len(last.tokens) if last.kind is SegmentKind.TAIL else 0)

    def publishable(self, computed: int) -> int:
        """Return up to which position it may give its KV to the tree when it has computed so far."""
        return computed if self.private_from is None else min(computed, self.private_from)

    @property
    def tokens(self) -> list[int]:
        """Prompt and sampled token ids, in order of position."""
        return [*self.prompt.tokens, *self.output_tokens]

    @property
    def segments(self) -> list[Segment]:
        """The prompt's segments with the sampled tokens at the end: what an admission has to cover."""
        if not self.output_tokens:
            return list(self.prompt.segments)
        *head, last = self.prompt.segments
        if last.sealed:
            return [*head, last, Segment(tuple(self.output_tokens), SegmentKind.TAIL)]
        return [*head, Segment((*last.tokens, *self.output_tokens), last.kind, last.name)]

    @property
    def held(self) -> Admission:
        """The admission of a running request."""
        assert self.admission is not None, f"request {self.id} is {self.state} and holds no blocks"
        return self.admission
