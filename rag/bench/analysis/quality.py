"""How faithful the variants' answers are, and how much sooner they begin."""

from collections.abc import Sequence
from math import inf

from rag.bench.analysis.models import QualityFigures
from rag.bench.analysis.resampling import FEWEST, mean
from rag.bench.analysis.times import speedup, times_of
from rag.bench.statistics import Estimate, share_of
from rag.bench.suite.records import QualityRecord

__all__ = ["quality_figures"]

MEASURES = {"kl": inf, "first_kl": inf, "top1": 1.0, "f1": 1.0, "gold_f1": 1.0, "gold": 1.0}  # and their greatest value


def quality_figures(records: Sequence[QualityRecord]) -> tuple[QualityFigures, ...]:
    """Average over requests, by number of passages and variant, both in the order in which they come."""
    keys = dict.fromkeys((record.k, record.variant) for record in records)
    return tuple(
        _variant([one for one in records if (one.k, one.variant) == (k, variant)], k, variant) for k, variant in keys
    )


def _variant(records: Sequence[QualityRecord], k: int, variant: str) -> QualityFigures:
    import numpy as np

    own = [record.ttft_ms if record.ttft_ms is not None else np.nan for record in records]
    full = [record.full_ms if record.full_ms is not None else np.nan for record in records]
    return QualityFigures(
        variant=variant,
        k=k,
        n=len(records),
        ttft=times_of([own], block=1),
        speedup=speedup(np.log([own]), np.log([full]), paired=True),
        **{name: _mean([getattr(one, name) for one in records], most) for name, most in MEASURES.items()},
    )


def _mean(values: Sequence[float | bool | None], most: float) -> Estimate | None:
    """The mean with its interval, which is cut where values end; that of a share of yes and no is Wilson's."""
    import numpy as np

    known = [value for value in values if value is not None]
    if not known:
        return None
    if all(isinstance(value, bool) for value in known):
        return share_of(sum(map(bool, known)), len(known))
    numbers = [float(value) for value in known]
    drawn = mean(np.asarray([numbers]), block=1)
    if len(numbers) < FEWEST:
        return Estimate(value=drawn.value)
    found = drawn.estimate()
    assert found.low is not None, "there are draws"
    assert found.high is not None, "there are draws"
    return Estimate(value=found.value, low=max(0.0, found.low), high=min(most, found.high))
