"""Server-sent events of an answer, or of other work that tells of itself."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Generic, Protocol, Self, TypeVar

from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope, Send

from rag.keys import Scope as KeyScope
from rag.schemas import AnswerEvent, PrecomputeProgress
from rag.schemas.jobs import JobEvent
from rag.server.access import require_still
from rag.server.feed import EventFeed, SilenceError, until_gone
from rag.server.problems import Problem, describe

__all__ = ["EventStream", "Framing", "NamedFrames", "StreamEvent", "event_content"]

logger = logging.getLogger(__name__)

StreamEvent = AnswerEvent | PrecomputeProgress | JobEvent
T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

PING = format_sse_event(comment="ping")
CHECK_SECONDS = 2.0  # a stream that says nothing looks so often whether its key is still accepted
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # a proxy that collects events defeats them


def event_content(data: str = "") -> dict[str, Any]:
    """Describe a response of events for OpenAPI; `data` names the schema of their data."""
    content: dict[str, Any] = {"type": "string"}
    if data:
        content |= {"contentMediaType": "application/json", "contentSchema": {"$ref": f"#/components/schemas/{data}"}}
    event = {"type": "object", "properties": {"event": {"type": "string"}, "data": content}, "required": ["data"]}
    return {"text/event-stream": {"itemSchema": event}}


class Framing(Protocol[T_contra]):
    """How the events of a stream are written."""

    def event(self, event: T_contra) -> bytes:
        """Write an event."""

    def failure(self, problem: Problem) -> bytes:
        """Write the error that ends a stream."""

    def end(self) -> bytes:
        """Write what follows the last event of a stream that did not fail."""


class NamedFrames:
    """The native way: events named by their type, and errors as problem documents."""

    def event(self, event: StreamEvent) -> bytes:
        """Write an event."""
        return format_sse_event(event=event.type, data_str=event.model_dump_json())

    def failure(self, problem: Problem) -> bytes:
        """Write the error that ends a stream."""
        return format_sse_event(event="error", data_str=problem.model_dump_json(exclude_none=True))

    def end(self) -> bytes:
        """Write nothing: the last event says that it is the last."""
        return b""


class EventStream(EventSourceResponse, Generic[T]):
    """Sends events; closes their feed however it ends.

    Args:
        feed: the events from the second one on.
        first: the first event.
        framing: how they are written.
        ping_seconds: a comment is sent after so long a silence.
        send_seconds: a client that takes nothing for so long is let go.
        request_id: named in the log where the work fails.
        check: called before everything that is sent, and in long silences; what it raises ends the stream.
    """

    def __init__(
        self,
        feed: EventFeed[T],
        first: T,
        framing: Framing[T],
        *,
        ping_seconds: float,
        send_seconds: float,
        request_id: str,
        check: Callable[[], None],
    ) -> None:
        super().__init__(self._frames(first), headers=HEADERS)
        self._feed = feed
        self._framing = framing
        self._ping_seconds = ping_seconds
        self._send_seconds = send_seconds
        self._request_id = request_id
        self._check = check

    @classmethod
    async def begin(
        cls,
        feed: EventFeed[T],
        request: Request,
        framing: Framing[T],
        *,
        scope: KeyScope,
        collection: str | None,
    ) -> Self:
        """Wait for the first event, so that an error before it gets a status of its own.

        Args:
            feed: the events.
            request: that they answer.
            framing: how they are written.
            scope: what the request's key needs from the first event to the last: it may be revoked meanwhile.
            collection: on which; None is any.
        """
        try:
            first = await until_gone(request.receive, feed.next())
        except BaseException:
            feed.close()
            raise
        assert first is not None, "a stream has at least one event"
        state = request.app.state.preread
        return cls(
            feed,
            first,
            framing,
            ping_seconds=state.settings.ping_seconds,
            send_seconds=state.settings.send_seconds,
            request_id=request.state.request_id,
            check=partial(require_still, state.service.components.keys(), request.state.access, scope, collection),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send the response until it ends or the client has gone, which is noticed even while nothing is sent.

        One that takes nothing any more has gone, too: what waits for it must not fill the memory.
        """

        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self._send_seconds):
                    await send(message)
            except TimeoutError:
                logger.info("the client of request %s reads too slowly and is let go", self._request_id)
                raise ClientDisconnect from None

        try:
            with suppress(ClientDisconnect):
                await until_gone(receive, self.stream_response(send_in_time))
        finally:
            self._feed.close()

    async def _frames(self, first: T) -> AsyncIterator[bytes]:
        event: T | None = first
        try:
            while event is not None:
                self._check()
                yield self._framing.event(event)
                silence = 0.0
                while True:
                    patience = min(CHECK_SECONDS, self._ping_seconds - silence)
                    try:
                        event = await self._feed.next(patience)
                        break
                    except SilenceError:
                        self._check()
                        silence += patience
                    if silence >= self._ping_seconds:
                        silence = 0.0
                        yield PING
            yield self._framing.end()
        except Exception as error:  # noqa: BLE001 - the status is sent already: the stream tells it
            yield self._framing.failure(describe(error, self._request_id))
