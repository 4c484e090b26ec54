"""Server-sent events of an answer, or of other work that tells of itself."""

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Self

from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from rag.server.feed import EventFeed, SilenceError, StreamEvent, until_gone
from rag.server.problems import describe

__all__ = ["EventStream"]

PING = format_sse_event(comment="ping")
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # a proxy that collects events defeats them


class EventStream(EventSourceResponse):
    """Sends events; closes their feed however it ends.

    Args:
        feed: the events from the second one on.
        first: the first event.
        ping_seconds: a comment is sent after so long a silence.
        request_id: named in the log where the work fails.
    """

    def __init__(self, feed: EventFeed, first: StreamEvent, *, ping_seconds: float, request_id: str) -> None:
        super().__init__(self._frames(first), headers=HEADERS)
        self._feed = feed
        self._ping_seconds = ping_seconds
        self._request_id = request_id

    @classmethod
    async def begin(cls, feed: EventFeed, request: Request, *, ping_seconds: float) -> Self:
        """Wait for the first event, so that an error before it gets a status of its own."""
        try:
            first = await until_gone(request.receive, feed.next())
        except BaseException:
            feed.close()
            raise
        assert first is not None, "a stream has at least one event"
        return cls(feed, first, ping_seconds=ping_seconds, request_id=request.state.request_id)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send the response until it ends or the client has gone, which is noticed even while nothing is sent."""
        try:
            with suppress(ClientDisconnect):
                await until_gone(receive, self.stream_response(send))
        finally:
            self._feed.close()

    async def _frames(self, first: StreamEvent) -> AsyncIterator[bytes]:
        event: StreamEvent | None = first
        try:
            while event is not None:
                yield format_sse_event(event=event.type, data_str=event.model_dump_json())
                while True:
                    try:
                        event = await self._feed.next(self._ping_seconds)
                        break
                    except SilenceError:
                        yield PING
        except Exception as error:  # noqa: BLE001 - the status is sent already: the stream tells it
            problem = describe(error, self._request_id)
            yield format_sse_event(event="error", data_str=problem.model_dump_json(exclude_none=True))
