"""Requests as every engine gets them: token ids, the same for all."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from blake3 import blake3

from engine.prompt import Prompt, Segment, SegmentKind

__all__ = ["BenchRequest", "RequestStream", "prompt_digest"]


def prompt_digest(tokens: Sequence[int]) -> str:
    """Return 16 hex digits that differ where token ids differ."""
    return blake3(" ".join(map(str, tokens)).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """A question on its way.

    Attributes:
        number: its place in the stream, from 0.
        time: when it comes, in seconds from the stream's start; 0 where its arrival depends on answers.
        prompt: template, passages in retrieval order, tail.
        output_tokens: how many tokens every engine has to give, whatever they are.
        conversation: name of the conversation that it is a turn of; empty where there is none.
        question: in words; empty where the text is made up.
        golds: texts each of which answers it; empty where nobody knows one.
        gold_rank: rank, from 1, of the first passage that holds a gold text; None where none does or nothing is known.
        retrieval_ms: that embedding and search took; None where nothing was searched.
    """

    number: int
    time: float
    prompt: Prompt
    output_tokens: int
    conversation: str = ""
    question: str = ""
    golds: tuple[str, ...] = ()
    gold_rank: int | None = None
    retrieval_ms: float | None = None


@dataclass(frozen=True)
class RequestStream:
    """Requests by ascending time.

    Attributes:
        requests: at least one.
        source: what the text is, in one line.
    """

    requests: tuple[BenchRequest, ...]
    source: str

    @property
    def template(self) -> Segment:
        """The template that all prompts begin with."""
        return self.requests[0].prompt.segments[0]

    @cached_property
    def passages(self) -> tuple[Segment, ...]:
        """Every distinct passage once, in the order in which they are first asked for."""
        segments = (segment for request in self.requests for segment in request.prompt.segments)
        return tuple({one.tokens: one for one in segments if one.kind is SegmentKind.PASSAGE}.values())

    @cached_property
    def digest(self) -> str:
        """16 hex digits of all that an engine is told: tokens, times, lengths, conversations."""
        lines = (
            f"{one.time!r} {one.output_tokens} {one.conversation} {prompt_digest(one.prompt.tokens)}"
            for one in self.requests
        )
        return blake3("\n".join(lines).encode()).hexdigest()[:16]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its answer."""
        return max(one.prompt.num_tokens + one.output_tokens for one in self.requests)
