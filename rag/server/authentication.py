"""Who asks: every request has a key where keys are on, or it goes no further.

Keys are on from the first one that was ever made, and where the settings say so. Until then everyone may do everything,
except make keys: whoever made the first one would lock the others out. That takes the token that the server keeps in
the data directory, which the `rag` command of the same user reads.
"""

import asyncio
import hmac
from time import monotonic

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from rag.caller import Caller
from rag.key_store import KeyStore
from rag.keys import Grants
from rag.server.access import EVERYTHING, Access, key_required
from rag.server.problems import ProblemError, describe, problem_response
from rag.server.state import ServerState

__all__ = ["SECURITY", "SECURITY_SCHEMES", "Authentication"]

SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key; needed once there is one."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same."},
}
SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {"header": []}, {}]

OPEN_PATHS = frozenset({"/", "/livez", "/healthz", "/readyz"})
METRICS = "/metrics"
USES_SECONDS = 60.0
HOW = "send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`; an administrator makes one with `rag keys create`"


class Authentication:
    """Finds out whose key a request has, and refuses those that need one and have none.

    Args:
        app: what it wraps.
        state: has the keys, the owner's token and the settings.
    """

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._state = state
        self._written = monotonic()
        self._writing: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id: str = scope["state"]["request_id"]
        try:
            scope["state"]["access"] = await self._access(scope["path"], _token(Headers(scope=scope)), request_id)
        except ProblemError as refusal:
            headers = {**(refusal.headers or {}), "Connection": "close"}
            await problem_response(describe(refusal, request_id), headers, path=scope["path"])(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _access(self, path: str, token: str, request_id: str) -> Access:
        """Return what a request may do.

        Raises:
            ProblemError: it needs a key.
        """
        components = self._state.service.components
        keys = components.keys.if_made
        if keys is None:
            keys = await asyncio.to_thread(components.keys)
        self._write_down(keys)
        owner = self._state.owner_token
        if owner and hmac.compare_digest(token.encode(), owner.encode()):
            return Access(caller=Caller(request_id=request_id), grants=EVERYTHING, is_proven=True)
        if not (keys.is_on or self._state.settings.require_keys):
            return Access(caller=Caller(request_id=request_id), grants=EVERYTHING)
        key = keys.authenticate(token) if token else None
        if key is not None:
            return Access(
                key_id=key.id,
                name=key.name,
                caller=Caller(principal=key.id, request_id=request_id),
                grants=key.grants,
                questions_per_minute=key.questions_per_minute,
                tokens_per_day=key.tokens_per_day,
                is_proven=True,
            )
        if path in OPEN_PATHS or (path == METRICS and self._state.settings.open_metrics):
            return Access(caller=Caller(request_id=request_id), grants=Grants())
        if token:
            detail = f"the key is wrong, has expired or was revoked; {HOW}"
            raise key_required(detail, error="invalid_token")
        raise key_required(f"this server needs a key; {HOW}")

    def _write_down(self, keys: KeyStore) -> None:
        """Have written now and then what the keys have noted, by a thread that may wait for the disk."""
        now = monotonic()
        if now - self._written >= USES_SECONDS and (self._writing is None or self._writing.done()):
            self._written = now
            self._writing = asyncio.create_task(asyncio.to_thread(keys.flush))


def _token(headers: Headers) -> str:
    """Return the key that a request presents; nothing where it has none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()
