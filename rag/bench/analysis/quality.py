"""How faithful the variants' answers are, and how much sooner they begin."""

from collections.abc import Sequence
from math import inf, nan
from statistics import median

from rag.bench.analysis.models import QualityFigures
from rag.bench.analysis.resampling import FEWEST, mean
from rag.bench.analysis.times import speedup, times_of
from rag.bench.statistics import Estimate, share_of
from rag.bench.suite.records import QualityRecord

__all__ = ["quality_figures"]

MEASURES = {"kl": inf, "first_kl": inf, "top1": 1.0, "f1": 1.0, "gold_f1": 1.0, "gold": 1.0}  # and their greatest value
TIMES = ("ttft_ms", "full_ms")


def quality_figures(
    records: Sequence[QualityRecord], *, warmup: int = 0, names: Sequence[str] = ()
) -> tuple[QualityFigures, ...]:
    """Average over requests, by number of passages and variant, both in the order in which they come.

    A request that was asked in several passes is one: its values are averaged first.

    Args:
        records: of an experiment.
        warmup: its first requests, whose free answers are left out as their times are.
        names: of variants, in the order in which they are wanted; others follow.
    """
    records = [one for one in records if one.kl is not None or one.request >= warmup]
    places = {name: place for place, name in enumerate(names)}
    found = dict.fromkeys((record.k, record.variant) for record in records)
    keys = sorted(found, key=lambda key: places.get(key[1], len(places)))
    return tuple(
        _variant([one for one in records if (one.k, one.variant) == (k, variant)], k, variant) for k, variant in keys
    )


def _variant(records: Sequence[QualityRecord], k: int, variant: str) -> QualityFigures:
    import numpy as np

    groups: dict[int, list[QualityRecord]] = {}
    for record in records:
        groups.setdefault(record.request, []).append(record)
    requests = list(groups.values())
    own, full = ([_middle([getattr(one, name) for one in group]) for group in requests] for name in TIMES)
    return QualityFigures(
        variant=variant,
        k=k,
        n=len(requests),
        ttft=times_of([own], block=1),
        speedup=speedup(np.log([own]), np.log([full]), paired=True),
        **{name: _mean([_request(group, name) for group in requests], most) for name, most in MEASURES.items()},
    )


def _request(records: Sequence[QualityRecord], name: str) -> float | bool | None:
    """The value of a request: of several passes the mean; a yes or no where all say the same."""
    known = [value for one in records if (value := getattr(one, name)) is not None]
    if not known:
        return None
    return known[0] if len(set(known)) == 1 else float(sum(known) / len(known))


def _middle(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return median(known) if known else nan


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
