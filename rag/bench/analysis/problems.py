"""What makes figures doubtful or void: said beside them, in every report."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from rag.bench.analysis.models import ContestantFigures
from rag.bench.suite.checks import GENERATOR_LIMIT
from rag.bench.suite.experiment import Drive, Experiment
from rag.bench.suite.records import AnswerRecord
from rag.bench.suite.results import Results

__all__ = ["experiment_problems", "run_problems", "void_problems"]

BUSY = 0.5  # load average a core before the run above which the machine was not quiet
LATE_MS = 20.0  # that a request may be handed over late
SHOWN = 5  # examples named in a message


def run_problems(results: Results) -> Iterator[str]:
    """Yield what concerns the whole run."""
    environment = results.header.environment
    load = environment.load_average
    if load is not None and load > BUSY * environment.cores:
        yield (
            f"the load average was {load} on {environment.cores} cores before the run: other work shared the machine"
        )
    for check in results.checks:
        if not check.passed:
            yield f"the self-check {check.name!r} failed, so that no figure can be trusted: {check.detail}"


def experiment_problems(
    experiment: Experiment, answers: Sequence[AnswerRecord], engines: Mapping[str, ContestantFigures]
) -> Iterator[str]:
    """Yield what concerns an experiment."""
    for name, found in engines.items():
        own = [answer for answer in answers if answer.contestant == name]
        if found.short:
            yield f"{name} gave too few tokens for {_count(found.short, 'request')}, which count nowhere"
        if found.failed > found.unanswered:
            errors = {answer.error: None for answer in own if answer.status == "failed" and answer.error}
            reason = next(iter(errors), "no reason was given")
            yield f"{name} failed {_count(found.failed - found.unanswered, 'request')}: {reason}"
        if found.unanswered and experiment.drive is not Drive.GOODPUT:
            yield f"{name} left {_count(found.unanswered, 'request')} unanswered when its window was cut"
        if found.generator > GENERATOR_LIMIT:
            yield f"the load generator took {found.generator:.1%} of the machine beside {name}"
        if found.lateness_ms > LATE_MS:
            yield f"requests reached {name} up to {found.lateness_ms:.0f} ms late (p99); the delay is in its times"
        if found.uncertified:
            yield f"{name} reused passages without a certificate for {_count(found.uncertified, 'answer')}"
    lost = [name for name in experiment.contestants if name not in engines]
    if lost and answers:
        yield f"without {', '.join(lost)}"


def void_problems(answers: Sequence[AnswerRecord], engines: Mapping[str, ContestantFigures]) -> Iterator[str]:
    """Yield why no figure of an experiment counts."""
    yield from _unequal(answers)
    off = engines.get("preread-off")
    if off is not None and off.hit_rate:
        yield f"preread-off reused {off.hit_rate:.1%} of its prompts' tokens, it must be none: speed-ups are void"


def _unequal(answers: Sequence[AnswerRecord]) -> Iterator[str]:
    asked: defaultdict[int, set[tuple[str, int]]] = defaultdict(set)
    for answer in answers:
        asked[answer.request].add((answer.prompt, answer.wanted))
    unequal = sorted(request for request, prompts in asked.items() if len(prompts) > 1)
    if unequal:
        numbers = ", ".join(map(str, unequal[:SHOWN]))
        yield f"engines did not get the same prompts or lengths for {_count(len(unequal), 'request')} ({numbers}): void"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
