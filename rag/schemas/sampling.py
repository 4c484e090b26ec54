"""How the tokens of an answer are chosen, and what form it has to have."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints

from rag.schemas.base import Request, Result

__all__ = [
    "MAX_BIASES",
    "MAX_STOPS",
    "MAX_TOP_LOGPROBS",
    "Bias",
    "JsonObjectFormat",
    "JsonSchemaFormat",
    "NamedSchema",
    "ResponseFormat",
    "Sampling",
    "Stop",
    "TextFormat",
    "TokenId",
    "TokenLogprob",
    "TopLogprob",
    "Turn",
]

MAX_STOPS = 16
MAX_BIASES = 1024
MAX_TOP_LOGPROBS = 20

Stop = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[str, StringConstraints(pattern=r"^\d{1,9}$")]


class TextFormat(Request):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Request):
    """A JSON object."""

    type: Literal["json_object"]


class NamedSchema(Request):
    """A JSON schema under a name; the answer keeps to it whether or not `strict` is set."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)

    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Request):
    """JSON that a schema accepts."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class Sampling(Request):
    """How tokens are chosen and when the answer ends.

    Attributes:
        temperature: 0 is greedy.
        top_k: sample among the k most likely tokens; 0 is all.
        top_p: sample among the fewest tokens whose probability reaches this sum.
        min_p: sample among tokens at least so many times as likely as the likeliest; 0 is all.
        seed: makes sampling repeatable.
        stop: the answer ends before the first of these strings, which are looked for in what the model writes.
        repetition_penalty: makes the tokens of prompt and answer less likely (above 1) or likelier (below).
        presence_penalty: taken from the logit of every token that the answer has already.
        frequency_penalty: the same, once for each time that the answer has it.
        logit_bias: added to the logits of these tokens, by id.
        logprobs: tell each token's log-probability, and so many of the likeliest tokens'.
        min_tokens: the answer does not end before it has so many.
        ignore_eos: go on after the model's end token.
        response_format: what the answer has to be: any text, a JSON object, or JSON by a schema.
    """

    temperature: float = Field(default=0.0, ge=0, le=100)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: list[Stop] = Field(fail_fast=True, default=[], max_length=MAX_STOPS)
    repetition_penalty: float = Field(default=1.0, gt=0, le=100)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    logit_bias: dict[TokenId, Bias] = Field(fail_fast=True, default={}, max_length=MAX_BIASES)
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    min_tokens: int = Field(default=0, ge=0, le=1_000_000)
    ignore_eos: bool = False
    response_format: ResponseFormat | None = None

    @property
    def is_structured(self) -> bool:
        """Whether the answer has to be JSON."""
        return self.response_format is not None and not isinstance(self.response_format, TextFormat)


class Turn(Request):
    """Something that was said earlier in a conversation."""

    role: Literal["user", "assistant"]
    content: str


class TopLogprob(Result):
    """A token that was likely; `bytes` is null where the token is a part of a character."""

    token: str
    bytes: list[int] | None
    logprob: float


class TokenLogprob(TopLogprob):
    """A token that was chosen, and those that were likeliest."""

    top: list[TopLogprob]
