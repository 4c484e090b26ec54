"""How far a benchmark is, told to whoever shows it."""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["BenchEvent", "Progress"]


@dataclass(frozen=True, slots=True)
class BenchEvent:
    """Progress: so much of a stage is done; `total` is None where it is not known."""

    stage: str
    done: int
    total: int | None


Progress = Callable[[BenchEvent], None]
