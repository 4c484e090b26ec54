"""What happens to every request: it gets an id, its body may not be too large, and a defect of ours is told as such."""

import logging
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag.server.problems import ProblemError, describe, problem_response

__all__ = ["BodyLimit", "RequestIds"]

logger = logging.getLogger(__name__)


class RequestIds:
    """Gives every request an id, which the response carries and the log names when the request fails.

    Args:
        app: what it wraps.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            logger.debug("the client of request %s has gone", request_id)
        except Exception as error:
            problem = describe(error, request_id)
            if started:
                raise
            await problem_response(problem, path=scope["path"])(scope, receive, send_with_id)


class BodyLimit:
    """Refuses bodies above a limit: before reading where their length is declared, otherwise while they arrive.

    Args:
        app: what it wraps.
        max_bytes: the limit.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            problem = describe(self._too_large(), scope["state"]["request_id"])
            await problem_response(problem, {"Connection": "close"}, path=scope["path"])(scope, receive, send)
            return
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._too_large()
            return message

        await self._app(scope, receive_limited, send)

    def _too_large(self) -> ProblemError:
        return ProblemError(
            413,
            "body-too-large",
            f"the body has more than {self._max_bytes} bytes; send fewer documents at once, or raise the server's "
            "PREREAD_SERVER__MAX_BODY_BYTES",
            headers={"Connection": "close"},
        )
