"""What computing tokens anew costs, by how many tokens are before them. Knows counts and times only."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["RecomputeCost"]


@dataclass(frozen=True, slots=True)
class RecomputeCost:
    """T(cached, new): the time of computing `new` tokens after `cached` ones, known at the points of a grid.

    Attributes:
        cached: tokens before, ascending.
        new: tokens computed, ascending, each at least 1.
        times: one row for each of `cached`, one entry for each of `new`; any unit.

    Raises:
        ValueError: the times are no grid of these points.
    """

    cached: tuple[int, ...]
    new: tuple[int, ...]
    times: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        fits = self.cached and self.new and min(self.new) > 0 and len(self.times) == len(self.cached)
        if not fits or any(len(row) != len(self.new) for row in self.times):
            raise ValueError(f"times of {len(self.times)} rows are no grid of {self.cached} by {self.new} tokens")

    @classmethod
    def of_record(
        cls, *, cached: Sequence[int], new: Sequence[int], times: Sequence[Sequence[float]]
    ) -> "RecomputeCost":
        """Make it from fields as JSON has them.

        Raises:
            ValueError: they are no grid.
        """
        return cls(tuple(cached), tuple(new), tuple(tuple(float(time) for time in row) for row in times))

    @classmethod
    def uniform(cls) -> "RecomputeCost":
        """Make a cost that is the same for every token."""
        return cls((0,), (1,), ((1.0,),))

    @classmethod
    def of_operations(cls, a_token: float, a_pair: float, *, max_tokens: int) -> "RecomputeCost":
        """Make a cost from operations: so many a token, and so many for each token that it attends to."""
        new = tuple(2**i for i in range(max_tokens.bit_length()))
        cached = (0, *new)
        return cls(
            cached, new, tuple(tuple(n * (a_token + a_pair * (before + n / 2)) for n in new) for before in cached)
        )

    def relative(self) -> "RecomputeCost":
        """Return the same cost in units of one token of the grid's first point."""
        unit = self._rate(self.times[0], 0)
        return RecomputeCost(self.cached, self.new, tuple(tuple(time / unit for time in row) for row in self.times))

    def per_token(self, cached: int, new: int) -> float:
        """Return the mean time of one of `new` tokens after `cached` ones, interpolated between the grid's points."""
        row, low = _between(self.cached, cached)
        column, left = _between(self.new, new)
        below = self.times[min(row + 1, len(self.cached) - 1)]
        right = min(column + 1, len(self.new) - 1)
        upper = _mix(self._rate(self.times[row], column), self._rate(self.times[row], right), left)
        lower = _mix(self._rate(below, column), self._rate(below, right), left)
        return _mix(upper, lower, low)

    def _rate(self, row: Sequence[float], column: int) -> float:
        return row[column] / self.new[column]


def _between(points: Sequence[int], value: int) -> tuple[int, float]:
    """Return the last point that is not above a value, and how far the value is from there to the next."""
    i = max(bisect_right(points, value) - 1, 0)
    if i == len(points) - 1 or value <= points[0]:
        return i, 0.0
    return i, (value - points[i]) / (points[i + 1] - points[i])


def _mix(a: float, b: float, share: float) -> float:
    return a + (b - a) * share
