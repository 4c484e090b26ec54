"""How far a benchmark is, told to whoever shows it."""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["BenchEvent", "Counter", "Progress"]


@dataclass(frozen=True, slots=True)
class BenchEvent:
    """Progress: so much of a stage is done; `total` is None where it is not known."""

    stage: str
    done: int
    total: int | None


Progress = Callable[[BenchEvent], None]


class Counter:
    """Tells the progress of a stage piece by piece.

    Args:
        progress: whom to tell.
        stage: its name.
        total: how many pieces it has.
    """

    def __init__(self, progress: Progress, stage: str, total: int) -> None:
        self._progress, self._stage, self._total = progress, stage, total
        self._done = 0

    def advance(self) -> None:
        """Count one more piece."""
        self._done += 1
        self._progress(BenchEvent(self._stage, self._done, self._total))
