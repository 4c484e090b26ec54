"""Contestants that do what a script says, on a clock that moves only when somebody waits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from engine.prompt import Prompt, Segment, SegmentKind
from rag.bench.environment import Environment
from rag.bench.peers.errors import PeerError
from rag.bench.progress import Progress
from rag.bench.suite.contestant import Contestant, Event, Footprint, Prepared
from rag.bench.suite.experiment import Drive, Experiment, Suite, WorkloadKind, WorkloadSpec
from rag.bench.suite.lineup import Lineup
from rag.bench.suite.parts import Opened, Parts
from rag.bench.suite.records import (
    AnswerRecord,
    ContestantRecord,
    Header,
    QualityRecord,
    SimulationRecord,
    SkippedRecord,
)
from rag.bench.suite.requests import BenchRequest, RequestStream
from rag.bench.suite.results import ResultFile
from rag.bench.suite.units import Course

TOKENS = 3  # of an answer
NAMES = ("fast", "slow")


class Clock:
    """Seconds that pass only where somebody waits."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Scripted:
    """An engine that serves one request after the other, each in so many seconds to its first token.

    Attributes:
        name: of the contestant.
        clock: shared by all.
        service: seconds to the first token, by request.
        decode: seconds of each further token.
        tokens: that an answer has.
        submitting: seconds that handing a request over takes.
        dies_at: number of the request at which it is gone.
        hangs_at: number of the request that it never answers.
        fails_at: number of the request that it answers with an error.
    """

    name: str
    clock: Clock
    service: Callable[[BenchRequest], float] = lambda _request: 1.0
    decode: float = 0.1
    tokens: int = TOKENS
    submitting: float = 0.0
    dies_at: int | None = None
    hangs_at: int | None = None
    fails_at: int | None = None
    version: str = "1"
    detail: str = "scripted"
    calls: list[str] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    is_awake: bool = False
    is_closed: bool = False
    free_at: float = 0.0
    coming: list[Event] = field(default_factory=list)

    def prepare(self, stream: RequestStream) -> Prepared:
        self.calls.append("prepare")
        self.coming.clear()
        return Prepared(tokens=len(stream.passages), seconds=0.5)

    def submit(self, request: BenchRequest) -> None:
        assert self.is_awake, f"{self.name} is asked while it is paused"
        assert not self.is_closed, f"{self.name} is asked after its end"
        self.seen.append(request.number)
        self.clock.wait(self.submitting)
        if request.number == self.dies_at:
            raise PeerError(f"{self.name} is gone")
        if request.number == self.hangs_at:
            return
        begins = max(self.free_at, self.clock())
        first = begins + self.service(request)
        if request.number == self.fails_at:
            self.coming.append(Event(request.number, first, done=True, error="out of memory"))
            self.free_at = first
            return
        for place in range(self.tokens):
            last = place == self.tokens - 1
            self.coming.append(
                Event(
                    request.number,
                    first + place * self.decode,
                    tokens=(place,),
                    count=1,
                    started=begins,
                    done=last,
                    cached={"device": 2} if last else None,
                )
            )
        self.free_at = first + (self.tokens - 1) * self.decode

    def events(self, timeout: float) -> Sequence[Event]:
        assert timeout >= 0, "no time is negative"
        self.coming.sort(key=lambda event: event.at)
        until = self.clock() + timeout
        if self.coming and self.coming[0].at <= until:
            until = max(self.clock(), self.coming[0].at)
        self.clock.now = until
        here = [event for event in self.coming if event.at <= until]
        self.coming = [event for event in self.coming if event.at > until]
        return here

    def cancel(self) -> None:
        self.calls.append("cancel")
        self.coming.clear()
        self.free_at = self.clock()

    def footprint(self) -> Footprint:
        return Footprint(memory=1000, disk=3, cpu_seconds=self.clock())

    def pause(self) -> None:
        self.is_awake = False

    def resume(self) -> None:
        self.is_awake = True

    def close(self) -> None:
        self.is_closed = True


def make_stream(count: int, times: Sequence[float] | None = None, *, salt: int = 0) -> RequestStream:
    """Return requests of a template, two passages and a tail; passages are shared by neighbours."""
    requests = []
    for number in range(count):
        segments = [
            Segment((1, 2), SegmentKind.TEMPLATE),
            Segment((10 + number // 2, salt + 3), SegmentKind.PASSAGE),
            Segment((10_000 + number, 4), SegmentKind.PASSAGE),
            Segment((5, number + 6), SegmentKind.TAIL),
        ]
        time = times[number] if times is not None else 0.0
        requests.append(BenchRequest(number, time, Prompt(segments), output_tokens=TOKENS, golds=("gold",)))
    return RequestStream(tuple(requests), "made up")


def an_experiment(drive: Drive = Drive.TURNS, count: int = 4, **fields: object) -> Experiment:
    """Return an experiment of two engines."""
    settings = {"name": drive.value, "title": drive.value, "contestants": NAMES} | fields
    workload = settings.pop("workload", WorkloadSpec(kind=WorkloadKind.ORDERS, count=count))
    return Experiment(drive=drive, workload=workload, **settings)


def a_header(suite: Suite) -> Header:
    """Return the first line of a file."""
    environment = Environment(
        started="2026-01-01T00:00:00+00:00", command="rag bench run", cpu="a processor", cores=2, platform="linux",
        python="3.11", preread="1", torch="2", torch_threads=2, load_average=0.1,
    )  # fmt: skip
    return Header(suite=suite, model="tiny", embedder="tiny", environment=environment)


@contextmanager
def a_course(
    path: Path, experiment: Experiment, stream: RequestStream, contestants: Sequence[Contestant], clock: Clock
) -> Iterator[Course]:
    """Open a file and give a pass of an experiment in it."""
    file = ResultFile(path, a_header(Suite(name="test", experiments=(experiment,))))
    try:
        yield Course(
            experiment, 0, stream, Lineup(contestants), file, lambda _share, _doing: None, patience=20.0, clock=clock
        )
    finally:
        file.close()


@dataclass
class ScriptedParts:
    """Parts of a run with scripted engines; `engines` makes them anew at each start."""

    clock: Clock
    engines: Callable[[], Sequence[Scripted]]
    absent: tuple[SkippedRecord, ...] = ()
    salt: int = 0
    opened: list[tuple[str, ...]] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)
    here: list[Scripted] = field(default_factory=list)

    @property
    def parts(self) -> Parts:
        return Parts(a_header, self._stream, self._open, self._quality, self._simulation, self._scores)

    def _stream(self, spec: WorkloadSpec, progress: Progress) -> RequestStream:
        times = [0.5 * number for number in range(spec.count)]
        return make_stream(spec.count, times, salt=self.salt + spec.seed)

    @contextmanager
    def _open(self, names: Sequence[str], context: int) -> Iterator[Opened]:
        self.opened.append(tuple(names))
        self.contexts.append(context)
        self.here = [one for one in self.engines() if one.name in names]
        records = [ContestantRecord(name=one.name, version="1", detail="", start_seconds=0) for one in self.here]
        try:
            yield self.here, records, self.absent
        finally:
            for one in self.here:
                one.close()

    def _quality(self, experiment: Experiment, stream: RequestStream, unit: str) -> Iterator[QualityRecord]:
        for request in stream.requests:
            yield QualityRecord(unit=unit, request=request.number, variant="full", k=2, kl=0.0)

    def _simulation(self, experiment: Experiment, stream: RequestStream, repeat: int) -> Iterator[SimulationRecord]:
        yield SimulationRecord(
            unit=f"{experiment.name}/{repeat}", reuse="exact", order="score", policy="lru", device_tokens=None,
            share=1.0, hit_rate=0.5, device_rate=0.5,
        )  # fmt: skip

    def _scores(self, unit: str, stream: RequestStream, answers: Sequence[AnswerRecord]) -> Iterator[QualityRecord]:
        for answer in answers:
            yield QualityRecord(unit=unit, request=answer.request, variant=answer.contestant, k=2, f1=1.0)
