"""Intervals for measurements in passes: the same requests once a pass, neighbours in time alike. Knows numbers only.

Values are a grid, [passes, requests], NaN where one is missing. A resample draws passes, and blocks of neighbouring
requests, the same ones for every pass: what lasts for a while (a queue, a slow minute) stays together, and what belongs
to a request or to a pass is drawn as one thing. One pass and one block fewer are drawn than there are, which makes the
variance unbiased where they are few; then the draws are spread as Student's t is wider than the normal, with
Satterthwaite's degrees of freedom. Sources: Kuensch, Annals of Statistics 17 (1989), blocks; McCarthy and Snowden, "The
bootstrap and finite population sampling" (1985), one fewer; Owen, Annals of Applied Statistics 1 (2007), both ways of a
grid; Satterthwaite, Biometrics Bulletin 2 (1946).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any

from rag.bench.statistics import Estimate

if TYPE_CHECKING:
    import numpy as np

    Floats = np.ndarray[Any, np.dtype[np.float64]]
    Indices = tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]
    Statistic = Callable[[tuple["Floats", ...]], "Floats"]  # of the grids' drawn cells, over their last axis

__all__ = ["FEWEST", "RESAMPLES", "Drawn", "chance", "enough_for", "lasting", "mean", "quantile", "quantile_ratio"]

RESAMPLES = 2_000
MANY = 20_000  # where a small chance is to be told
SURE = 20  # draws on the other side of 0 below which more draws tell how few they are
PARTS = 200  # resamples that tell how much of the variance is between passes, and between blocks
FEWEST = 5  # requests: simulated medians of as few lie in their interval in 96 of 100 samples


@dataclass(frozen=True)
class Drawn:
    """A value with draws of what it might have been.

    Attributes:
        value: as measured.
        draws: [resamples].
    """

    value: float
    draws: "Floats"

    def estimate(self, scale: "Callable[[Any], Any]" = lambda value: value) -> Estimate:
        """Return the value with its 95 % interval, both on another scale (such as `numpy.exp`) if one is given."""
        import numpy as np

        low, high = np.percentile(self.draws, [2.5, 97.5])
        return Estimate(value=float(scale(self.value)), low=float(scale(low)), high=float(scale(high)))

    def p_value(self) -> float:
        """Return how likely a value at least as far from 0 is if the truth is 0; two-sided."""
        beyond = min(int((self.draws <= 0).sum()), int((self.draws >= 0).sum()))
        return min(1.0, 2 * (beyond + 1) / (len(self.draws) + 1))


def enough_for(share: float, values: int, *, interval: bool) -> bool:
    """Return whether so many values tell a quantile, or its interval.

    A quantile needs a value beyond it on average. Its interval needs one beyond it in nearly every sample: 51 values
    for p90, 528 for p99; a median, whose sides are alike, needs 5.
    """
    beyond = min(share, 1 - share)
    if not interval:
        return values * beyond >= 1 - 1e-9
    return values >= FEWEST if share == 0.5 else (1 - beyond) ** values < 0.005


def chance(drawn: Callable[[int], Drawn]) -> float:
    """Return the p value of what `drawn` gives for a number of resamples; a small one is told from many."""
    found = drawn(RESAMPLES).p_value()
    return found if found * RESAMPLES > 2 * SURE else drawn(MANY).p_value()


def lasting(requests: int) -> int:
    """Return the length of blocks for values whose neighbours are alike: about the root of their number."""
    return max(1, round(sqrt(requests)))


def quantile(values: "Floats", share: float, *, block: int, seed: int = 0, resamples: int = RESAMPLES) -> Drawn:
    """Return a quantile of all cells; `values` may be of any scale, times had better be logarithms."""
    return _drawn((values,), lambda cells: _quantile(cells[0], share), block, seed, resamples)


def quantile_ratio(
    above: "Floats", below: "Floats", share: float, *, block: int, seed: int = 0, resamples: int = RESAMPLES
) -> Drawn:
    """Return the difference of two grids' quantiles (for logarithms: of their ratio), their requests being the same."""

    def difference(cells: "tuple[Floats, ...]") -> "Floats":
        return _quantile(cells[0], share) - _quantile(cells[1], share)

    return _drawn((above, below), difference, block, seed, resamples)


def mean(values: "Floats", *, block: int, seed: int = 0, resamples: int = RESAMPLES) -> Drawn:
    """Return the mean of all cells, none of which may be missing."""
    return _drawn((values,), lambda cells: cells[0].mean(axis=-1), block, seed, resamples)


def _drawn(grids: "tuple[Floats, ...]", statistic: "Statistic", block: int, seed: int, resamples: int) -> Drawn:
    import numpy as np

    requests = grids[0].shape[1]
    assert all(grid.shape[1] == requests for grid in grids), "grids are of the same requests"
    generator = np.random.default_rng(seed)
    value = float(statistic(tuple(grid.reshape(1, -1) for grid in grids))[0])

    def draw(count: int, *, passes: bool, blocks: bool) -> "Floats":
        columns = _columns(generator, count, requests, block if blocks else 0)
        cells = tuple(_cells(grid, _rows(generator, count, len(grid), drawn=passes), columns) for grid in grids)
        found = statistic(cells)
        known: Floats = found[np.isfinite(found)]  # a resample of missing cells alone says nothing
        return known

    found = draw(resamples, passes=True, blocks=True)
    variances = draw(PARTS, passes=True, blocks=False).var(), draw(PARTS, passes=False, blocks=True).var()
    freedoms = min(len(grid) for grid in grids) - 1, ceil(requests / block) - 1
    freedom = _satterthwaite((float(variances[0]), float(variances[1])), freedoms)
    wider = np.sqrt(freedom / generator.chisquare(freedom, len(found)))
    return Drawn(value, value + (found - value) * wider)


def _satterthwaite(variances: tuple[float, float], freedoms: tuple[int, int]) -> float:
    """The degrees of freedom of a sum of independent variances; a source with one member has no variance to tell."""
    known = [(variance, freedom) for variance, freedom in zip(variances, freedoms, strict=True) if freedom > 0]
    total = sum(variance for variance, _ in known)
    return total**2 / sum(variance**2 / freedom for variance, freedom in known) if total > 0 else 1.0


def _rows(generator: "np.random.Generator", count: int, passes: int, *, drawn: bool) -> "Any":
    import numpy as np

    if not drawn or passes == 1:
        return np.broadcast_to(np.arange(passes), (count, passes))
    return generator.integers(passes, size=(count, passes - 1))


def _columns(generator: "np.random.Generator", count: int, requests: int, block: int) -> "Any":
    """Circular blocks of a length, one fewer than cover all requests; every request once for length 0."""
    import numpy as np

    if not block:
        return np.broadcast_to(np.arange(requests), (count, requests))
    blocks = max(1, ceil(requests / block) - 1)
    starts = generator.integers(requests, size=(count, blocks))
    return ((starts[:, :, None] + np.arange(block)) % requests).reshape(count, -1)


def _cells(grid: "Floats", rows: "Any", columns: "Any") -> "Floats":
    drawn: Floats = grid[rows[:, :, None], columns[:, None, :]]
    return drawn.reshape(len(rows), -1)


def _quantile(cells: "Floats", share: float) -> "Floats":
    """Quantiles of rows whose missing values are NaN, interpolated linearly; NaN for a row of nothing else."""
    import numpy as np

    ordered = np.sort(cells, axis=-1)  # NaN last
    places = np.maximum((~np.isnan(cells)).sum(axis=-1) - 1, 0) * share
    lower, rows = np.floor(places).astype(int), np.arange(len(cells))
    upper = np.ceil(places).astype(int)
    below, above = ordered[rows, lower], ordered[rows, upper]
    found: Floats = below + (above - below) * (places - lower)
    return found
