"""What happens to every request: it gets an id, its body may not be too large, and a defect of ours is told as such."""

import logging
import re
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag.config import ServerSettings
from rag.server.problems import ProblemError, describe, problem_response

__all__ = ["BodyLimit", "RequestIds"]

logger = logging.getLogger(__name__)

UPLOADS = re.compile(r"/v1/collections/[^/]+/documents")


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

    Documents have a limit of their own: other bodies are parsed on the event loop, where a large one stops all others.

    Args:
        app: what it wraps.
        settings: with the limits.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit_of(scope)
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            problem = describe(self._too_large(limit), scope["state"]["request_id"])
            await problem_response(problem, {"Connection": "close"}, path=scope["path"])(scope, receive, send)
            return
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise self._too_large(limit)
            return message

        await self._app(scope, receive_limited, send)

    def _limit_of(self, scope: Scope) -> int:
        settings = self._settings
        is_upload = scope["method"] == "POST" and UPLOADS.fullmatch(scope["path"])
        return settings.max_body_bytes if is_upload else min(settings.max_json_bytes, settings.max_body_bytes)

    def _too_large(self, limit: int) -> ProblemError:
        name = "MAX_BODY_BYTES" if limit == self._settings.max_body_bytes else "MAX_JSON_BYTES"
        return ProblemError(
            413,
            "body-too-large",
            f"the body has more than {limit} bytes; send less at once, or raise the server's PREREAD_SERVER__{name}",
            headers={"Connection": "close"},
        )
