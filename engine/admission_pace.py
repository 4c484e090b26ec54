"""How soon a place in the queue comes free. Knows moments and counts: neither requests nor a clock."""

from collections import deque

__all__ = ["AdmissionPace"]

REMEMBERED = 32
RETRY_SHARE = 4  # who comes back when a quarter of the queue has gone finds a place, and the engine still has work
LEAST_SECONDS, MOST_SECONDS = 1.0, 60.0


class AdmissionPace:
    """Learns from the last admissions how long waiting takes while the engine has work."""

    def __init__(self) -> None:
        self._moments: deque[float] = deque(maxlen=REMEMBERED)
        self._resting_since: float | None = None

    def note(self, moment: float) -> None:
        """A request has left the queue."""
        if self._resting_since is not None:
            rest, self._resting_since = moment - self._resting_since, None
            self._moments = deque((before + rest for before in self._moments), maxlen=REMEMBERED)
        self._moments.append(moment)

    def rest(self, moment: float) -> None:
        """Nothing waits or runs until the next request leaves the queue: that time tells of no wait."""
        self._resting_since = moment if self._resting_since is None else self._resting_since

    def seconds_until_place(self, waiting: int, now: float) -> float | None:
        """Estimate when somebody who finds so many waiting should come back; None before anything is known."""
        if not self._moments:
            return None
        now = now if self._resting_since is None else self._resting_since
        each = (now - self._moments[0]) / len(self._moments)
        return min(max(each * waiting / RETRY_SHARE, LEAST_SECONDS), MOST_SECONDS)
