"""Goodput: the highest rate at which an engine still answers about as soon as when nobody else asks."""

from collections.abc import Mapping, Sequence
from math import inf
from statistics import median

from rag.bench.analysis.models import GoodputFigures, RateStep
from rag.bench.analysis.times import ttft_ms
from rag.bench.suite.goodput import LIMIT, PERCENTILE
from rag.bench.suite.records import AnswerRecord, WindowRecord

__all__ = ["goodput_figures"]


def goodput_figures(
    contestant: str, answers: Sequence[AnswerRecord], windows: Sequence[WindowRecord], repeats: Mapping[str, int]
) -> GoodputFigures:
    """Compute an engine's goodput from its windows: of a single client, and at a rate each.

    Args:
        contestant: its name.
        answers: its own.
        windows: its own.
        repeats: the pass of each unit.
    """
    passes = sorted({repeats[window.unit] for window in windows})
    found = [
        _pass(contestant, answers, [window for window in windows if repeats[window.unit] == one]) for one in passes
    ]
    known = [one for one in found if one.unloaded_ms is not None]
    rates, failing = [one.goodput for one in known], [one.failing for one in known]
    unloaded = median(one.unloaded_ms for one in known if one.unloaded_ms is not None) if known else None
    return GoodputFigures(
        contestant=contestant,
        unloaded_ms=unloaded,
        limit_ms=None if unloaded is None else LIMIT * unloaded,
        steps=tuple(sorted((step for one in found for step in one.steps), key=lambda step: step.rate)),
        goodput=None if None in rates else min((rate for rate in rates if rate is not None), default=None),
        failing=None if None in failing else max((rate for rate in failing if rate is not None), default=None),
        passes=len(known),
    )


def _pass(contestant: str, answers: Sequence[AnswerRecord], windows: Sequence[WindowRecord]) -> GoodputFigures:
    alone = {window.unit for window in windows if window.rate is None}
    # The limit is that of the run: whole answers alone, and without windows that only filled the cache.
    unloaded = _p95([one for one in answers if one.unit in alone and _counts(one)])
    limit = None if unloaded is None else LIMIT * unloaded
    tried = sorted((window.rate, window.unit, window) for window in windows if window.rate is not None)
    steps = tuple(
        _step(rate, window, [one for one in answers if one.unit == unit], limit) for rate, unit, window in tried
    )
    failing = None if limit is None else next((step.rate for step in steps if not step.passed), None)
    passing = [step.rate for step in steps if step.passed and (failing is None or step.rate < failing)]
    return GoodputFigures(
        contestant=contestant,
        unloaded_ms=unloaded,
        limit_ms=limit,
        steps=steps,
        goodput=max(passing, default=None),
        failing=failing,
    )


def _step(rate: float, window: WindowRecord, answers: Sequence[AnswerRecord], limit: float | None) -> RateStep:
    p95 = _p95(answers)
    return RateStep(
        rate=rate,
        n=sum(_counts(answer) for answer in answers),
        p95_ms=p95,
        passed=not window.cut and p95 is not None and limit is not None and p95 <= limit,
        cut=window.cut,
    )


def _counts(answer: AnswerRecord) -> bool:
    return answer.status == "ok" and not answer.warmup


def _p95(answers: Sequence[AnswerRecord]) -> float | None:
    """The percentile where an answer that does not count took forever; None where it is one of those, or of none."""
    import numpy as np

    asked = [answer for answer in answers if not answer.warmup]
    times = sorted((ttft_ms(answer) or inf) if _counts(answer) else inf for answer in asked)
    place = (len(times) - 1) * PERCENTILE / 100
    if not times or times[int(np.ceil(place))] == inf:
        return None
    return float(np.percentile([min(time, 1e12) for time in times], PERCENTILE))
