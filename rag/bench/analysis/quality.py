"""How faithful the variants' answers are, and how much sooner they begin."""

from collections.abc import Sequence

from rag.bench.analysis.models import QualityFigures
from rag.bench.analysis.resampling import FEWEST, mean
from rag.bench.analysis.times import speedup, times_of
from rag.bench.statistics import Estimate
from rag.bench.suite.records import QualityRecord

__all__ = ["quality_figures"]

MEASURES = ("kl", "first_kl", "top1", "f1", "gold_f1", "gold")


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
        **{name: _mean([getattr(record, name) for record in records]) for name in MEASURES},
    )


def _mean(values: Sequence[float | None]) -> Estimate | None:
    import numpy as np

    known = [float(value) for value in values if value is not None]
    if not known:
        return None
    drawn = mean(np.asarray([known]), block=1)
    return drawn.estimate() if len(known) >= FEWEST else Estimate(value=drawn.value)
