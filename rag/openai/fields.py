"""What OpenAI's requests have in common: fields that are used, that are taken and not used, and that are refused."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from rag.schemas.base import Request
from rag.schemas.sampling import MAX_BIASES, MAX_STOPS, Bias, ResponseFormat, Sampling, Stop, TokenId

__all__ = [
    "ONE_OR_SEVERAL",
    "Common",
    "Ignored",
    "ModelName",
    "OpenAIRequest",
    "Refused",
    "SamplingFields",
    "StreamOptions",
    "as_list",
]

NOTHING: tuple[Any, ...] = (None, False, "", "none", "auto", "disabled", [], {})
SEEDS = 2**63


def _refuse(value: Any, info: ValidationInfo) -> None:
    """Accept only what asks for nothing."""
    if value not in NOTHING:
        raise ValueError(f"this server has no {info.field_name}; leave it out")


def as_list(value: Any) -> Any:
    """Take a text for a list of one."""
    return [value] if isinstance(value, str) else value


ONE_OR_SEVERAL = BeforeValidator(as_list, json_schema_input_type=str | list[str])
ModelName = Annotated[str, Field(min_length=1, max_length=500, description="One of those that `/v1/models` lists.")]
Ignored = Annotated[Any, Field(description="Taken, and not used.")]
Refused = Annotated[Any, AfterValidator(_refuse), Field(description="Refused unless it asks for nothing.")]


class OpenAIRequest(Request):
    """A request; fields that OpenAI's API does not have are refused, as it does, and so are those left unsaid here."""


class StreamOptions(OpenAIRequest):
    """What a stream tells besides text.

    Attributes:
        include_usage: send a last chunk without choices that tells the tokens used.
        include_obfuscation: taken, and not used.
    """

    include_usage: bool | None = None
    include_obfuscation: Ignored = None


class Common(OpenAIRequest):
    """Fields of every request that makes text, whose presence changes nothing here."""

    user: Ignored = None
    metadata: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    moderation: Refused = None


class SamplingFields(Common):
    """How tokens are chosen: OpenAI's fields and some of vLLM's; the rest of them: see the native `Sampling`.

    Attributes:
        temperature: 0, the default, is greedy.
        seed: makes sampling repeatable.
        n: how many answers.
    """

    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = None
    stop: Annotated[list[Stop], Field(fail_fast=True), ONE_OR_SEVERAL, Field(max_length=MAX_STOPS)] | None = None
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    min_tokens: int | None = Field(default=None, ge=0, le=1_000_000)
    ignore_eos: bool | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Field(fail_fast=True, max_length=MAX_BIASES)] | None = None
    n: int | None = Field(default=None, ge=1, le=16)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def num_answers(self) -> int:
        """How many answers are asked for."""
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the tokens used."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self, index: int, *, logprobs: int | None, response_format: ResponseFormat | None) -> Sampling:
        """Return how the tokens of an answer are chosen; each of several has a seed of its own."""
        names = (
            "temperature", "top_p", "min_p", "stop", "repetition_penalty", "presence_penalty", "frequency_penalty",
            "logit_bias", "min_tokens", "ignore_eos",
        )  # fmt: skip
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        seed = None if self.seed is None else (self.seed + index) % SEEDS
        top_k = max(self.top_k or 0, 0)  # -1 is vLLM's "all"
        return Sampling(seed=seed, top_k=top_k, logprobs=logprobs, response_format=response_format, **given)
