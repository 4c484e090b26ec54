"""The highest rate at which an engine still answers in time.

First one client asks alone; then windows of requests come at rising rates, until too many of their first tokens take
longer than five times what they took alone; the rate between the last good window and the first bad one is bisected.
Every window has requests of its own, the next ones of the stream, so that no prompt comes twice; what an engine caches
lives through all of them. In a window of n requests a queue reaches the limit only where they come about n / (n - 5)
times too fast, for every engine alike: more requests a window bring the goodput nearer to what lasts.

Source of the limit: Jin et al., "RAGCache: Efficient Knowledge Caching for Retrieval-Augmented Generation", 2024.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean

from rag.bench.peers.errors import PeerError
from rag.bench.suite.asked import Asked
from rag.bench.suite.contestant import Contestant
from rag.bench.suite.experiment import ArrivalKind
from rag.bench.suite.load import AtTimes, ByClients, Limits, Window, close_window, run_window
from rag.bench.suite.player import Player
from rag.bench.suite.records import AnswerRecord
from rag.bench.suite.requests import BenchRequest
from rag.bench.suite.units import Course, Unit
from rag.errors import InvalidRequestError

__all__ = ["LIMIT", "PERCENTILE", "WINDOWS", "Trial", "next_rate", "run_goodput", "window_times"]

LIMIT = 5.0  # times the 95th percentile of one client alone
PERCENTILE = 95
FIRST = 0.6  # of the rate at which one client's answers follow each other
FACTOR = 2.0  # from one rate to the next, while it is not known between which two the limit lies
CLOSE = 1.2  # rates as near as this need no other between them
WINDOWS = 8  # with the one client's; the stream is divided into as many
USUAL = 5  # windows of a search, for the progress
NEVER = 1e9  # seconds; what an answer that does not count has taken


@dataclass(frozen=True, slots=True)
class Trial:
    """A rate, in requests a second, and whether it was kept up with."""

    rate: float
    passed: bool


def run_goodput(course: Course) -> None:
    """Measure a pass: a unit a window.

    Raises:
        InvalidRequestError: the workload's arrivals depend on answers, or it has too few requests.
    """
    if course.experiment.workload.arrivals.kind in (ArrivalKind.TURNS, ArrivalKind.CLOSED) or _size(course) < 2:
        raise InvalidRequestError(
            f"{course.experiment.name} needs arrivals that do not depend on answers and at least {2 * WINDOWS} requests"
        )
    contestants = course.lineup.of(course.experiment.contestants)
    turn = course.repeat % max(1, len(contestants))
    for place, contestant in enumerate((*contestants[turn:], *contestants[:turn])):
        _Search(course, contestant, place / len(contestants), 1 / len(contestants)).run()
    with course.unit():
        pass  # closes the pass


def next_rate(first: float, trials: Sequence[Trial]) -> float | None:
    """Return the rate to try next, or None when the limit is known well enough.

    Args:
        first: the rate to begin with.
        trials: so far.
    """
    if len(trials) >= WINDOWS - 1:
        return None
    good = max((one.rate for one in trials if one.passed), default=None)
    bad = min((one.rate for one in trials if not one.passed), default=None)
    if good is not None and bad is not None:
        return (good * bad) ** 0.5 if bad > CLOSE * good else None
    if good is not None:
        return good * FACTOR
    return first if bad is None else bad / FACTOR


def window_times(requests: Sequence[BenchRequest], place: int, size: int, rate: float) -> list[float]:
    """Return arrival times of one window, the gaps as in the stream, stretched to exactly this rate."""
    before = requests[place * size - 1].time if place else 0.0
    gaps = [one.time - before for one in requests[place * size : (place + 1) * size]]
    return [gap * size / rate / max(gaps[-1], 1e-9) for gap in gaps]


@dataclass(slots=True)
class _Search:
    """The search for one engine's rate: `begun` and `share` are where it lies in the pass."""

    course: Course
    contestant: Contestant
    begun: float
    share: float
    player: Player | None = None

    def run(self) -> None:
        """Measure the windows that are missing; those that are in the file decide as if they had just been run."""
        alone = self._window(0, None, None)
        times = [one for one in alone if one.status == "ok" and not one.warmup]
        if not times:
            return
        limit = LIMIT * _percentile(times)
        first = FIRST / mean(one.finished - one.arrival for one in times if one.finished is not None)
        trials: list[Trial] = []
        while (rate := next_rate(first, trials)) is not None and self.contestant.name in self.course.lineup:
            answers = self._window(len(trials) + 1, rate, limit)
            trials.append(Trial(rate, len(answers) == _size(self.course) and _percentile(answers) <= limit))

    def _window(self, step: int, rate: float | None, limit: float | None) -> list[AnswerRecord]:
        name = self.contestant.name
        speed = "one client" if rate is None else f"{rate:.2f} requests a second"
        self.course.tell(self.begun + self.share * min(step, USUAL) / (USUAL + 1), f"{name}, {speed}")
        if self.course.lacks(name, step):
            with self.course.unit(name, step) as unit:
                try:
                    self._measure(unit, step, rate, limit)
                except PeerError as error:
                    unit.records.append(self.course.lineup.drop(self.contestant, unit.name, error))
        return [one for one in self.course.records(name, step) if isinstance(one, AnswerRecord)]

    def _measure(self, unit: Unit, step: int, rate: float | None, limit: float | None) -> None:
        if self.player is None:
            self.player = Player.prepare(self.contestant, self.course.stream)
            if step:  # an interrupted search goes on: what was cached is cached again, and not reported
                self._drive(0, None, None)
                self.player.window(unit.name)
            unit.began = self.course.clock()
        window = self._drive(step, rate, limit)
        warmup = 0 if step else self.course.experiment.warmup
        close_window(self.course, unit, self.player, window, rate=rate, warmup=warmup)

    def _drive(self, step: int, rate: float | None, limit: float | None) -> Window:
        assert self.player is not None, "prepared before"
        course, size = self.course, _size(self.course)
        requests = course.stream.requests[step * size : (step + 1) * size]
        if rate is None or limit is None:
            return run_window(self.player, requests, ByClients(1), Limits(course.patience), course.clock)
        schedule = AtTimes(window_times(course.stream.requests, step, size, rate))
        limits = Limits(course.patience, schedule.longest, partial(_hopeless, size=size, limit=limit))
        return run_window(self.player, requests, schedule, limits, course.clock)


def _size(course: Course) -> int:
    return len(course.stream.requests) // WINDOWS


def _percentile(answers: Sequence[AnswerRecord]) -> float:
    import numpy as np

    return float(np.percentile([_ttft(one) for one in answers], PERCENTILE))


def _ttft(answer: AnswerRecord) -> float:
    return answer.first - answer.arrival if answer.status == "ok" and answer.first is not None else NEVER


def _hopeless(asked: Sequence[Asked], now: float, *, size: int, limit: float) -> bool:
    """Whether so many first tokens are late already that the percentile is, whatever comes."""
    late = sum((now if one.first is None else one.first) - one.arrival > limit for one in asked)
    return late >= size - int(PERCENTILE / 100 * (size - 1))
