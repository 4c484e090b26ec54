"""What is told of every HTTP request: to the log, to the metrics, to what traces it."""

import logging
from contextlib import nullcontext
from contextvars import Token
from time import perf_counter
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag.server.problems import CLIENT_GONE
from rag.telemetry.logs import FIELDS, request_id

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rag.server.state import ServerState
    from rag.telemetry.telemetry import Telemetry

__all__ = ["RequestLog"]

logger = logging.getLogger(__name__)

POLLED = frozenset({"/healthz", "/livez", "/metrics", "/readyz"})  # every few seconds: worth no line
NO_ROUTE = "none"  # a path that there is not would be a label of the client's choice


class RequestLog:
    """Tells of every request when it has ended; the log names its id until then.

    Args:
        app: what it wraps.
        state: has the telemetry.
    """

    def __init__(self, app: ASGIApp, state: "ServerState") -> None:
        self._app = app
        self._components = state.service.components

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = perf_counter(), 500
        telemetry = self._components.telemetry.if_made
        named: Token[str] = request_id.set(scope["state"]["request_id"])

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        if telemetry:
            telemetry.http.in_progress.inc()
        try:
            with _traced(telemetry, scope):
                await self._app(scope, receive, send_noting)
        except ClientDisconnect:
            status = CLIENT_GONE
            raise
        finally:
            self._tell(telemetry, scope, status, perf_counter() - started)
            request_id.reset(named)

    def _tell(self, telemetry: "Telemetry | None", scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path_format", NO_ROUTE)
        if telemetry:
            telemetry.http.in_progress.dec()
            telemetry.http.observe(route, scope["method"], status, seconds)
        level = logging.DEBUG if route in POLLED else logging.INFO
        if logger.isEnabledFor(level):
            fields = {"method": scope["method"], "route": route, "status": status, "ms": round(1e3 * seconds, 2)}
            logger.log(level, "request", extra={FIELDS: fields})


def _traced(telemetry: "Telemetry | None", scope: Scope) -> "AbstractContextManager[None]":
    """Make what is recorded meanwhile belong to the client's trace."""
    if telemetry is None or telemetry.tracing is None:
        return nullcontext()
    return telemetry.tracing.belonging_to(Headers(scope=scope))
