"""Whose turn it is among the principals: who is served next, and who makes place for whom."""

from collections import Counter
from collections.abc import Collection, Sequence

from engine.fair_queue import FairQueue
from engine.request import Request

__all__ = ["Turns"]


class Turns:
    """Compares principals by what they were served, and by how many requests they have running.

    Args:
        waiting: knows who waits, and what everybody was served.
        running: the requests that run, the newest last; kept up to date by its owner.
    """

    def __init__(self, waiting: FairQueue, running: Sequence[Request]) -> None:
        self._waiting = waiting
        self._running = running

    def num_running(self, principal: str) -> int:
        """Count a principal's running requests, without those in the background."""
        return self._counts()[principal]

    def whose(self, prefilling: Collection[str], *, may_admit: bool) -> str | None:
        """Return the least served of the principals that prefill, and of those that wait if they may be admitted.

        Of those that have been served alike, the one with fewest requests that run comes first.
        """
        candidates = {*prefilling, *self._waiting.principals} if may_admit else prefilling
        if len(candidates) < 2:
            return next(iter(candidates), None)
        counts = self._counts()
        return min(candidates, key=lambda principal: (self._waiting.served(principal), counts[principal], principal))

    def must_spare(self, principal: str, decodes: Sequence[Request]) -> bool:
        """Tell whether a principal's prompt has to leave the answers beside it their pace.

        It need not where they all belong to others who have been served as much or more.
        """
        served = self._waiting.served(principal)
        return any(one.principal == principal or self._waiting.served(one.principal) < served for one in decodes)

    def who_yields_to(self, principal: str) -> Request | None:
        """Return the newest request of whoever has most of them running, so that nobody is sent to and fro.

        Nobody gives up the last one, nor a place that would be his again at once, because he has been served less; and
        what the other waits for does not yield to it.
        """
        served, counts = self._waiting.served, self._counts()
        awaited = self._waiting.first_of(principal).prerequisites
        candidates = [
            request
            for request in reversed(self._running)
            if counts[request.principal] > 1
            and served(request.principal) >= served(principal)
            and request not in awaited
        ]
        return max(candidates, key=lambda request: counts[request.principal], default=None)

    def _counts(self) -> Counter[str]:
        return Counter(request.principal for request in self._running if not request.background)
