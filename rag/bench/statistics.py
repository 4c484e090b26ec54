"""Summaries of measured times. Knows numbers only."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

__all__ = ["Interval", "Summary", "median_ratio", "summarise"]

RESAMPLES = 10_000
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

    assert numerators, "a ratio needs at least one pair"
    assert len(numerators) == len(denominators), f"{len(numerators)} numerators, {len(denominators)} denominators"
    ratios = np.asarray(numerators, float) / np.asarray(denominators, float)
    generator = np.random.default_rng(seed)
    medians = [
        np.median(ratios[generator.integers(len(ratios), size=(min(CHUNK, resamples - done), len(ratios)))], axis=1)
        for done in range(0, resamples, CHUNK)
    ]
    low, high = np.percentile(np.concatenate(medians), [2.5, 97.5])
    return Interval(value=float(np.median(ratios)), low=float(low), high=float(high))
