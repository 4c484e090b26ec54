"""The events of an answer that is streamed."""

from typing import Annotated, Literal

from pydantic import Field

from rag.schemas.answers import Answer, Citation, Usage
from rag.schemas.base import Result
from rag.schemas.sampling import TokenLogprob
from rag.schemas.search import Source

__all__ = ["AnswerEvent", "CitationEvent", "DeltaEvent", "DoneEvent", "LogprobsEvent", "RetrievalEvent", "UsageEvent"]


class RetrievalEvent(Result):
    """First event of an answer: what was found. `warnings` tell what could not be used, and why."""

    type: Literal["retrieval"] = "retrieval"
    sources: list[Source]
    warnings: list[str] = Field(default_factory=list)


class DeltaEvent(Result):
    """More text of the answer; the texts joined are `Answer.answer`."""

    type: Literal["delta"] = "delta"
    text: str


class LogprobsEvent(Result):
    """Tokens that the model wrote, as it wrote them, where their log-probabilities were asked for."""

    type: Literal["logprobs"] = "logprobs"
    logprobs: list[TokenLogprob]


class CitationEvent(Result):
    """A citation whose marker was in the text so far."""

    type: Literal["citation"] = "citation"
    citation: Citation


class UsageEvent(Result):
    """What the answer took; comes before the last event."""

    type: Literal["usage"] = "usage"
    usage: Usage


class DoneEvent(Result):
    """Last event of an answer."""

    type: Literal["done"] = "done"
    answer: Answer


AnswerEvent = Annotated[
    RetrievalEvent | DeltaEvent | LogprobsEvent | CitationEvent | UsageEvent | DoneEvent, Field(discriminator="type")
]
