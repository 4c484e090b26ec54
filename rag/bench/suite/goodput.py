"""The highest rate at which an engine still answers in time.

First one client asks alone, to fill the cache; then it asks once more, and what its first tokens took then sets the
limit: an engine that caches gets none that is made of its first misses. Then windows of requests come at rising rates,
until too many of their first tokens take longer than five times that; the rate between the last good window and the
first bad one is bisected. Every window has requests of its own, the next ones of the stream, so that no prompt comes
twice, and all have the same gaps between them, stretched to the rate, so that all engines and rates meet equal bursts.
What an engine caches lives through all of its windows; hence a search is measured whole, and anew where it was
interrupted. In a window of n requests a queue reaches the limit only where they come about n / (n - 5) times too fast,
for every engine alike: more requests a window bring the goodput nearer to what lasts.

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
WINDOWS = 8  # with the two of one client; the stream is divided into as many
USUAL = 6  # windows of a search, for the progress
NEVER = 1e9  # seconds; what an answer that does not count has taken


@dataclass(frozen=True, slots=True)
class Trial:
    """A rate, in requests a second, and whether it was kept up with."""

    rate: float
    passed: bool


def run_goodput(course: Course) -> None:
    """Measure a pass: an engine's whole search is written at once, a unit a window within it.

    Raises:
        InvalidRequestError: the workload's arrivals depend on answers, or it has too few requests.
    """
    if course.experiment.workload.arrivals.kind in (ArrivalKind.TURNS, ArrivalKind.CLOSED) or _size(course) < 2:
        raise InvalidRequestError(
            f"{course.experiment.name} needs arrivals that do not depend on answers and at least {2 * WINDOWS} requests"
        )
    contestants = course.lineup.in_turn(course.experiment.contestants, course.repeat)
    for place, contestant in enumerate(contestants):
        if course.lacks(contestant.name):
            _search(course, contestant, place / len(contestants), 1 / len(contestants))
    with course.unit():
        pass  # closes the pass


def next_rate(first: float, trials: Sequence[Trial]) -> float | None:
    """Return the rate to try next, or None when the limit is known well enough.

    Args:
        first: the rate to begin with.
        trials: so far.
    """
    if len(trials) >= WINDOWS - 2:
        return None
    good = max((one.rate for one in trials if one.passed), default=None)
    bad = min((one.rate for one in trials if not one.passed), default=None)
    if good is not None and bad is not None:
        return (good * bad) ** 0.5 if bad > CLOSE * good else None
    if good is not None:
        return good * FACTOR
    return first if bad is None else bad / FACTOR


def window_times(requests: Sequence[BenchRequest], size: int, rate: float) -> list[float]:
    """Return arrival times of a window: the gaps of the stream's first requests, stretched to exactly this rate."""
    times = [one.time for one in requests[:size]]
    return [time * size / rate / max(times[-1], 1e-9) for time in times]


def _search(course: Course, contestant: Contestant, begun: float, share: float) -> None:
    """Search one engine's rate; `begun` and `share` are where that lies in the pass."""
    with course.unit(contestant.name) as unit:
        try:
            player = Player.prepare(contestant, course.stream)
        except PeerError as error:
            unit.records.append(course.lineup.drop(contestant, unit.name, error))
            return
        unit.began = course.clock()
        _Search(course, unit, player, begun, share).run()


@dataclass(slots=True)
class _Search:
    """The search for one engine's rate.

    Attributes:
        course: the pass.
        unit: the whole search. The answers that filled the cache are its own, and come first: a search that a crash
            cut short on its way into the file begins with a line that does not count.
        player: the engine.
        begun: where the search begins in the pass.
        share: of the pass.
        place: of the next window in the stream.
    """

    course: Course
    unit: Unit
    player: Player
    begun: float
    share: float
    place: int = 0

    def run(self) -> None:
        """Fill the cache, find the limit, then try rates."""
        name = self.player.contestant.name
        filled = self._drive(None, None)
        close_window(self.course, self.unit, self.player, filled, rate=None, warmup=_size(self.course))
        if name not in self.course.lineup:
            return
        alone = self._window(0, None, None)
        times = [one for one in alone if one.status == "ok"]
        if not times:
            return
        limit = LIMIT * _percentile(times)
        first = FIRST / mean(one.finished - one.arrival for one in times if one.finished is not None)
        trials: list[Trial] = []
        while (rate := next_rate(first, trials)) is not None and name in self.course.lineup:
            answers = self._window(len(trials) + 1, rate, limit)
            trials.append(Trial(rate, len(answers) == _size(self.course) and _percentile(answers) <= limit))

    def _window(self, step: int, rate: float | None, limit: float | None) -> list[AnswerRecord]:
        with self.course.unit(self.player.contestant.name, step, within=self.unit) as unit:
            window = self._drive(rate, limit)
            close_window(self.course, unit, self.player, window, rate=rate, warmup=0)
        return [one for one in unit.records if isinstance(one, AnswerRecord)]

    def _drive(self, rate: float | None, limit: float | None) -> Window:
        course, size = self.course, _size(self.course)
        speed = "one client" if rate is None else f"{rate:.2f} requests a second"
        share = min(self.place, USUAL) / (USUAL + 1)
        course.tell(self.begun + self.share * share, f"{self.player.contestant.name}, {speed}")
        requests = course.stream.requests[self.place * size : (self.place + 1) * size]
        self.place += 1
        if rate is None or limit is None:
            return run_window(self.player, requests, ByClients(1), Limits(course.patience), course.clock)
        schedule = AtTimes(window_times(course.stream.requests, size, rate))
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
