"""What changed between two runs beyond noise.

Where engines took turns, an engine's time for a request is divided by the reference's for the same request, which was
measured within seconds of it: what the machine did to both cancels, and the ratio of one file over that of the other
is left. Without a reference, and under load, where each engine is alone, the machine may have been another from window
to window; only repeated passes tell by how much, and a file without them is not judged there. What lasts for a whole
run (a process that got its memory in an unlucky way) cancels nowhere: hence the least change that is called one.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from zlib import crc32

from rag.bench.analysis.comparison import Change, Comparison, Side, is_large
from rag.bench.analysis.differences import faithfulness, measured_once, notices_of
from rag.bench.analysis.pairs import TIMES, Answers, EnginePair, relative_change
from rag.bench.analysis.resampling import FEWEST
from rag.bench.statistics import false_discovery_rates
from rag.bench.suite.experiment import Drive, Experiment
from rag.bench.suite.results import Results

__all__ = ["LEAST", "LEVEL", "compare_runs"]

LEVEL = 0.05
LEAST = 0.05
LEAST_SHARE = 0.01
TOGETHER = "all in turns"


def compare_runs(
    before: tuple[str, Results], after: tuple[str, Results], *, reference: str | None = None, least: float = LEAST
) -> Comparison:
    """Compare every measure that two runs have in common.

    Args:
        before: name of the first file, and what it holds.
        after: the same of the second.
        reference: engine that the others' times are divided by; None takes, in each experiment, one of the others'
            whose version is the same in both files, or else our own without reuse.
        least: smallest change that is called one, as a share.
    """
    files = before[1], after[1]
    notices = notices_of(*files)
    common = _common(*files)
    pairs = [pair for experiment in common for pair in _pairs(files, experiment, reference)]
    changes = list(_together(pairs))
    for experiment in common:
        own = [pair for pair in pairs if pair.experiment is experiment]
        changes += [change for pair in own for change in (*_times(pair), *pair.hits())]
        changes += faithfulness(files, experiment.name)
    changes += measured_once(files)
    rates = false_discovery_rates([one.p for one in changes if one.p is not None])
    remaining = iter(rates)
    judged = [one if one.p is None else _judged(one, next(remaining), least) for one in changes]
    return Comparison(
        before=_side(*before),
        after=_side(*after),
        notices=tuple(notices),
        changes=tuple(judged),
        judged=len(rates),
        level=LEVEL,
        least=least,
        least_share=LEAST_SHARE,
    )


def _common(before: Results, after: Results) -> list[Experiment]:
    """Experiments that both measured with the same requests, in the same way."""
    there = {one.name: one for one in before.experiments}
    return [
        one
        for one in after.experiments
        if one.name in there
        and there[one.name].drive is one.drive
        and one.name in before.streams
        and one.name in after.streams
        and before.streams[one.name].digest == after.streams[one.name].digest
    ]


def _pairs(files: tuple[Results, Results], experiment: Experiment, wanted: str | None) -> Iterator[EnginePair]:
    """Engines that answered in both files."""
    if experiment.drive not in (Drive.TURNS, Drive.LOAD):
        return
    before, after = (Answers.of(results, experiment) for results in files)
    reference = _reference(files, (before, after), wanted)
    for name in after.engines:
        if name in before.engines:
            yield EnginePair(experiment, before, after, name, reference)


def _times(pair: EnginePair) -> Iterator[Change]:
    yield from (change for measure in TIMES if (change := pair.time(measure)))


def _together(pairs: Sequence[EnginePair]) -> Iterator[Change]:
    """Compare each engine's times over all experiments in turns at once, to find changes too small for one alone."""
    import numpy as np

    compared = [one for one in pairs if one.experiment.drive is Drive.TURNS and one.reference not in ("", one.name)]
    for name in dict.fromkeys(one.name for one in compared):
        own = [one for one in compared if one.name == name]
        for measure, time in TIMES.items():
            found = np.concatenate([one.beside(time) for one in own])
            if len(own) > 1 and len(found) >= FEWEST:
                before, after = (np.median(np.concatenate([one.middle(side, time) for one in own])) for side in (0, 1))
                yield Change(
                    experiment=TOGETHER,
                    contestant=name,
                    measure=measure,
                    before=float(np.exp(before)),
                    after=float(np.exp(after)),
                    requests=len(found),
                    reference=" or ".join(dict.fromkeys(one.reference for one in own)),
                    **relative_change(found, crc32(f"{name} {measure}".encode())),
                )


def _reference(files: tuple[Results, Results], sides: Sequence[Answers], wanted: str | None) -> str:
    """The reference of an experiment; empty without one."""
    both = [name for name in sides[0].engines if name in sides[1].engines]
    if wanted is not None:
        return wanted if wanted in both else ""
    known = [results.contestants for results in files]
    same = [name for name in both if name in known[0] and name in known[1] and _version(known, name)]
    others = [name for name in same if not name.startswith("preread-")]
    return next(iter([*others, *(name for name in both if name == "preread-off")]), "")


def _version(known: Sequence[Mapping[str, Any]], name: str) -> bool:
    return bool((known[0][name].version, known[0][name].detail) == (known[1][name].version, known[1][name].detail))


def _judged(change: Change, rate: float, least: float) -> Change:
    return change.model_copy(update={"q": rate, "changed": rate <= LEVEL and is_large(change, least, LEAST_SHARE)})


def _side(file: str, results: Results) -> Side:
    environment = results.header.environment
    return Side(file=file, started=environment.started, command=environment.command)
