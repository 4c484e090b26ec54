"""Requests that wait: first come, first served for each principal; between principals, the least served comes first.

A virtual token counter (Sheng et al. 2024, "Fairness in Serving Large Language Models", arXiv 2401.00588), in which
cached tokens cost less than computed ones. Knows requests and counts of tokens: neither blocks nor clocks.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain

from engine.request import Admission, Request, RequestState

__all__ = ["CACHED_COST", "COMPUTED_COST", "OUTPUT_COST", "FairQueue"]

COMPUTED_COST = 1.0  # of a prompt token
CACHED_COST = 0.1  # of one whose KV is there: it is read by every later token, and holds memory
OUTPUT_COST = 2.0  # of a sampled token, which takes a step of its own (the paper's weight)


class FairQueue:
    """A queue for each principal, and what each principal has been served since somebody last had to wait."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Request]] = {}  # of principals with a request that waits
        self._served: dict[str, float] = {}
        self._last = ""  # the principal whose request left the queue last

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def __iter__(self) -> Iterator[Request]:
        return chain.from_iterable(self._queues.values())

    @property
    def principals(self) -> Iterable[str]:
        """Those with a request that waits."""
        return self._queues.keys()

    def num_waiting(self, principal: str) -> int:
        """Return how many requests of a principal wait."""
        return len(self._queues.get(principal, ()))

    def served(self, principal: str) -> float:
        """Return what a principal has been served, in computed prompt tokens."""
        return self._served.get(principal, 0.0)

    def add(self, request: Request) -> None:
        """Put a request behind its principal's others.

        A principal that had none is not owed for the time in which it asked for nothing: it counts as served as much as
        the least served one that waits, or where none does, as the one whose request left last.
        """
        if request.principal not in self._queues:
            level = min((self.served(name) for name in self._queues), default=self.served(self._last))
            self._served[request.principal] = max(self.served(request.principal), level)
        self._queues.setdefault(request.principal, deque()).append(request)

    def put_back(self, request: Request) -> None:
        """Put a request that gave its blocks back before its principal's others."""
        self._queues.setdefault(request.principal, deque()).appendleft(request)

    def remove(self, request: Request) -> None:
        """Take a request out, wherever it stands."""
        queue = self._queues[request.principal]
        queue.remove(request)
        if not queue:
            del self._queues[request.principal]
            self._last = request.principal

    def first_of(self, principal: str) -> Request:
        """Return the first request of a principal that waits."""
        return self._queues[principal][0]

    def next_of(self, principal: str) -> Request | None:
        """Return the request that a principal's turn is for: its first, or what that one waits for.

        Another's request may be what it waits for; it then goes first whoever it belongs to. None where all that it
        waits for runs.
        """
        first = self.first_of(principal)
        if first.is_ready:
            return first
        return next((other for other in first.prerequisites if other.state is RequestState.WAITING), None)

    def charge_prompt(self, request: Request, admission: Admission) -> None:
        """Count what an admission gives: what is to be computed for it, and what is cached."""
        computed = admission.num_remaining_tokens
        cached = request.num_tokens - computed
        self._charge(request, COMPUTED_COST * computed + CACHED_COST * cached)

    def charge_output(self, request: Request) -> None:
        """Count what a request has sampled since it was last counted."""
        new = len(request.output_tokens) - request.num_charged_tokens
        request.num_charged_tokens += new
        self._charge(request, OUTPUT_COST * new)

    def forget_service(self) -> None:
        """Begin to count anew: nobody waits, and nobody is served."""
        self._served.clear()

    def _charge(self, request: Request, cost: float) -> None:
        self._served[request.principal] = self.served(request.principal) + cost
