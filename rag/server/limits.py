"""How much a key may ask: questions a minute, and tokens a day.

A question is a request for an answer, a search or an embedding; it counts when it is let in, however it ends. Tokens
count when an answer has ended, so that answers under way may go beyond what is left. Who has no key, since there are
none or since the data directory is his own, has no limits.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import ceil
from time import monotonic

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag.server.access import Access
from rag.server.problems import ProblemError, describe, problem_response
from rag.server.state import ServerState

__all__ = ["Limits", "QuestionWindow", "Quota"]

QUESTIONS = frozenset(
    f"/v1/{name}"
    for name in ("answer", "search", "chat/completions", "completions", "responses", "embeddings", "rerank")
)
WINDOW_SECONDS = 60.0
DAY_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class Quota:
    """How much of something may be used, and what is left.

    Attributes:
        name: of what.
        limit: in a window.
        window: in seconds.
        left: of the limit, 0 or more.
        reset: seconds until there is more.
    """

    name: str
    limit: int
    window: int
    left: int
    reset: int


class QuestionWindow:
    """Counts a key's questions of the last minute, each by itself: no minute has more than the limit.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._asked: deque[float] = deque()

    def take(self, limit: int) -> tuple[bool, Quota]:
        """Count a question, unless there were `limit` of them; return whether it was counted, and what is left."""
        now = self._clock()
        while self._asked and self._asked[0] <= now - WINDOW_SECONDS:
            self._asked.popleft()
        allowed = len(self._asked) < limit
        if allowed:
            self._asked.append(now)
        left = max(0, limit - len(self._asked))
        first = self._asked[0] if self._asked else now
        return allowed, Quota("questions", limit, int(WINDOW_SECONDS), left, ceil(first + WINDOW_SECONDS - now))


class Limits:
    """Refuses questions of keys that have asked too many, and tells the others what is left.

    Args:
        app: what it wraps.
        state: has the limits of keys without their own, and the ledger.
    """

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._state = state
        self._windows: dict[str, QuestionWindow] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        is_question = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in QUESTIONS
        if not (is_question and scope["state"]["access"].key_id):
            await self._app(scope, receive, send)
            return
        quotas: list[Quota] = []
        try:
            self._take(scope["state"]["access"], quotas)
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

    def _take(self, access: Access, quotas: list[Quota]) -> None:
        """Count a question; what is left of each limit is added to `quotas`.

        Raises:
            ProblemError: 429 where a limit is reached.
        """
        settings = self._state.settings
        tokens = access.tokens_per_day or settings.tokens_per_day
        if tokens is not None:
            quotas.append(self._tokens(access.key_id, tokens))
            if not quotas[-1].left:
                raise _too_much(access, quotas[-1], "tokens", "a day (UTC)")
        questions = access.questions_per_minute or settings.questions_per_minute
        if questions is not None:
            window = self._windows.setdefault(access.key_id, QuestionWindow())
            allowed, quota = window.take(questions)
            quotas.append(quota)
            if not allowed:
                raise _too_much(access, quota, "questions", "a minute")

    def _tokens(self, key_id: str, limit: int) -> Quota:
        now = datetime.now(UTC)
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        used = self._state.service.components.ledger().tokens_since(key_id, midnight)
        reset = ceil((midnight + timedelta(days=1) - now).total_seconds())
        return Quota("tokens", limit, DAY_SECONDS, max(0, limit - used), reset)


def _too_much(access: Access, quota: Quota, what: str, period: str) -> ProblemError:
    return ProblemError(
        429,
        f"too-many-{what}",
        f"the key {access.name!r} has used its {quota.limit} {what} {period}; ask again in {quota.reset} s, or have an "
        "administrator make a key with a higher limit",
        headers={"Retry-After": str(quota.reset)},
    )


def _headers(quotas: list[Quota]) -> dict[str, str]:
    """Write quotas as headers (draft-ietf-httpapi-ratelimit-headers)."""
    if not quotas:
        return {}
    return {
        "RateLimit-Policy": ", ".join(f'"{quota.name}";q={quota.limit};w={quota.window}' for quota in quotas),
        "RateLimit": ", ".join(f'"{quota.name}";r={quota.left};t={quota.reset}' for quota in quotas),
    }
