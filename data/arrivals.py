"""When requests come: times in seconds from the start, drawn from a seed, whatever is asked then.

The gaps of `poisson` are exponential, as in RAGCache's evaluation (arXiv 2404.12457). Those of `bursty` are
gamma-distributed with a coefficient of variation above 1, as is usual in studies of serving under bursts; `recorded`
keeps the times of a trace.
"""

import itertools
import math
import random
from collections.abc import Iterable, Sequence

from data.errors import WorkloadError

__all__ = ["bursty_times", "poisson_times", "recorded_times"]

LEAST_CV, MOST_CV = 0.01, 100.0  # beyond, the gaps are all the same, or all but a few are 0


def poisson_times(count: int, rate: float, seed: int) -> tuple[float, ...]:
    """Draw so many arrivals of a Poisson process; the first comes after a gap, too.

    The same seed at another rate gives the same gaps, stretched.

    Args:
        count: how many, 0 or more.
        rate: mean arrivals a second.
        seed: of the gaps.

    Raises:
        WorkloadError: the rate is not a number above 0.
    """
    return bursty_times(count, rate, 1.0, seed)


def bursty_times(count: int, rate: float, cv: float, seed: int) -> tuple[float, ...]:
    """Draw arrivals whose gaps follow a gamma distribution.

    Args:
        count: how many, 0 or more.
        rate: mean arrivals a second.
        cv: standard deviation of the gaps over their mean: 1 is a Poisson process, more comes in bursts.
        seed: of the gaps.

    Raises:
        WorkloadError: the rate is not a number above 0 that the times can be told by, or cv is not from 0.01 to 100.
    """
    _check_positive("rate", rate)
    if not LEAST_CV <= cv <= MOST_CV:
        raise WorkloadError(f"cv is {cv}: give a number from {LEAST_CV:g} to {MOST_CV:g}")
    rng = random.Random(f"arrivals/{seed}")
    shape = cv**-2
    gaps = (rng.gammavariate(shape, 1 / shape) / rate for _ in range(count))
    return _finite("rate", rate, itertools.accumulate(gaps))


def recorded_times(times: Sequence[float], *, start: float = 0.0, scale: float = 1.0) -> tuple[float, ...]:
    """Return recorded times counted from `start` and multiplied by `scale`.

    Raises:
        WorkloadError: the scale is not a number above 0 that the times can be told by.
    """
    _check_positive("scale", scale)
    return _finite("scale", scale, ((time - start) * scale for time in times))


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise WorkloadError(f"{name} is {value}: give a number above 0")


def _finite(name: str, value: float, times: Iterable[float]) -> tuple[float, ...]:
    kept = tuple(times)
    if not all(map(math.isfinite, kept)):
        raise WorkloadError(f"{name} is {value}: requests would never come; give one nearer to 1")
    return kept
