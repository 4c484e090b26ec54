"""Requests that come at their time, whatever the engine does: each engine alone, in a window of its own.

A request is due at an absolute time. One that is late stays due then, so an engine that is slow to answer cannot slow
down what it is asked (no coordinated omission), and a generator that is late shows in the lateness.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import process_time
from typing import Protocol

from rag.bench.peers.errors import PeerError
from rag.bench.suite.asked import OVERRUN, Asked
from rag.bench.suite.contestant import Contestant, Event
from rag.bench.suite.experiment import ArrivalKind
from rag.bench.suite.lineup import awake
from rag.bench.suite.player import Player
from rag.bench.suite.records import AnswerRecord
from rag.bench.suite.requests import BenchRequest
from rag.bench.suite.units import Course, Unit

__all__ = ["AtTimes", "ByClients", "Limits", "Schedule", "Window", "close_window", "drive", "run_load", "run_window"]

LONGEST_WAIT = 0.25  # seconds between looks at the clock
DRAIN_SECONDS = 30.0  # after the last arrival, for what is not answered then; as long as the arrivals took, if longer


class Schedule(Protocol):
    """Says when requests come."""

    def due(self, number: int, now: float, outstanding: int) -> float | None:
        """Return when request `number` (from 0) comes, or None while that depends on answers.

        Times are seconds since the window began.
        """
        ...

    @property
    def longest(self) -> float | None:
        """Seconds that a window may last, with all that is not answered then; None where answers decide."""
        ...


@dataclass(frozen=True, slots=True)
class AtTimes:
    """Requests at given times, ascending."""

    times: Sequence[float]

    def due(self, number: int, now: float, outstanding: int) -> float | None:
        """Return the request's time, whatever happened before."""
        del now, outstanding
        return self.times[number]

    @property
    def longest(self) -> float:
        """Twice the time of the last one, or a little more."""
        return self.times[-1] + max(DRAIN_SECONDS, self.times[-1])


@dataclass(frozen=True, slots=True)
class ByClients:
    """So many clients, each of which asks again when it is answered."""

    clients: int

    def due(self, number: int, now: float, outstanding: int) -> float | None:
        """Return now, where a client is free."""
        del number
        return now if outstanding < self.clients else None

    @property
    def longest(self) -> None:
        """Nothing: it ends with the last answer, or with the engine's silence."""
        return None


@dataclass(frozen=True, slots=True)
class Limits:
    """When a window ends although answers are missing.

    Attributes:
        silence: seconds without news after which an engine that owes answers is given up.
        seconds: that the window may last; None is as long as there is news.
        hopeless: whether nothing that may still come can change what the window shows.
    """

    silence: float
    seconds: float | None = None
    hopeless: Callable[[Sequence[Asked], float], bool] | None = None

    def reached(self, asked: Sequence[Asked], began: float, now: float) -> bool:
        """Whether the window is to end now."""
        if self.seconds is not None and now - began > self.seconds:
            return True
        return self.hopeless is not None and self.hopeless(asked, now)


@dataclass(slots=True)
class Window:
    """What a window showed.

    Attributes:
        asked: requests that were due, in order.
        seconds: that it lasted.
        generator_cpu: processor seconds of the load generator.
        cut: it was ended before its last answer.
        error: that ended it, and the engine.
    """

    asked: list[Asked]
    seconds: float = 0.0
    generator_cpu: float = 0.0
    cut: bool = False
    error: PeerError | None = None

    @property
    def lateness_ms(self) -> float:
        """How much after it was due a request was handed over, at the 99th percentile (nearest rank)."""
        late = sorted(one.sent - one.arrival for one in self.asked if one.sent is not None)
        return 1e3 * late[-(-99 * len(late) // 100) - 1] if late else 0.0

    def records(self, unit: Unit, contestant: str, warmup: int) -> list[AnswerRecord]:
        """Make the records of it; the first `warmup` requests are reported apart."""
        pairs = enumerate(self.asked)
        return [one.record(unit.name, contestant, unit.began, warmup=place < warmup) for place, one in pairs]


def run_load(course: Course) -> None:
    """Measure a pass: a unit an engine; engines change places from one pass to the next."""
    contestants = course.lineup.in_turn(course.experiment.contestants, course.repeat)
    for place, contestant in enumerate(contestants):
        course.tell(place / len(contestants), contestant.name)
        if course.lacks(contestant.name):
            _run_alone(course, contestant)
    with course.unit():
        pass  # closes the pass


def run_window(
    player: Player,
    requests: Sequence[BenchRequest],
    schedule: Schedule,
    limits: Limits,
    clock: Callable[[], float],
) -> Window:
    """Drive an engine through a window; never raises for what the engine does: that is in the result."""
    window, cpu, began = Window([]), process_time(), clock()
    try:
        with awake(player.contestant):
            drive(player.contestant, requests, schedule, limits, clock, window)
            if any(not one.ended or one.overrun for one in window.asked):
                player.contestant.cancel()
    except PeerError as error:
        window.cut, window.error = True, error
    for one in window.asked:
        one.give_up(str(window.error) if window.error else "not answered when the window was cut")
    window.seconds, window.generator_cpu = clock() - began, process_time() - cpu
    player.seconds += window.seconds
    player.generator_cpu += window.generator_cpu
    return window


def drive(
    contestant: Contestant,
    requests: Sequence[BenchRequest],
    schedule: Schedule,
    limits: Limits,
    clock: Callable[[], float],
    window: Window,
) -> None:
    """Send requests when they are due, and hear the answers, until the last one or a limit.

    Raises:
        PeerError: the engine is gone, or silent for too long.
    """
    traffic = _Traffic(contestant, requests, schedule, clock, window)
    heard = looked = traffic.began
    while traffic.goes_on:
        traffic.send_due()
        owes = bool(traffic.open)
        events = contestant.events(traffic.wait)
        traffic.hear(events)
        now = clock()
        heard = now if events or not owes else heard
        if now - heard > limits.silence:
            raise PeerError(f"{contestant.name} was silent for {limits.silence:.0f} seconds")
        if now - looked >= LONGEST_WAIT:
            looked = now
            window.cut = traffic.goes_on and limits.reached(window.asked, traffic.began, now)
            if window.cut:
                return


@dataclass(slots=True)
class _Traffic:
    """Requests on their way to one engine, and back."""

    contestant: Contestant
    requests: Sequence[BenchRequest]
    schedule: Schedule
    clock: Callable[[], float]
    window: Window
    open: dict[int, Asked] = field(default_factory=dict)
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.clock()

    @property
    def goes_on(self) -> bool:
        return len(self.window.asked) < len(self.requests) or bool(self.open)

    def send_due(self) -> None:
        while (due := self._next_due()) is not None and due <= self.clock():
            one = Asked(self.requests[len(self.window.asked)], arrival=due)
            self.window.asked.append(one)
            self.contestant.submit(one.request)
            one.sent = self.clock()
            self.open[one.request.number] = one

    @property
    def wait(self) -> float:
        """How long to listen before something is to be done."""
        due = self._next_due()
        return LONGEST_WAIT if due is None else max(0.0, min(LONGEST_WAIT, due - self.clock()))

    def hear(self, events: Sequence[Event]) -> None:
        for event in events:
            if (one := self.open.get(event.number)) is None:
                continue
            one.hear(event)
            if one.overrun:
                one.give_up(OVERRUN)
            if one.ended:
                del self.open[event.number]

    def _next_due(self) -> float | None:
        if len(self.window.asked) == len(self.requests):
            return None
        due = self.schedule.due(len(self.window.asked), self.clock() - self.began, len(self.open))
        return None if due is None else self.began + due


def _run_alone(course: Course, contestant: Contestant) -> None:
    with course.unit(contestant.name) as unit:
        try:
            player = Player.prepare(contestant, course.stream)
        except PeerError as error:
            unit.records.append(course.lineup.drop(contestant, unit.name, error))
            return
        unit.began = course.clock()
        schedule, rate = _schedule(course)
        limits = Limits(course.patience, schedule.longest)
        window = run_window(player, course.stream.requests, schedule, limits, course.clock)
        close_window(course, unit, player, window, rate=rate, warmup=course.experiment.warmup)


def close_window(
    course: Course, unit: Unit, player: Player, window: Window, *, rate: float | None, warmup: int
) -> None:
    """Add a window's records to its unit; an engine that failed in it is left out from now on."""
    name = player.contestant.name
    unit.records += window.records(unit, name, warmup)
    try:
        if window.error is not None:
            raise window.error
        unit.records.append(player.window(unit.name, rate=rate, lateness_ms=window.lateness_ms, cut=window.cut))
    except PeerError as error:
        unit.records.append(course.lineup.drop(player.contestant, unit.name, error))


def _schedule(course: Course) -> tuple[Schedule, float | None]:
    arrivals, requests = course.experiment.workload.arrivals, course.stream.requests
    if arrivals.kind in (ArrivalKind.TURNS, ArrivalKind.CLOSED):
        return ByClients(arrivals.clients), None
    times = [one.time for one in requests]
    rate = arrivals.rate or (len(times) / times[-1] if times[-1] else None)
    return AtTimes(times), rate
