"""Self-checks: what the records of an experiment must show, so that this benchmark is one that can fail."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rag.bench.statistics import median_ratio
from rag.bench.suite.contestant import AGAIN, SHORT
from rag.bench.suite.experiment import (
    ArrivalKind,
    Arrivals,
    Check,
    Drive,
    Experiment,
    Suite,
    WorkloadKind,
    WorkloadSpec,
)
from rag.bench.suite.quality import WRONG_SHIFT
from rag.bench.suite.records import AnswerRecord, CheckRecord, QualityRecord, Record, WindowRecord
from rag.bench.suite.requests import RequestStream
from rag.certify.judgement import estimate

__all__ = ["GENERATOR_LIMIT", "TWIN", "Evidence", "checks_suite", "judge"]

OFF = "preread-off"
TWIN = f"{OFF}{AGAIN}"
CACHED = "preread-exact"
GENERATOR_LIMIT = 0.02  # of the machine
NOISE = 0.02  # by which two processes of the same engine may differ for good: where their memory lies, say
WIDEST = 0.2  # an interval wider than this would contain almost anything
FEWEST = 8  # pairs or requests, without which nothing is shown

Verdict = tuple[bool, str]
Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an experiment has left behind.

    Attributes:
        experiment: with the checks to make.
        stream: its requests, as they were asked.
        records: of its units.
        cores: of the machine.
        make: makes the requests of a specification.
    """

    experiment: Experiment
    stream: RequestStream
    records: Sequence[Record]
    cores: int
    make: Callable[[WorkloadSpec], RequestStream]

    def of(self, kind: type[Kind]) -> list[Kind]:
        """Return the records of a kind."""
        return [one for one in self.records if isinstance(one, kind)]


def checks_suite(seed: int = 0) -> Suite:
    """Return the suite that only checks the benchmark, in a minute or two."""
    orders = WorkloadSpec(kind=WorkloadKind.ORDERS, count=32, seed=seed, k=4, length=96, pool=8, output_tokens=4)
    questions = WorkloadSpec(kind=WorkloadKind.QUESTIONS, count=12, seed=seed, k=4, output_tokens=32)
    poisson = Arrivals(kind=ArrivalKind.POISSON, rate=2.0)
    off = Experiment(
        name="off-beside-itself",
        title="Without reuse nothing is hit and nothing is faster; one seed, one stream",
        drive=Drive.TURNS,
        workload=orders,
        contestants=(OFF, TWIN, CACHED),
        warmup=4,
        estimate=30,
        checks=(Check.REUSE_OFF, Check.SEED, Check.GENERATOR),
    )
    shift = Experiment(
        name="wrong-shift",
        title="Reuse at a wrong shift is seen in the quality of answers; one seed, one stream of questions",
        drive=Drive.QUALITY,
        workload=questions,
        estimate=60,
        repairs=(32,),
        checks=(Check.WRONG_SHIFT, Check.SEED),
    )
    short = Experiment(
        name="too-few-tokens",
        title="An engine that gives too few tokens is found out",
        drive=Drive.TURNS,
        workload=orders.model_copy(update={"count": 4}),
        contestants=(SHORT, CACHED),
        estimate=3,
        checks=(Check.SHORT,),
    )
    load = Experiment(
        name="generator",
        title="Driving costs next to nothing",
        drive=Drive.LOAD,
        workload=orders.model_copy(update={"count": 24, "arrivals": poisson}),
        contestants=(CACHED,),
        estimate=15,
        checks=(Check.GENERATOR,),
    )
    return Suite(name="checks", experiments=(off, shift, short, load))


def judge(evidence: Evidence, *, unit: str) -> Iterator[CheckRecord]:
    """Make the checks of an experiment, one after the other.

    Args:
        evidence: of the experiment.
        unit: that the records of the checks belong to.
    """
    for check in evidence.experiment.checks:
        passed, detail = _CHECKS[check](evidence)
        yield CheckRecord(unit=unit, name=check.value, passed=passed, detail=detail)


def _reuse_off(evidence: Evidence) -> Verdict:
    """Without reuse nothing is hit, where exact reuse hits, and nothing is faster than the same engine beside it."""
    answers = _counted(evidence)
    numbers = sorted(answers[OFF].keys() & answers[TWIN].keys())
    if len(numbers) < FEWEST:
        return False, f"{len(numbers)} requests answered by {OFF} and {TWIN}; {FEWEST} are needed"
    both = [one for name in (OFF, TWIN) for one in answers[name].values()]
    silent = sum(one.cached is None for one in both)
    hits, there = _hits(both), _hits(answers[CACHED].values())
    ratio = median_ratio(*([_ttft(answers[name][number]) for number in numbers] for name in (TWIN, OFF)))
    same = ratio.low <= 1 + NOISE and ratio.high >= 1 - NOISE
    sharp = ratio.high - ratio.low <= WIDEST
    detail = (
        f"{hits} tokens hit in {len(both)} answers{f', {silent} of them silent' if silent else ''}, {there} with reuse "
        f"in {len(answers[CACHED])}; speed-up "
        f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] of {len(numbers)} pairs"
        f"{'' if sharp else f': wider than {WIDEST}, so the machine is too noisy to tell'}"
    )
    return not hits and not silent and there > 0 and same and sharp, detail


def _wrong_shift(evidence: Evidence) -> Verdict:
    """Reuse at a wrong shift is farther from full prefill than right reuse, beyond chance."""
    right_name = f"repair-{evidence.experiment.repairs[0]}"
    kls = defaultdict[str, list[float]](list)
    for one in evidence.of(QualityRecord):
        if one.kl is not None:
            kls[one.variant].append(one.kl)
    if min(len(kls[name]) for name in (right_name, WRONG_SHIFT)) < FEWEST:
        counts = ", ".join(f"{name}: {len(kls[name])}" for name in (right_name, WRONG_SHIFT))
        return False, f"too few questions ({counts}); {FEWEST} are needed"
    right, wrong = (estimate(kls[name], seed=0) for name in (right_name, WRONG_SHIFT))
    detail = (
        f"KL {wrong.value:.4f} [{wrong.low:.4f}, {wrong.high:.4f}] at a wrong shift, {right.value:.4f} "
        f"[{right.low:.4f}, {right.high:.4f}] at the right one, {len(kls[WRONG_SHIFT])} questions"
    )
    return wrong.low > right.high, detail


def _seed(evidence: Evidence) -> Verdict:
    """The same specification gives the same requests again, and another seed gives others."""
    spec = evidence.experiment.workload
    again = evidence.make(spec).digest
    other = evidence.make(spec.model_copy(update={"seed": spec.seed + 1})).digest
    detail = f"seed {spec.seed}: {evidence.stream.digest}, once more: {again}; seed {spec.seed + 1}: {other}"
    return again == evidence.stream.digest != other, detail


def _short(evidence: Evidence) -> Verdict:
    """An engine that gives too few tokens is found out every time."""
    answers = [one for one in evidence.of(AnswerRecord) if one.contestant == SHORT]
    found = [one for one in answers if one.status == "short" and 0 < one.count < one.wanted]
    detail = f"{len(found)} of {len(answers)} answers of an engine that gives too few tokens were found short"
    return bool(answers) and len(found) == len(answers) == len(evidence.stream.requests), detail


def _generator(evidence: Evidence) -> Verdict:
    """Driving takes next to nothing of the machine, in any window."""
    windows = [one for one in evidence.of(WindowRecord) if one.seconds]
    if not windows:
        return False, "nothing was driven"
    share, beside = max((one.generator_cpu / (one.seconds * evidence.cores), one.contestant) for one in windows)
    detail = f"at most {share:.2%} of {evidence.cores} cores, beside {beside}; the limit is {GENERATOR_LIMIT:.0%}"
    return share < GENERATOR_LIMIT, detail


def _counted(evidence: Evidence) -> dict[str, dict[tuple[str, int], AnswerRecord]]:
    """Return whole answers that are not warm-up, by engine, and by unit and request."""
    found = defaultdict[str, dict[tuple[str, int], AnswerRecord]](dict)
    for one in evidence.of(AnswerRecord):
        if one.status == "ok" and not one.warmup:
            found[one.contestant][one.unit, one.request] = one
    return found


def _hits(answers: Iterable[AnswerRecord]) -> int:
    return sum(sum((one.cached or {}).values()) for one in answers)


def _ttft(answer: AnswerRecord) -> float:
    assert answer.first is not None, "a whole answer has a first token"
    return answer.first - answer.arrival


_CHECKS: Mapping[Check, Callable[[Evidence], Verdict]] = {
    Check.REUSE_OFF: _reuse_off,
    Check.WRONG_SHIFT: _wrong_shift,
    Check.SEED: _seed,
    Check.SHORT: _short,
    Check.GENERATOR: _generator,
}
