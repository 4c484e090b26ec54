"""Draws what a workload asks, before any model or index is looked at; and keeps it in a file that can be replayed.

The file is a `Workload` where questions are asked in words, and a `Trace` where they are ids and lengths.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from data.arrivals import bursty_times, poisson_times, recorded_times
from data.corpora import CORPUS_NAMES
from data.errors import QuestionError, UnknownCorpusError, WorkloadError
from data.folders import find_corpus
from data.questions import make_questions
from data.traces import FORMAT as TRACE_FORMAT
from data.traces import Trace, read_ragpulse
from data.traffic import SHAPES, Traffic, TrafficKind, draw_traffic
from data.workloads import Workload, zipf_workload
from rag.bench.suite.experiment import ArrivalKind, Arrivals, WorkloadKind, WorkloadSpec
from rag.errors import InvalidRequestError

__all__ = ["Drawn", "draw", "save_workload", "saved_spec"]

NEEDED = {
    WorkloadKind.FILE: "the saved workload, --path FILE (of rag bench run workload: --workload FILE)",
    WorkloadKind.RAGPULSE: "the trace's folder, --path FOLDER (of rag bench run: --trace FOLDER)",
}
QUESTIONS_K = 4
QUESTIONS_SKEW = 1.0


@dataclass(frozen=True, slots=True)
class Drawn:
    """What is asked, and how.

    Attributes:
        spec: of a replayed file, the one that it was drawn by; arrivals are those of these times.
        content: questions in words, or ids and lengths; at the times at which they come.
    """

    spec: WorkloadSpec
    content: Workload | Trace

    @property
    def times(self) -> tuple[float, ...]:
        """When each request comes, in seconds."""
        if isinstance(self.content, Workload):
            return tuple(one.time for one in self.content.arrivals)
        return tuple(one.timestamp for one in self.content.requests)

    def at(self, times: Sequence[float]) -> "Drawn":
        """Return the same at other times, as many as there are requests."""
        if isinstance(self.content, Workload):
            asked = zip(self.content.arrivals, times, strict=True)
            return Drawn(self.spec, replace(self.content, arrivals=tuple(replace(one, time=t) for one, t in asked)))
        requests = zip(self.content.requests, times, strict=True)
        return Drawn(self.spec, replace(self.content, requests=tuple(replace(one, timestamp=t) for one, t in requests)))

    def part(self, first: int, count: int) -> "Drawn":
        """Return so many requests from a place on, or as many as there are; time goes on from the one before them.

        Raises:
            InvalidRequestError: there are none.
        """
        kept, times = slice(first, first + count), self.times
        if not times[kept]:
            raise InvalidRequestError(f"first is {first}; the workload has {len(times)} requests")
        start = times[first - 1] if first else 0.0
        content = self.content
        if isinstance(content, Workload):
            found = Drawn(self.spec, replace(content, arrivals=content.arrivals[kept]))
        else:
            found = Drawn(self.spec, replace(content, requests=content.requests[kept]))
        return found.at(recorded_times(times[kept], start=start))

    @property
    def pool(self) -> int | None:
        """Of how many passages they were drawn, where that is known."""
        return _traffic(self.spec).shape.pool if self.spec.kind.value in SHAPES else None


def draw(spec: WorkloadSpec) -> Drawn:
    """Draw a workload from its seed, or read it from its file.

    Raises:
        DataError: it cannot be read; the message says why.
        InvalidRequestError: it cannot be drawn, a path or rate is missing, a file was saved by nobody who knows its
            settings, or with others than are asked for.
    """
    found = _made(spec) if spec.path is None else _read(spec).part(spec.first, spec.count)
    try:
        timed = found.at(_times(found.times, spec.arrivals, spec.seed))
    except WorkloadError as error:
        raise InvalidRequestError(str(error)) from error
    if spec.arrivals == Arrivals(kind=ArrivalKind.RECORDED) and any(timed.times):
        return timed  # at the times that it was drawn with
    return replace(timed, spec=timed.spec.model_copy(update={"arrivals": spec.arrivals}))


def save_workload(spec: WorkloadSpec, path: Path) -> Drawn:
    """Draw a workload, write it to a file, and return it; `saved_spec` replays it.

    Raises:
        DataError: see `draw`.
        InvalidRequestError: see `draw`.
    """
    drawn = draw(spec)
    settings = {"workload": drawn.spec.model_dump(mode="json", exclude={"path"})}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(drawn.content, settings=settings).save(path)
    return drawn


def saved_spec(path: Path) -> WorkloadSpec:
    """Return the workload that replays a file, request by request at the saved times.

    Raises:
        DataError: it cannot be read.
        InvalidRequestError: it was saved by nobody who knows its settings.
    """
    drawn = _saved(path, WorkloadSpec(kind=WorkloadKind.FILE, count=1))
    arrivals = Arrivals(kind=ArrivalKind.RECORDED) if any(drawn.times) else drawn.spec.arrivals
    whole = {"path": str(path), "first": 0, "count": len(drawn.times)}
    return drawn.spec.model_copy(update={"kind": WorkloadKind.FILE, "arrivals": arrivals, **whole})


def _made(spec: WorkloadSpec) -> Drawn:
    if spec.kind in NEEDED:
        raise InvalidRequestError(f"a workload of kind {spec.kind.value} needs a path: name {NEEDED[spec.kind]}")
    if spec.arrivals.kind is ArrivalKind.RECORDED:
        raise InvalidRequestError(
            f"recorded arrivals need recorded times, and {spec.kind.value} are drawn: choose others"
        )
    try:
        return _asked(spec) if spec.kind is WorkloadKind.QUESTIONS else Drawn(spec, draw_traffic(_traffic(spec)))
    except (QuestionError, UnknownCorpusError, WorkloadError) as error:
        raise InvalidRequestError(str(error)) from error


def _asked(spec: WorkloadSpec) -> Drawn:
    """Draw questions by the popularity of the documents they ask for; none says its own answer."""
    questions = make_questions(find_corpus(spec.corpus), count=spec.pool, seed=spec.seed, quoting=False)
    workload = zipf_workload(
        questions,
        corpus=spec.corpus if spec.corpus in CORPUS_NAMES else str(Path(spec.corpus).expanduser().absolute()),
        count=spec.count,
        s=QUESTIONS_SKEW if spec.skew is None else spec.skew,
        popularity="document",
        seed=spec.seed,
    )
    return Drawn(spec.model_copy(update={"k": spec.k or QUESTIONS_K}), workload)


def _traffic(spec: WorkloadSpec) -> Traffic:
    return Traffic(
        kind=cast("TrafficKind", spec.kind.value),
        count=spec.count,
        seed=spec.seed,
        k=spec.k,
        length=spec.length,
        pool=spec.pool,
        skew=spec.skew,
        turns=spec.turns,
        question_tokens=spec.question_tokens,
        output_tokens=spec.output_tokens,
    )


def _read(spec: WorkloadSpec) -> Drawn:
    if spec.kind is WorkloadKind.FILE:
        return _saved(Path(str(spec.path)), spec)
    if spec.kind is WorkloadKind.RAGPULSE:
        recorded = Drawn(spec, read_ragpulse(Path(str(spec.path))))
        return recorded.at(recorded_times(recorded.times, start=recorded.times[0]))
    raise InvalidRequestError(f"a workload of kind {spec.kind.value} is drawn and has no path: leave it out")


def _times(recorded: Sequence[float], arrivals: Arrivals, seed: int) -> tuple[float, ...]:
    """Return when requests come that were recorded at these times; 0 where that depends on answers."""
    count = len(recorded)
    if arrivals.kind is ArrivalKind.RECORDED:
        return recorded_times(recorded, scale=arrivals.scale)
    if arrivals.kind in {ArrivalKind.TURNS, ArrivalKind.CLOSED}:
        return (0.0,) * count
    if arrivals.rate is None:
        raise InvalidRequestError(f"{arrivals.kind.value} arrivals need a rate: how many requests a second")
    if arrivals.kind is ArrivalKind.POISSON:
        return poisson_times(count, arrivals.rate, seed)
    return bursty_times(count, arrivals.rate, arrivals.cv, seed)


def _saved(path: Path, asked: WorkloadSpec) -> Drawn:
    """Read a file; of questions that were saved without settings, those asked for stand."""
    content = Trace.load(path) if _is_trace(path) else Workload.load(path)
    settings = content.settings.get("workload")
    if settings is None and isinstance(content, Workload):
        update = {"kind": WorkloadKind.QUESTIONS, "corpus": content.corpus, "path": None, "k": asked.k or QUESTIONS_K}
        return Drawn(asked.model_copy(update=update), content)
    try:
        drawn = Drawn(WorkloadSpec.model_validate(settings), content)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise InvalidRequestError(
            f"{path}:1: settings without a workload ({reason}): save it with rag bench workload"
        ) from error
    for name in {"k", "output_tokens"} & asked.model_fields_set:
        if (value := getattr(asked, name)) != getattr(drawn.spec, name):
            raise InvalidRequestError(f"{name} is {value}, and {path} keeps what it was drawn with: leave it out")
    return drawn


def _is_trace(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return TRACE_FORMAT.encode() in file.readline()
    except OSError:
        return False  # whoever reads it says so
