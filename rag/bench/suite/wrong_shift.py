"""Reuse broken on purpose, to see that the benchmark sees it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from engine.batch import Batch
    from engine.engine import Engine

__all__ = ["wrong_shift"]


@contextmanager
def wrong_shift(engine: "Engine", by: int = 7) -> Iterator[None]:
    """Let every shifted run be attended to as if its KV had been computed so many positions earlier.

    Args:
        engine: nobody else uses it.
        by: tokens; at most the template's length.
    """
    runner = engine.runner
    run = runner.run

    def run_wrong(batch: "Batch") -> "Tensor":
        return run(_shifted(batch, by))

    vars(runner)["run"] = run_wrong
    try:
        yield
    finally:
        del vars(runner)["run"]


def _shifted(batch: "Batch", by: int) -> "Batch":
    sequences = []
    for sequence in batch.sequences:
        runs = tuple(replace(run, shift=run.shift + by * bool(run.shift)) for run in sequence.runs)
        sequences.append(replace(sequence, runs=runs))
    return replace(batch, sequences=tuple(sequences))
