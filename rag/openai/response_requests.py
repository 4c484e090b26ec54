"""What `/v1/responses` takes."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, StringConstraints, Tag, field_validator

from rag.openai.fields import Common, Ignored, ModelName, OpenAIRequest, Refused, StreamOptions
from rag.openai.retrieval_options import RetrievalOptions
from rag.schemas import Sampling
from rag.schemas.answers import MAX_TURNS
from rag.schemas.sampling import (
    MAX_TOP_LOGPROBS,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedSchema,
    ResponseFormat,
    TextFormat,
)
from retriever.errors import FilterError
from retriever.metadata import parse_filter, refuse_huge

__all__ = [
    "Comparison",
    "Compound",
    "FileSearchTool",
    "InputMessage",
    "InputText",
    "ResponseRequest",
    "SchemaFormat",
    "TextSettings",
    "ToolChoice",
    "UnreadItem",
]

MAX_TOKENS = 1_000_000
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
Metadata = Annotated[dict[str, MetadataValue], Field(fail_fast=True, max_length=16)]


class InputText(OpenAIRequest):
    """Text of a message."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # what was sent as output comes back with all its fields

    type: Literal["input_text", "output_text", "text"]
    text: str


class InputMessage(OpenAIRequest):
    """Something that was said; `developer` counts as `system`."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[InputText], Field(fail_fast=True)]
    id: Ignored = None
    status: Ignored = None
    phase: Ignored = None
    preread: Ignored = None

    @property
    def text(self) -> str:
        """What was said."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class UnreadItem(OpenAIRequest):
    """An item of an earlier response that says nothing more than its message does."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["file_search_call", "reasoning"]


def _item_kind(value: Any) -> str:
    kind = value.get("type", "message") if isinstance(value, dict) else getattr(value, "type", "message")
    return "message" if kind == "message" else "other"


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")] | Annotated[UnreadItem, Tag("other")], Discriminator(_item_kind)
]


class SchemaFormat(OpenAIRequest):
    """JSON that a schema accepts, as this route writes it."""

    type: Literal["json_schema"]
    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


TextForm = Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")]


class TextSettings(OpenAIRequest):
    """What form the answer has to have."""

    format: TextForm | None = None
    verbosity: Ignored = None

    @property
    def response_format(self) -> ResponseFormat | None:
        """The form as the other routes write it."""
        if not isinstance(self.format, SchemaFormat):
            return self.format
        named = NamedSchema.model_validate({"name": self.format.name, "schema": self.format.schema_})
        return JsonSchemaFormat(type="json_schema", json_schema=named)


class Comparison(OpenAIRequest):
    """A condition on one name of documents' metadata."""

    type: Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin"]
    key: str
    value: str | float | bool | Annotated[list[str | float], Field(fail_fast=True)]

    @property
    def where(self) -> dict[str, Any]:
        """The condition in the native form."""
        return {self.key: {self.type: self.value}}


class Compound(OpenAIRequest):
    """Conditions of which all, or one, must fit."""

    type: Literal["and", "or"]
    filters: Annotated[list["Comparison | Compound"], Field(fail_fast=True, min_length=1)]

    @property
    def where(self) -> dict[str, Any]:
        """The condition in the native form."""
        return {self.type: [condition.where for condition in self.filters]}


class FileSearchTool(OpenAIRequest):
    """Look for passages in a collection before answering.

    Attributes:
        vector_store_ids: the collection's name; exactly one.
        max_num_results: passages to retrieve.
        filters: a condition on the documents' metadata.
    """

    type: Literal["file_search"]
    vector_store_ids: Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=1)]
    max_num_results: int | None = Field(default=None, ge=1, le=50)
    filters: Comparison | Compound | None = None
    ranking_options: Refused = None

    @field_validator("filters", mode="before")
    @classmethod
    def _small(cls, filters: object) -> object:
        try:
            refuse_huge(filters if isinstance(filters, dict) else {})
        except FilterError as error:
            raise ValueError(str(error)) from error
        return filters

    @field_validator("filters", mode="after")
    @classmethod
    def _usable(cls, filters: Comparison | Compound | None) -> Comparison | Compound | None:
        try:
            if filters is not None:
                parse_filter(filters.where)
        except FilterError as error:
            raise ValueError(str(error)) from error
        return filters


class ToolChoice(OpenAIRequest):
    """The tool to use, which is used anyway."""

    type: Literal["file_search"]


class ResponseRequest(Common):
    """A question, or a conversation to go on with.

    Attributes:
        input: the question, or what was said; the last message is the user's.
        instructions: how to answer; not kept for the next response.
        previous_response_id: the response that this goes on from; known to the key that asked for it alone.
        store: keep the response for that, and for looking it up; the latest ones are kept while the server runs,
            but for one that is very large: its `store` is false.
        tools: `file_search` over one collection, for the bare model; `rag/<collection>` has its own.
        include: `file_search_call.results`, `message.output_text.logprobs`.
        text: what form the answer has to have.
        preread: how the collection answers.
    """

    model: ModelName
    input: str | Annotated[list[InputItem], Field(fail_fast=True, min_length=1, max_length=MAX_TURNS)]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_output_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    include: Annotated[list[str], Field(fail_fast=True)] | None = None
    text: TextSettings | None = None
    tools: Annotated[list[FileSearchTool], Field(fail_fast=True, max_length=1)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    metadata: Metadata | None = None
    preread: RetrievalOptions | None = None
    truncation: Literal["disabled"] | None = None
    parallel_tool_calls: Ignored = None
    max_tool_calls: Ignored = None
    reasoning: Ignored = None
    background: Refused = None
    background_options: Refused = None
    context_management: Refused = None
    conversation: Refused = None
    prompt: Refused = None

    @property
    def shows_logprobs(self) -> bool:
        """Whether tokens and their log-probabilities are told."""
        return self.top_logprobs is not None or "message.output_text.logprobs" in (self.include or ())

    @property
    def shows_passages(self) -> bool:
        """Whether the passages that were found are told with the search."""
        return "file_search_call.results" in (self.include or ())

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        given = {name: value for name in ("temperature", "top_p") if (value := getattr(self, name)) is not None}
        logprobs = (self.top_logprobs or 0) if self.shows_logprobs else None
        return Sampling(logprobs=logprobs, response_format=self.text.response_format if self.text else None, **given)
