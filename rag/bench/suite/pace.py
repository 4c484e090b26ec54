"""How long a run will still take: estimates of its experiments, scaled by what was seen so far."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic

__all__ = ["Pace", "RunEvent", "Watch"]

PRIOR_SECONDS = 30.0  # of work at the estimated speed, so that the first seconds do not decide


@dataclass(frozen=True, slots=True)
class RunEvent:
    """News of a run.

    Attributes:
        part: what is run: an experiment, or what comes before.
        doing: what is being done in it.
        done: share of the run, by time.
        left: seconds that it will take from now on.
        complete: whether the part is.
    """

    part: str
    doing: str
    done: float
    left: float
    complete: bool = False


Watch = Callable[[RunEvent], None]


class Pace:
    """Tells how far a run is.

    Args:
        estimates: seconds by part, on the reference machine, of all that is to be done.
        watch: told of it.
        clock: in seconds.
    """

    def __init__(self, estimates: Mapping[str, float], watch: Watch, clock: Callable[[], float] = monotonic) -> None:
        self._estimates = dict(estimates)
        self._done = dict.fromkeys(estimates, 0.0)
        self._watch, self._clock, self._began, self._before = watch, clock, clock(), 0.0

    @property
    def left(self) -> float:
        """Seconds that the run will take from now on."""
        work = sum(self._estimates[part] * share for part, share in self._done.items())
        scale = (self._clock() - self._began + PRIOR_SECONDS) / (work + PRIOR_SECONDS)
        return scale * (sum(self._estimates.values()) - work)

    def forget(self, part: str) -> None:
        """Let a part that is done say nothing about the speed of the others, which are work of another kind."""
        del self._estimates[part], self._done[part]
        self._before += self._clock() - self._began
        self._began = self._clock()

    def at(self, part: str, share: float, doing: str) -> None:
        """Tell that so much of a part is done, from 0 to 1; it never goes back."""
        self._done[part] = max(self._done[part], min(share, 1.0))
        left, spent = self.left, self._before + self._clock() - self._began
        done = spent / (spent + left) if spent + left else 1.0
        self._watch(RunEvent(part, doing, done, left, complete=share >= 1))

    def rescale(self, part: str, factor: float) -> None:
        """Change the estimate of a part that turns out smaller: engines that are not there."""
        self._estimates[part] *= factor
