"""What one sequence of a step reads and computes. Knows no tensors, so that bookkeeping can use it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kernels.errors import PlanError

__all__ = ["Run", "SequencePlan"]


@dataclass(frozen=True, slots=True)
class Run:
    """KV slots of contiguous prompt positions; the first token is at slot 0 of the first block.

    Attributes:
        block_ids: blocks in order; only the first `ceil(num_tokens / block_size)` are read.
        num_tokens: valid tokens; slots beyond them are never read.
        start: prompt position of the first token.
        shift: `start` minus the position at which the KV was computed.
    """

    block_ids: tuple[int, ...]
    num_tokens: int
    start: int
    shift: int = 0

    @property
    def end(self) -> int:
        """Return the prompt position after the last token."""
        return self.start + self.num_tokens

    def check(self, block_size: int) -> None:
        """Raise `PlanError` unless the run is readable with blocks of `block_size` slots."""
        if self.num_tokens < 0 or self.start < 0:
            raise PlanError(f"{self} has a negative length or start; both count tokens from 0")
        if self.start < self.shift:
            raise PlanError(
                f"a run at position {self.start} with shift {self.shift} was computed before position 0; "
                "shift is the prompt position minus the computed position"
            )
        if self.num_tokens > len(self.block_ids) * block_size:
            raise PlanError(
                f"a run of {self.num_tokens} tokens does not fit {len(self.block_ids)} blocks of "
                f"{block_size}; give it more blocks"
            )


@dataclass(frozen=True, slots=True)
class SequencePlan:
    """The query rows of one sequence in this step, and every run that they may see.

    A key is visible iff its prompt position is not after the query's (and inside the sliding window).

    Attributes:
        query_positions: prompt positions of the query rows, ascending; gaps between spans are allowed.
        runs: ascending and disjoint; holes between runs are allowed.
    """

    query_positions: Sequence[int]
    runs: tuple[Run, ...]

    def check(self, block_size: int) -> None:
        """Raise `PlanError` unless positions and runs are ascending and every run is readable."""
        for run in self.runs:
            run.check(block_size)
        for before, after in pairwise(run for run in self.runs if run.num_tokens):
            if after.start < before.end:
                raise PlanError(
                    f"the run at position {after.start} starts before the one ending at {before.end}; "
                    "give runs in ascending order without overlap"
                )
        if not _is_ascending(self.query_positions):
            raise PlanError(f"query positions {list(self.query_positions)[:8]}... must be ascending, each once")

    def spans(self) -> Iterator[range]:
        """Yield the query positions as intervals of consecutive positions."""
        positions = self.query_positions
        if not len(positions):
            return
        first = previous = positions[0]
        for position in positions[1:]:
            if position != previous + 1:
                yield range(first, previous + 1)
                first = position
            previous = position
        yield range(first, previous + 1)


def _is_ascending(positions: Sequence[int]) -> bool:
    if isinstance(positions, range):
        return positions.step > 0 and (not positions or positions[0] >= 0)
    return all(a < b for a, b in pairwise(positions)) and (not positions or positions[0] >= 0)
