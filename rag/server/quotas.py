"""What a key has used of its quotas, and what it may still: questions a minute, and tokens a day.

Used by the event loop's thread alone.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from math import ceil
from time import monotonic

from rag.caller import Caller
from rag.config import ServerSettings
from rag.server.access import Access
from rag.server.problems import ProblemError
from rag.service import Service

__all__ = ["QuestionWindow", "Quota", "Quotas"]

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

    def take(self, limit: int, count: int = 1) -> tuple[bool, Quota]:
        """Count questions, unless they were more than `limit` then; return whether they count, and what is left."""
        now = self._clock()
        while self._asked and self._asked[0] <= now - WINDOW_SECONDS:
            self._asked.popleft()
        surplus = len(self._asked) + count - limit
        if surplus <= 0:
            self._asked.extend([now] * count)
        left = max(0, limit - len(self._asked))
        awaited = self._asked[min(max(surplus, 1), len(self._asked)) - 1] if self._asked else now
        reset = ceil(awaited + WINDOW_SECONDS - now)
        return surplus <= 0, Quota("questions", limit, int(WINDOW_SECONDS), left, reset)


class Quotas:
    """Counts what keys ask, and refuses what is too much. Who has no key has no limits.

    Args:
        service: has the ledger.
        settings: with the limits of keys without their own.
    """

    def __init__(self, service: Service, settings: ServerSettings) -> None:
        self._service = service
        self._settings = settings
        self._windows: dict[str, QuestionWindow] = {}
        self._reserved: dict[str, int] = {}  # tokens of answers under way, by key

    def take(self, access: Access, quotas: list[Quota]) -> None:
        """Count a question; what is left of each limit is added to `quotas`.

        Raises:
            ProblemError: 429 where a limit is reached.
        """
        limit = access.tokens_per_day or self._settings.tokens_per_day
        if limit is not None:
            quotas.append(self._tokens(access.key_id, limit))
            if not quotas[-1].left:
                raise _too_much(access, quotas[-1], "tokens", "a day (UTC)")
        self._count(access, 1, quotas)

    def take_more(self, access: Access, questions: int) -> None:
        """Count what a request asks besides its first question.

        Raises:
            ProblemError: 422 where no minute has room for them, 429 where this one has none.
        """
        limit = access.questions_per_minute or self._settings.questions_per_minute
        if access.key_id and limit is not None and questions + 1 > limit:
            raise ProblemError(
                422,
                "too-many-questions-at-once",
                f"the request asks for {questions + 1} answers, and the key {access.name!r} may have {limit} a minute; "
                "send fewer prompts at once, or have an administrator make a key with a higher limit",
            )
        if access.key_id and questions:
            self._count(access, questions, [])

    def reserving(self, access: Access, answers: int = 1) -> Caller:
        """Return who asks, for whom tokens are set aside when it is known what prompt and answer may come to.

        Args:
            access: of the request.
            answers: how many it wants, all to one prompt: the first does not begin where there are not enough for all.
        """
        to_come = answers

        def reserve(tokens: int) -> AbstractContextManager[None]:
            nonlocal to_come
            needed, to_come = tokens * to_come, max(to_come - 1, 1)
            return self.reserved(access, tokens, needed)

        return replace(access.caller, reserve=reserve)

    @contextmanager
    def reserved(self, access: Access, tokens: int, needed: int | None = None) -> Iterator[None]:
        """Set tokens aside that answers may come to use, until they have ended and the ledger has what they did use.

        Args:
            access: of the request.
            tokens: so many.
            needed: how many there have to be, with those that the request sets aside later.

        Raises:
            ProblemError: 422 where no day has so many, 429 where this one has not.
        """
        key_id, limit = access.key_id, access.tokens_per_day or self._settings.tokens_per_day
        if not key_id or limit is None:
            yield
            return
        needed = tokens if needed is None else needed
        quota = self._tokens(key_id, limit)
        if needed > limit:
            raise ProblemError(
                422,
                "too-many-tokens-at-once",
                f"prompts and answers may come to {needed} tokens, and the key {access.name!r} has {limit} a day; "
                "lower max_tokens, or send fewer prompts at once",
            )
        if needed > quota.left:
            raise ProblemError(
                429,
                "too-many-tokens",
                f"prompts and answers may come to {needed} tokens, and the key {access.name!r} has {quota.left} left; "
                f"lower max_tokens, or ask again in {quota.reset} s",
                headers={"Retry-After": str(quota.reset)},
            )
        self._reserved[key_id] = self._reserved.get(key_id, 0) + tokens
        try:
            yield
        finally:
            self._reserved[key_id] -= tokens

    def _count(self, access: Access, questions: int, quotas: list[Quota]) -> None:
        limit = access.questions_per_minute or self._settings.questions_per_minute
        if limit is None:
            return
        allowed, quota = self._windows.setdefault(access.key_id, QuestionWindow()).take(limit, questions)
        quotas.append(quota)
        if not allowed:
            raise _too_much(access, quota, "questions", "a minute")

    def _tokens(self, key_id: str, limit: int) -> Quota:
        now = datetime.now(UTC)
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        used = self._service.components.ledger().tokens_since(key_id, midnight) + self._reserved.get(key_id, 0)
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
