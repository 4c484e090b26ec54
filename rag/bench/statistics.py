"""Summaries of measured times. Knows numbers only."""

from collections.abc import Callable, Sequence
from math import sqrt
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np

    Floats = np.ndarray[Any, np.dtype[np.float64]]
    Statistic = Callable[[Floats, Floats], Any]  # over the last axis of both

__all__ = [
    "Estimate", "Interval", "Summary", "false_discovery_rates", "median_ratio", "ratio_of_means", "share_of",
    "summarise",
]  # fmt: skip

RESAMPLES = 10_000
NORMAL = 1.959964  # standard deviations that 95 % of a normal distribution lie within
CHUNK = 1_000  # resamples at a time, so that memory stays small for long streams


class Summary(BaseModel):
    """How times are distributed, in their own unit; `p90` interpolates linearly between neighbours."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int
    median: float
    p90: float
    mean: float
    least: float
    most: float


class Interval(BaseModel):
    """A value with its 95 % interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float
    high: float


class Estimate(BaseModel):
    """A value with its 95 % interval, which is None where too few values were measured for one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float | None = None
    high: float | None = None


def summarise(values: Sequence[float]) -> Summary:
    """Summarise at least one value."""
    import numpy as np

    assert values, "nothing to summarise"
    return Summary(
        n=len(values),
        median=float(np.median(values)),
        p90=float(np.percentile(values, 90)),
        mean=float(np.mean(values)),
        least=min(values),
        most=max(values),
    )


def median_ratio(
    numerators: Sequence[float], denominators: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Return the median of the pairs' ratios with its percentile bootstrap interval, pairs being resampled.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.

    Args:
        numerators: at least one time.
        denominators: as many, each above 0, each measured beside its numerator.
        seed: of the resampling.
        resamples: how many.
    """
    import numpy as np

    return _bootstrap(numerators, denominators, lambda a, b: np.median(a / b, axis=-1), seed, resamples)


def ratio_of_means(
    numerators: Sequence[float], denominators: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Return the ratio of the two means with its interval; arguments and source are those of `median_ratio`."""
    return _bootstrap(numerators, denominators, lambda a, b: a.mean(axis=-1) / b.mean(axis=-1), seed, resamples)


def share_of(successes: int, trials: int) -> Estimate:
    """Return a share with its interval, which stays between 0 and 1 and is there for shares of 0 and 1 too.

    Source: Wilson, Journal of the American Statistical Association 22 (1927).
    """
    assert 0 <= successes <= trials, f"{successes} of {trials}"
    assert trials, "a share of nothing"
    share, square = successes / trials, NORMAL**2 / trials
    middle = (share + square / 2) / (1 + square)
    reach = NORMAL * sqrt(share * (1 - share) / trials + square / (4 * trials)) / (1 + square)
    return Estimate(value=share, low=max(0.0, middle - reach), high=min(1.0, middle + reach))


def false_discovery_rates(chances: Sequence[float]) -> list[float]:
    """Return, for each p value, the least false discovery rate at which it is a discovery.

    Source: Benjamini and Hochberg, Journal of the Royal Statistical Society B 57 (1995).
    """
    ordered = sorted(range(len(chances)), key=chances.__getitem__, reverse=True)
    rates, least = [1.0] * len(chances), 1.0
    for rank, place in zip(range(len(chances), 0, -1), ordered, strict=True):
        least = min(least, chances[place] * len(chances) / rank)
        rates[place] = least
    return rates


def _bootstrap(
    numerators: Sequence[float], denominators: Sequence[float], statistic: "Statistic", seed: int, resamples: int
) -> Interval:
    import numpy as np

    assert numerators, "a ratio needs at least one pair"
    assert len(numerators) == len(denominators), f"{len(numerators)} numerators, {len(denominators)} denominators"
    above, below = np.asarray(numerators, float), np.asarray(denominators, float)
    generator = np.random.default_rng(seed)
    found = []
    for done in range(0, resamples, CHUNK):
        drawn = generator.integers(len(above), size=(min(CHUNK, resamples - done), len(above)))
        found.append(statistic(above[drawn], below[drawn]))
    low, high = np.percentile(np.concatenate(found), [2.5, 97.5])
    return Interval(value=float(statistic(above, below)), low=float(low), high=float(high))
