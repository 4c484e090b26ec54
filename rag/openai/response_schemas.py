"""What `/v1/responses` gives."""

from typing import Any, Literal

from rag.openai.results import Evidence, Logprob, Result, sparse

__all__ = [
    "FileCitation",
    "FileSearchCall",
    "IncompleteDetails",
    "OutputMessage",
    "OutputText",
    "Response",
    "ResponseError",
    "ResponseInputDetails",
    "ResponseOutputDetails",
    "ResponseUsage",
    "SearchedFile",
]


class FileCitation(Result):
    """A document that the text rests on, and where in the text its marker stands."""

    type: Literal["file_citation"] = "file_citation"
    index: int
    file_id: str
    filename: str


class OutputText(Result):
    """The text of an answer."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[FileCitation]
    logprobs: list[Logprob]


class OutputMessage(Result):
    """An answer; `preread` tells what it rests on, where it is from a collection."""

    type: Literal["message"] = "message"
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]
    preread: Evidence | None = sparse()


class SearchedFile(Result):
    """A passage that was found."""

    file_id: str
    filename: str
    score: float
    text: str
    attributes: dict[str, str | float | bool]


class FileSearchCall(Result):
    """A search for passages."""

    type: Literal["file_search_call"] = "file_search_call"
    id: str
    status: Literal["in_progress", "completed"]
    queries: list[str]
    results: list[SearchedFile] | None


OutputItem = FileSearchCall | OutputMessage


class ResponseInputDetails(Result):
    """Of the prompt's tokens, those whose KV was not computed for this answer; nothing is charged for writing any."""

    cached_tokens: int
    cache_write_tokens: Literal[0] = 0


class ResponseOutputDetails(Result):
    """Of the answer's tokens, those that nobody sees: none."""

    reasoning_tokens: Literal[0] = 0


class ResponseUsage(Result):
    """Tokens used."""

    input_tokens: int
    input_tokens_details: ResponseInputDetails
    output_tokens: int
    output_tokens_details: ResponseOutputDetails = ResponseOutputDetails()
    total_tokens: int


class ResponseError(Result):
    """Why a response failed."""

    code: str
    message: str


class IncompleteDetails(Result):
    """Why a response is not complete."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class Response(Result):
    """A response as it is, or as it becomes."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete"]
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: Literal[False] = False
    previous_response_id: str | None
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None
