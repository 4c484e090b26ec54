"""What `/v1/completions` takes and gives."""

from typing import Annotated, Literal

from pydantic import Field

from rag.openai.fields import Ignored, ModelName, Refused, SamplingFields
from rag.openai.results import Result, Usage, sparse
from rag.schemas.sampling import MAX_TOP_LOGPROBS

__all__ = ["Completion", "CompletionChoice", "CompletionLogprobs", "CompletionRequest", "Tokens"]

MAX_TOKENS = 1_000_000
MAX_PROMPTS = 64
DEFAULT_TOKENS = 16

Tokens = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(fail_fast=True, min_length=1)]
Texts = Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]
TokenLists = Annotated[list[Tokens], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS)]


class CompletionRequest(SamplingFields):
    """Prompts to go on after.

    Attributes:
        prompt: one or several, as text, in which control tokens are read, or as token ids.
        max_tokens: length of a completion at most; 16 by default.
        echo: begin each completion with its prompt.
        logprobs: tell the tokens, their log-probabilities, and those of so many of the likeliest.
    """

    model: ModelName
    prompt: str | Texts | Tokens | TokenLists
    max_tokens: int | None = Field(default=None, ge=0, le=MAX_TOKENS)
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    best_of: Ignored = None
    suffix: Refused = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or several."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        numbers = [item for item in self.prompt if isinstance(item, int)]
        return [numbers] if numbers else [item for item in self.prompt if not isinstance(item, int)]

    @property
    def most_tokens(self) -> int:
        """Length of a completion at most."""
        return DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens


class CompletionLogprobs(Result):
    """Tokens as the model wrote them; offsets count characters from the completion's begin."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Result):
    """One completion, or what is new of it; prompts' completions follow each other."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class Completion(Result):
    """Completions, or an event of a stream of them."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = sparse()
