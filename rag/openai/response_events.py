"""A response while it becomes: the objects that it consists of, and the events that tell of each step."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

from fastapi.sse import format_sse_event
from pydantic_core import to_json

from rag.openai.errors import error_body
from rag.openai.generation import Collected
from rag.openai.response_requests import ResponseRequest
from rag.openai.response_schemas import (
    FileCitation,
    FileSearchCall,
    IncompleteDetails,
    OutputMessage,
    OutputText,
    Response,
    ResponseInputDetails,
    ResponseUsage,
    SearchedFile,
)
from rag.openai.results import Logprob, new_id, now
from rag.schemas import Answer, AnswerEvent, DeltaEvent, DoneEvent, LogprobsEvent, RetrievalEvent, Source
from rag.server.problems import Problem

__all__ = ["Event", "ResponseDraft", "ResponseFrames"]

Event = dict[str, Any]  # its JSON; `type` names it


class ResponseDraft:
    """Puts a response together from the events of its answer.

    Args:
        body: what was asked.
        query: what passages are looked for by; None where none are.
    """

    def __init__(self, body: ResponseRequest, query: str | None) -> None:
        self._body = body
        self._query = query
        self._id, self._search_id, self._message_id = new_id("resp_"), new_id("fs_"), new_id("msg_")
        self._created = now()
        self._collected = Collected()
        self._sources: list[Source] = []
        self._number = -1

    async def events(self, answer: AsyncGenerator[AnswerEvent, None]) -> AsyncIterator[Event]:
        """Yield what a stream tells, the first of it when the answer has begun."""
        begun = False
        async for event in answer:
            self._collected.take(event)
            if not begun:
                begun = True
                for told in self._beginning(event):
                    yield told
            for told in self._news(event):
                yield told

    @property
    def response(self) -> Response:
        """The response, which is complete."""
        return self._response(self._collected.whole)

    @property
    def text(self) -> str:
        """The answer's text, which is complete."""
        return self._collected.whole.answer

    def take(self, event: AnswerEvent) -> None:
        """Take an event of the answer, where nobody is told of each step."""
        self._collected.take(event)
        if isinstance(event, RetrievalEvent):
            self._sources = event.sources

    def _beginning(self, event: AnswerEvent) -> Iterator[Event]:
        yield self._event("response.created", response=self._response(None))
        yield self._event("response.in_progress", response=self._response(None))
        if isinstance(event, RetrievalEvent):
            self._sources = event.sources
            place = {"output_index": 0, "item_id": self._search_id}
            yield self._event("response.output_item.added", output_index=0, item=self._search("in_progress"))
            for step in ("in_progress", "searching", "completed"):
                yield self._event(f"response.file_search_call.{step}", **place)
            yield self._event("response.output_item.done", output_index=0, item=self._search("completed"))
        index = self._message_index
        yield self._event("response.output_item.added", output_index=index, item=self._message("in_progress", None))
        yield self._event("response.content_part.added", **self._place, part=self._text_part(""))

    def _news(self, event: AnswerEvent) -> Iterator[Event]:
        if isinstance(event, DeltaEvent):
            yield self._event("response.output_text.delta", **self._place, delta=event.text, logprobs=[])
        elif isinstance(event, LogprobsEvent):
            logprobs = [Logprob.of(item) for item in event.logprobs]
            yield self._event("response.output_text.delta", **self._place, delta="", logprobs=logprobs)
        elif isinstance(event, DoneEvent):
            yield from self._end(event.answer)

    def _end(self, answer: Answer) -> Iterator[Event]:
        response = self._response(answer)
        message = response.output[-1]
        assert isinstance(message, OutputMessage), "the answer comes last"
        (part,) = message.content
        for number, annotation in enumerate(part.annotations):
            told = {"annotation_index": number, "annotation": annotation}
            yield self._event("response.output_text.annotation.added", **self._place, **told)
        yield self._event("response.output_text.done", **self._place, text=part.text, logprobs=part.logprobs)
        yield self._event("response.content_part.done", **self._place, part=part)
        yield self._event("response.output_item.done", output_index=self._message_index, item=message)
        yield self._event(f"response.{response.status}", response=response)

    @property
    def _message_index(self) -> int:
        return 0 if self._query is None else 1

    @property
    def _place(self) -> Event:
        return {"item_id": self._message_id, "output_index": self._message_index, "content_index": 0}

    def _event(self, name: str, **fields: Any) -> Event:
        self._number += 1
        return {"type": name, "sequence_number": self._number, **fields}

    def _search(self, status: Any) -> FileSearchCall:
        assert self._query is not None, "nothing was looked for"
        found = None
        if self._body.shows_passages and status == "completed":
            found = [
                SearchedFile(
                    file_id=source.document_id,
                    filename=_filename(source),
                    score=source.score,
                    text=source.text,
                    attributes={"title": source.title, "passage_id": str(source.passage_id)},
                )
                for source in self._sources
            ]
        return FileSearchCall(id=self._search_id, status=status, queries=[self._query], results=found)

    def _text_part(self, text: str, answer: Answer | None = None) -> OutputText:
        sources = {source.n: source for source in answer.sources} if answer else {}
        citations = [
            FileCitation(
                index=citation.start,
                file_id=sources[citation.source].document_id,
                filename=_filename(sources[citation.source]),
            )
            for citation in (answer.citations if answer else ())
        ]
        logprobs = [Logprob.of(item) for item in self._collected.logprobs] if answer else []
        return OutputText(text=text, annotations=citations, logprobs=logprobs)

    def _message(self, status: Any, answer: Answer | None) -> OutputMessage:
        content = [self._text_part(answer.answer, answer)] if answer else []
        evidence = self._collected.evidence if answer else None
        return OutputMessage(id=self._message_id, status=status, content=content, preread=evidence)

    def _response(self, answer: Answer | None) -> Response:
        """Return the response as it is with the whole answer, or at its begin."""
        body = self._body
        status: Any = "in_progress" if answer is None else "completed"
        if answer is not None and answer.finish_reason == "length":
            status = "incomplete"
        searched = [] if self._query is None or answer is None else [self._search("completed")]
        choice = body.tool_choice
        return Response(
            id=self._id,
            created_at=self._created,
            completed_at=now() if status == "completed" else None,
            status=status,
            incomplete_details=IncompleteDetails() if status == "incomplete" else None,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            metadata=body.metadata or {},
            model=body.model,
            output=[*searched, self._message(status, answer)] if answer else [],
            previous_response_id=body.previous_response_id,
            store=body.store is not False,
            temperature=body.sampling.temperature,
            text=_as_sent(body.text) if body.text and body.text.format else {"format": {"type": "text"}},
            tool_choice=_as_sent(choice) if choice is not None and not isinstance(choice, str) else choice or "auto",
            tools=[_as_sent(tool) for tool in body.tools or ()],
            top_logprobs=body.top_logprobs or 0,
            top_p=body.sampling.top_p,
            usage=_usage(answer) if answer else None,
        )


class ResponseFrames:
    """Writes events with their names, and errors as `error` events."""

    def __init__(self) -> None:
        self._number = -1

    def event(self, event: Event) -> bytes:
        """Write an event."""
        self._number = event["sequence_number"]
        return format_sse_event(event=event["type"], data_str=to_json(event).decode())

    def failure(self, problem: Problem) -> bytes:
        """Write the error that ends a stream."""
        error = error_body(problem).error
        told = {"type": "error", "sequence_number": self._number + 1}
        return format_sse_event(event="error", data_str=to_json(told | error.model_dump(exclude={"type"})).decode())

    def end(self) -> bytes:
        """Write nothing: the last event says that it is the last."""
        return b""


def _filename(source: Source) -> str:
    """Return the last part of a document's uri."""
    return source.uri.rstrip("/").rpartition("/")[2] or source.uri


def _as_sent(part: Any) -> dict[str, Any]:
    sent: dict[str, Any] = part.model_dump(exclude_none=True, by_alias=True)
    return sent


def _usage(answer: Answer) -> ResponseUsage:
    used = answer.usage
    return ResponseUsage(
        input_tokens=used.prompt_tokens,
        input_tokens_details=ResponseInputDetails(cached_tokens=used.cached_tokens),
        output_tokens=used.completion_tokens,
        total_tokens=used.prompt_tokens + used.completion_tokens,
    )
