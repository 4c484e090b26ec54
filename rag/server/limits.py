"""How much a key may ask: questions a minute, and tokens a day.

A question is a request for an answer, a search, an embedding, or passages to be read ahead; it counts when it is let
in, however it ends. A request for several answers counts as many times. What prompt and answer may come to is set aside
of the day's tokens until the answer has ended, and then what they did come to counts: no answer begins that the day has
no tokens for. Who has no key, since there are none or since the data directory is his own, has no limits.
"""

import re

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag.server.problems import ProblemError, describe, problem_response
from rag.server.quotas import Quota
from rag.server.state import ServerState

__all__ = ["Limits"]

OPENAI = ("chat/completions", "completions", "responses", "embeddings", "rerank")
QUESTIONS = frozenset(f"/v1/{name}" for name in ("answer", "search", *OPENAI, "cache/pin", "cache/warm"))
PRECOMPUTE = re.compile(r"/v1/collections/[^/]+/precompute")


class Limits:
    """Refuses questions of keys that have asked too many, and tells the others what is left.

    Args:
        app: what it wraps.
        state: has the quotas.
    """

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if not (_is_question(scope) and scope["state"]["access"].key_id):
            await self._app(scope, receive, send)
            return
        quotas: list[Quota] = []
        try:
            self._state.quotas.take(scope["state"]["access"], quotas)
        except ProblemError as refusal:
            problem = describe(refusal, scope["state"]["request_id"])
            headers = {**(refusal.headers or {}), **_headers(quotas), "Connection": "close"}
            await problem_response(problem, headers, path=scope["path"])(scope, receive, send)
            return

        async def send_with_quotas(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_headers(quotas))
            await send(message)

        await self._app(scope, receive, send_with_quotas if quotas else send)


def _is_question(scope: Scope) -> bool:
    if scope["type"] != "http":
        return False
    path = scope["path"]
    return (scope["method"] == "POST" and path in QUESTIONS) or PRECOMPUTE.fullmatch(path) is not None


def _headers(quotas: list[Quota]) -> dict[str, str]:
    """Write quotas as headers (draft-ietf-httpapi-ratelimit-headers)."""
    if not quotas:
        return {}
    return {
        "RateLimit-Policy": ", ".join(f'"{quota.name}";q={quota.limit};w={quota.window}' for quota in quotas),
        "RateLimit": ", ".join(f'"{quota.name}";r={quota.left};t={quota.reset}' for quota in quotas),
    }
