"""Runs a suite: requests first, then engines, then one experiment after the other; what is complete is in the file."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from data.errors import DataError
from engine.errors import EngineError
from rag.bench.environment import count_cores
from rag.bench.progress import BenchEvent
from rag.bench.suite.checks import Evidence, judge
from rag.bench.suite.contestant import AGAIN, OWN
from rag.bench.suite.experiment import Drive, Experiment, Suite
from rag.bench.suite.goodput import run_goodput
from rag.bench.suite.lineup import Lineup
from rag.bench.suite.load import run_load
from rag.bench.suite.pace import Pace, Watch
from rag.bench.suite.parts import Opened, Parts
from rag.bench.suite.records import CheckRecord, Record, SkippedRecord, StreamRecord
from rag.bench.suite.requests import RequestStream
from rag.bench.suite.results import ResultFile, Results
from rag.bench.suite.turns import run_turns
from rag.bench.suite.units import PATIENCE_SECONDS, Course
from rag.errors import InvalidRequestError, RagError, ResultFileError

__all__ = ["REQUESTS", "START", "Outcome", "is_complete", "run_suite"]

REQUESTS, START = "requests", "engines"  # parts of a run before its experiments
REQUESTS_SECONDS, START_SECONDS = 4.0, 10.0  # of each workload, and of each engine
CHECKS = "checks"  # stands for the pass that a unit of self-checks closes
RECALL_AT = (1, 3, 5, 10)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        path: of its file.
        measured: units that were measured now.
        absent: peers that are not there, and why.
        broken: engines that failed on the way, engines of ours that did not start, and experiments that could not be
            run or that nobody was there for.
        failed: self-checks that did not hold.
    """

    path: Path
    measured: int
    absent: tuple[SkippedRecord, ...]
    broken: tuple[SkippedRecord, ...]
    failed: tuple[CheckRecord, ...]


def run_suite(
    suite: Suite,
    parts: Parts,
    output: Path,
    watch: Watch,
    *,
    patience: float = PATIENCE_SECONDS,
    clock: Callable[[], float] = monotonic,
) -> Outcome:
    """Measure what a file lacks of a suite.

    Args:
        suite: what to run.
        parts: what the run is made of.
        output: the results' file; its folder exists. One of the same suite goes on where it ended.
        watch: told how far the run is.
        patience: seconds of silence after which an engine that owes an answer is given up.
        clock: that the engines share.

    Raises:
        InvalidRequestError: the file is of another suite, or asks something else than before.
        ResultFileError: the file cannot be written; what is complete stands.
        RagError: a model is missing or cannot be used.
    """
    file = ResultFile(output, parts.header(suite))
    try:
        return _Run(suite, parts, file, watch, patience, clock).run()
    finally:
        file.close()


def is_complete(results: Results) -> bool:
    """Whether every pass of every experiment of a run is in its file."""
    return not _missing(results.header.suite, results.units)


def _missing(suite: Suite, done: Iterable[str]) -> list[Experiment]:
    return [one for one in suite.experiments if set(_passes(one)) - set(done)]


def _passes(experiment: Experiment) -> list[str]:
    names = [f"{experiment.name}/{repeat}" for repeat in range(experiment.repeats)]
    return [*names, f"{experiment.name}/{CHECKS}"] if experiment.checks else names


@dataclass(slots=True)
class _Run:
    suite: Suite
    parts: Parts
    file: ResultFile
    watch: Watch
    patience: float
    clock: Callable[[], float]
    broken: list[SkippedRecord] = field(default_factory=list)

    def run(self) -> Outcome:
        before = len(self.file.done)
        missing = _missing(self.suite, self.file.done)
        names = list(dict.fromkeys(name for one in missing for name in one.contestants))
        before_all = {REQUESTS: REQUESTS_SECONDS * len(missing), START: START_SECONDS * len(names)}
        pace = Pace({**before_all, **{one.name: one.estimate for one in missing}}, self.watch, self.clock)
        streams = self._streams(missing, pace)
        pace.forget(REQUESTS)
        with self._open(names, streams, pace) as (contestants, records, left_out):
            self.file.add(*records, *left_out)
            pace.at(START, 1.0, f"{len(contestants)} engines are ready")
            pace.forget(START)
            lineup = Lineup(contestants)
            for experiment in missing:
                present = len(lineup.of(experiment.contestants))
                pace.rescale(experiment.name, present / len(experiment.contestants) if experiment.contestants else 1.0)
            for experiment in missing:
                if experiment.name in streams:
                    self._measure(experiment, streams[experiment.name], lineup, pace)
                left = _missing(Suite(name=self.suite.name, experiments=(experiment,)), self.file.done)
                pace.at(experiment.name, 1.0, "left out" if left else "complete")
            self.broken += lineup.dropped
            self.broken += [one for one in left_out if _is_own(one.name)]
        checks = (one for unit in sorted(self.file.done) for one in self.file.records(unit))
        failed = tuple(one for one in checks if isinstance(one, CheckRecord) and not one.passed)
        absent = tuple(one for one in left_out if not _is_own(one.name))
        return Outcome(self.file.path, len(self.file.done) - before, absent, tuple(self.broken), failed)

    def _streams(self, missing: Sequence[Experiment], pace: Pace) -> dict[str, RequestStream]:
        """Make all requests first: a workload that cannot be had is told before anything is measured."""
        streams = {}
        known = {one.experiment: one for one in self.file.found if isinstance(one, StreamRecord)}
        for place, experiment in enumerate(missing):

            def tell(event: BenchEvent, place: int = place, name: str = experiment.name) -> None:
                share = event.done / event.total if event.total else 0.0
                pace.at(REQUESTS, min(0.99, (place + share) / len(missing)), name)

            try:
                stream = self.parts.stream(experiment.workload, tell)
            except (InvalidRequestError, DataError) as error:
                self._skip(experiment, str(error))
                continue
            record = _stream_record(experiment, stream)
            if (before := known.get(experiment.name)) is None:
                self.file.add(record)
            elif before.digest != record.digest:
                raise InvalidRequestError(
                    f"{experiment.name} asks something else than before in {self.file.path}: its corpus, model or "
                    "splitting has changed; name another file with --output"
                )
            streams[experiment.name] = stream
        pace.at(REQUESTS, 1.0, f"{len(streams)} workloads are ready")
        return streams

    def _open(
        self, names: Sequence[str], streams: Mapping[str, RequestStream], pace: Pace
    ) -> AbstractContextManager[Opened]:
        driven = [one for one in self.suite.experiments if one.contestants and one.name in streams]
        needed = [name for name in names if any(name in one.contestants for one in driven)]
        if not needed:
            return nullcontext(((), (), ()))
        pace.at(START, 0.0, f"starting {', '.join(needed)}")
        return self.parts.open(needed, self._longest(streams))

    def _longest(self, streams: Mapping[str, RequestStream]) -> int:
        """Return the longest prompt of the whole suite, so that a run that goes on opens engines as before."""
        driven = {one.name for one in self.suite.experiments if one.contestants}
        known = {one.experiment: one.longest for one in self.file.found if isinstance(one, StreamRecord)}
        known |= {name: stream.longest for name, stream in streams.items()}
        return max(known[name] for name in driven & known.keys())

    def _measure(self, experiment: Experiment, stream: RequestStream, lineup: Lineup, pace: Pace) -> None:
        if experiment.contestants and not lineup.of(experiment.contestants):
            self._skip(experiment, "none of its engines is there")  # and may be there when the run goes on
            return
        try:
            for repeat in range(experiment.repeats):

                def tell(share: float, doing: str, repeat: int = repeat) -> None:
                    pace.at(experiment.name, min(0.99, (repeat + share) / experiment.repeats), doing)

                course = Course(
                    experiment, repeat, stream, lineup, self.file, tell, self.patience, self.clock,
                    scores=lambda unit, answers: self.parts.scores(unit, stream, answers),
                )  # fmt: skip
                if course.lacks():
                    self._pass(course)
            self._check(experiment, stream, lineup)
        except ResultFileError:
            raise
        except (RagError, EngineError, DataError) as error:
            self._skip(experiment, str(error))

    def _pass(self, course: Course) -> None:
        drives = {Drive.TURNS: run_turns, Drive.LOAD: run_load, Drive.GOODPUT: run_goodput}
        if course.experiment.drive in drives:
            drives[course.experiment.drive](course)
            return
        with course.unit() as unit:
            seen = set[int]()
            for record in self._measured_here(course, unit.name):
                unit.records.append(record)
                seen.add(getattr(record, "request", -1))
                course.tell(len(seen) / len(course.stream.requests), f"{len(unit.records)} records")

    def _measured_here(self, course: Course, unit: str) -> Iterator[Record]:
        if course.experiment.drive is Drive.QUALITY:
            return self.parts.quality(course.experiment, course.stream, unit)
        return self.parts.simulation(course.experiment, course.stream, course.repeat)

    def _check(self, experiment: Experiment, stream: RequestStream, lineup: Lineup) -> None:
        course = Course(experiment, 0, stream, lineup, self.file, _silent, clock=self.clock, label=CHECKS)
        if not experiment.checks or not course.lacks():
            return
        units = [name for name in self.file.done if name.startswith(f"{experiment.name}/")]
        records = [one for name in sorted(units) for one in self.file.records(name)]
        evidence = Evidence(
            experiment, stream, records, count_cores(), lambda spec: self.parts.stream(spec, lambda _event: None)
        )
        with course.unit() as unit:
            unit.records += judge(evidence, unit=unit.name)

    def _skip(self, experiment: Experiment, reason: str) -> None:
        record = SkippedRecord(name=experiment.name, reason=reason)
        self.file.add(record)
        self.broken.append(record)


def _is_own(name: str) -> bool:
    return name.removesuffix(AGAIN).partition("@")[0] in OWN


def _silent(share: float, doing: str) -> None:
    del share, doing


def _stream_record(experiment: Experiment, stream: RequestStream) -> StreamRecord:
    requests, times = stream.requests, [one.retrieval_ms for one in stream.requests]
    return StreamRecord(
        experiment=experiment.name,
        digest=stream.digest,
        source=stream.source,
        requests=len(requests),
        prompt_tokens=sum(one.prompt.num_tokens for one in requests) / len(requests),
        longest=stream.longest,
        passages=len(stream.passages),
        passage_tokens=sum(len(one.tokens) for one in stream.passages),
        recall=_recall(stream),
        retrieval_ms=tuple(one for one in times if one is not None),
    )


def _recall(stream: RequestStream) -> dict[int, float]:
    """Share of the requests with a gold text that have it among the first n passages, up to the passages asked for."""
    ranks = [one.gold_rank for one in stream.requests if one.golds]
    if not ranks:
        return {}
    most = max(len(one.prompt.segments) - 2 for one in stream.requests)
    cuts = sorted({*(n for n in RECALL_AT if n < most), most})
    return {n: sum(rank is not None and rank <= n for rank in ranks) / len(ranks) for n in cuts}
