"""What `/v1/chat/completions` takes and gives."""

from typing import Annotated, Literal

from pydantic import Field

from rag.openai.fields import Ignored, ModelName, Refused, SamplingFields
from rag.openai.messages import Messages
from rag.openai.results import Evidence, Logprobs, Result, Usage, sparse
from rag.openai.retrieval_options import RetrievalOptions
from rag.schemas import Answer, Source
from rag.schemas.sampling import MAX_TOP_LOGPROBS, ResponseFormat

__all__ = [
    "Annotation",
    "ChatChoice",
    "ChatChunk",
    "ChatCompletion",
    "ChatDelta",
    "ChatMessage",
    "ChatRequest",
    "ChunkChoice",
    "UrlCitation",
    "annotations_of",
]

MAX_TOKENS = 1_000_000


class ChatRequest(SamplingFields):
    """A conversation to go on with.

    Attributes:
        messages: the last one is the user's, and asks.
        max_completion_tokens: length of an answer at most.
        max_tokens: the same under its former name.
        logprobs: tell the tokens and their log-probabilities.
        top_logprobs: and so many of the likeliest tokens'.
        response_format: what the answer has to be: any text, a JSON object, or JSON by a schema.
        preread: how the collection answers.
    """

    model: ModelName
    messages: Messages
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    response_format: ResponseFormat | None = None
    preread: RetrievalOptions | None = None
    store: Ignored = None
    parallel_tool_calls: Ignored = None
    reasoning_effort: Ignored = None
    verbosity: Ignored = None
    prediction: Ignored = None
    audio: Refused = None
    function_call: Refused = None
    functions: Refused = None
    modalities: Literal["text"] | Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    tool_choice: Refused = None
    tools: Refused = None
    web_search_options: Refused = None

    @property
    def most_tokens(self) -> int | None:
        """Length of an answer at most."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens are told besides the chosen one; None where not even that is."""
        return (self.top_logprobs or 0) if self.logprobs else None


class UrlCitation(Result):
    """A marker in the answer and the document that it stands for."""

    start_index: int
    end_index: int
    title: str
    url: str


class Annotation(Result):
    """What a part of the answer's text rests on."""

    type: Literal["url_citation"] = "url_citation"
    url_citation: UrlCitation


class ChatMessage(Result):
    """An answer; `preread` tells what it rests on, where it is from a collection."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None
    annotations: list[Annotation]
    preread: Evidence | None = sparse()


class ChatChoice(Result):
    """One of the answers."""

    index: int
    message: ChatMessage
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(Result):
    """Answers to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(Result):
    """What is new of an answer; annotations and `preread` come with its end."""

    role: Literal["assistant"] | None = sparse()
    content: str | None = sparse()
    annotations: list[Annotation] | None = sparse()
    preread: Evidence | None = sparse()


class ChunkChoice(Result):
    """What is new of one of the answers."""

    index: int
    delta: ChatDelta
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class ChatChunk(Result):
    """An event of a stream; the last one may tell the tokens used, without choices."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = sparse()


def annotations_of(answer: Answer) -> list[Annotation]:
    """Return an answer's citations."""
    sources: dict[int, Source] = {source.n: source for source in answer.sources}
    return [
        Annotation(
            url_citation=UrlCitation(
                start_index=citation.start,
                end_index=citation.end,
                title=sources[citation.source].title,
                url=sources[citation.source].uri,
            )
        )
        for citation in answer.citations
    ]
