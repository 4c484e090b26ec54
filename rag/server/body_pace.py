"""How slowly a body may arrive: whoever sends a byte now and then holds a place that others wait for."""

import asyncio
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag.server.problems import ProblemError

__all__ = ["BYTES_PER_SECOND", "BodyPace"]

BYTES_PER_SECOND = 32 * 1024  # in the long run


class BodyPace:
    """Refuses bodies that arrive too slowly; only the time counts in which the server waits for them.

    Args:
        app: what it wraps.
        patience_seconds: what a body may take besides a second for each `BYTES_PER_SECOND` that have come.
    """

    def __init__(self, app: ASGIApp, patience_seconds: float) -> None:
        self._app = app
        self._patience = patience_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        left, has_come = self._patience, False

        async def receive_in_time() -> Message:
            nonlocal left, has_come
            if has_come:  # what is waited for now is the client's leaving
                return await receive()
            began = perf_counter()
            try:
                async with asyncio.timeout(left):
                    message = await receive()
            except TimeoutError:
                raise self._too_slow() from None
            left += len(message.get("body", b"")) / BYTES_PER_SECOND - (perf_counter() - began)
            has_come = not message.get("more_body", False)
            return message

        await self._app(scope, receive_in_time, send)

    def _too_slow(self) -> ProblemError:
        return ProblemError(
            408,
            "body-too-slow",
            f"the body arrives with less than {BYTES_PER_SECOND} bytes a second, for more than {self._patience:g} s; "
            "send it again over a faster connection or in smaller parts, or raise the server's "
            "PREREAD_SERVER__BODY_SECONDS",
            headers={"Connection": "close"},
        )
