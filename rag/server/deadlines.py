"""Until when an answer is waited for: as long as the client says, and no longer than the server allows."""

from dataclasses import replace
from time import perf_counter

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from rag.server.access import Access
from rag.server.problems import ProblemError, describe, problem_response

__all__ = ["HEADER", "Deadlines"]

HEADER = "X-Timeout-Seconds"


class Deadlines:
    """Gives every caller a deadline, counted from the arrival of the request.

    Args:
        app: what it wraps.
        max_seconds: what a client gets who does not say how long he waits, and at most.
    """

    def __init__(self, app: ASGIApp, max_seconds: float) -> None:
        self._app = app
        self._max_seconds = max_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] == "http":
            try:
                seconds = self._seconds(Headers(scope=scope).get(HEADER))
            except ProblemError as refusal:
                problem = describe(refusal, scope["state"]["request_id"])
                await problem_response(problem, path=scope["path"])(scope, receive, send)
                return
            access: Access = scope["state"]["access"]
            caller = replace(access.caller, deadline=perf_counter() + seconds)
            scope["state"]["access"] = replace(access, caller=caller)
        await self._app(scope, receive, send)

    def _seconds(self, value: str | None) -> float:
        if value is None:
            return self._max_seconds
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            raise ProblemError(
                422, "invalid-request", f"the header {HEADER} is {value!r}; send a number of seconds above 0, or none"
            )
        return min(seconds, self._max_seconds)
