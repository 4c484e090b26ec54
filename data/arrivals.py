"""When requests come: times in seconds from the start, drawn from a seed, whatever is asked then.

The gaps of `poisson` are exponential, as in RAGCache's evaluation (arXiv 2404.12457). Those of `bursty` are
gamma-distributed with a coefficient of variation above 1, as is usual in studies of serving under bursts; `recorded`
keeps the times of a trace.
"""

import itertools
import math
import random
from collections.abc import Sequence

from data.errors import WorkloadError

__all__ = ["bursty_times", "poisson_times", "recorded_times"]


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
        WorkloadError: rate or cv is not a number above 0.
    """
    for name, value in (("rate", rate), ("cv", cv)):
        if not (math.isfinite(value) and value > 0):
            raise WorkloadError(f"{name} is {value}: give a number above 0")
    rng = random.Random(f"arrivals/{seed}")
    shape = cv**-2
    gaps = (rng.gammavariate(shape, 1 / shape) / rate for _ in range(count))
    return tuple(itertools.accumulate(gaps))


def recorded_times(times: Sequence[float], *, start: float = 0.0, scale: float = 1.0) -> tuple[float, ...]:
    """Return recorded times counted from `start` and multiplied by `scale`.

    Raises:
        WorkloadError: the scale is not a number above 0.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise WorkloadError(f"scale is {scale}: give a number above 0")
    return tuple((time - start) * scale for time in times)
