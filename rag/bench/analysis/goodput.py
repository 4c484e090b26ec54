"""Goodput: the highest rate at which an engine still answers about as soon as when nobody else asks."""

from collections.abc import Sequence
from math import inf

from rag.bench.analysis.models import GoodputFigures, RateStep
from rag.bench.analysis.times import ttft_ms
from rag.bench.suite.goodput import LIMIT, PERCENTILE
from rag.bench.suite.records import AnswerRecord, WindowRecord

__all__ = ["goodput_figures"]


def goodput_figures(
    contestant: str, answers: Sequence[AnswerRecord], windows: Sequence[WindowRecord]
) -> GoodputFigures:
    """Compute an engine's goodput from its windows: one of a single client, the others at a rate each."""
    alone = [one for window in windows if window.rate is None for one in answers if one.unit == window.unit]
    unloaded = _p95(alone)
    limit = None if unloaded is None else LIMIT * unloaded
    tried = sorted((window.rate, window.unit, window) for window in windows if window.rate is not None)
    steps = tuple(
        _step(rate, window, [one for one in answers if one.unit == unit], limit) for rate, unit, window in tried
    )
    failing = next((step.rate for step in steps if not step.passed), None)
    passing = [step.rate for step in steps if failing is None or step.rate < failing]
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
