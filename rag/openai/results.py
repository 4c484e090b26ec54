"""What OpenAI's answers have in common."""

import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from rag.schemas import Answer, Cache, Citation, Source, Timings, TokenLogprob

__all__ = [
    "Evidence",
    "Logprob",
    "Logprobs",
    "PromptTokensDetails",
    "Result",
    "TopLogprob",
    "Usage",
    "finish_reason",
    "new_id",
    "now",
    "sparse",
]


def sparse(**more: Any) -> Any:
    """Make a field that is left out of the JSON where it is None: some clients take null for a value."""
    return Field(default=None, exclude_if=lambda value: value is None, **more)


class Result(BaseModel):
    """Something that is sent."""

    model_config = ConfigDict(frozen=True)


class PromptTokensDetails(Result):
    """Of the prompt's tokens, those whose KV was not computed for this answer."""

    cached_tokens: int


class Usage(Result):
    """Tokens used."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> "Usage":
        """Add up what answers to one prompt took; the prompt counts once."""
        first = answers[0].usage
        written = sum(answer.usage.completion_tokens for answer in answers)
        return cls(
            prompt_tokens=first.prompt_tokens,
            completion_tokens=written,
            total_tokens=first.prompt_tokens + written,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=first.cached_tokens),
        )

    @classmethod
    def total(cls, usages: "Iterable[Usage]") -> "Usage":
        """Add up what several prompts took."""
        every = list(usages)
        return cls(
            prompt_tokens=sum(usage.prompt_tokens for usage in every),
            completion_tokens=sum(usage.completion_tokens for usage in every),
            total_tokens=sum(usage.total_tokens for usage in every),
            prompt_tokens_details=PromptTokensDetails(
                cached_tokens=sum(usage.prompt_tokens_details.cached_tokens for usage in every)
            ),
        )


class Evidence(Result):
    """What an answer rests on, and what the cache did for it: as in the native `Answer`."""

    sources: list[Source]
    citations: list[Citation]
    warnings: list[str]
    cache: Cache
    timings_ms: Timings


class TopLogprob(Result):
    """A token that was likely."""

    token: str
    bytes: list[int] | None
    logprob: float


class Logprob(TopLogprob):
    """A token that was chosen, and those that were likeliest."""

    top_logprobs: list[TopLogprob]

    @classmethod
    def of(cls, item: TokenLogprob) -> "Logprob":
        """Convert a native one."""
        fields = item.model_dump()
        return cls(top_logprobs=fields.pop("top"), **fields)


class Logprobs(Result):
    """Of tokens as the model wrote them: a label of a passage is one here, and a number in the text."""

    content: list[Logprob]
    refusal: None = None


def finish_reason(answer: Answer) -> Literal["stop", "length"]:
    """Return why an answer ended."""
    return "length" if answer.finish_reason == "length" else "stop"


def new_id(prefix: str) -> str:
    """Return an id that nobody else has."""
    return f"{prefix}{uuid4().hex}"


def now() -> int:
    """Return the time, in seconds since 1970."""
    return int(time.time())
