"""Server-sent events of an answer."""

from collections.abc import AsyncIterator
from contextlib import suppress

from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from rag.schemas import AnswerEvent
from rag.server.feed import AnswerFeed, SilenceError, until_gone
from rag.server.problems import describe

__all__ = ["EventStream"]

PING = format_sse_event(comment="ping")
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # a proxy that collects events defeats them


class EventStream(EventSourceResponse):
    """Sends an answer's events; closes its feed however it ends.

    Args:
        feed: the answer from its second event on.
        first: its first event.
        ping_seconds: a comment is sent after so long a silence.
        request_id: named in the log where the answer fails.
    """

    def __init__(self, feed: AnswerFeed, first: AnswerEvent, *, ping_seconds: float, request_id: str) -> None:
        super().__init__(self._frames(first), headers=HEADERS)
        self._feed = feed
        self._ping_seconds = ping_seconds
        self._request_id = request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send the response until it ends or the client has gone, which is noticed even while nothing is sent."""
        try:
            with suppress(ClientDisconnect):
                await until_gone(receive, self.stream_response(send))
        finally:
            self._feed.close()

    async def _frames(self, first: AnswerEvent) -> AsyncIterator[bytes]:
        event: AnswerEvent | None = first
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
