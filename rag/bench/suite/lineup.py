"""The engines that take part, and the way out for one that fails: the others go on without it."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from rag.bench.peers.errors import PeerError
from rag.bench.suite.contestant import Contestant
from rag.bench.suite.records import SkippedRecord

__all__ = ["Lineup", "awake"]


class Lineup:
    """Engines by name.

    Args:
        contestants: that were opened; whoever opened them closes them, once more where one was dropped.

    Attributes:
        dropped: those that failed, in order.
    """

    def __init__(self, contestants: Iterable[Contestant] = ()) -> None:
        self.dropped: list[SkippedRecord] = []
        self._present = {one.name: one for one in contestants}

    def of(self, names: Sequence[str]) -> list[Contestant]:
        """Return those of these names that are there."""
        return [self._present[name] for name in names if name in self._present]

    def in_turn(self, names: Sequence[str], repeat: int) -> list[Contestant]:
        """Return them in the order of a pass: every second one goes backwards, so that nobody is always first."""
        return self.of(names)[:: -1 if repeat % 2 else 1]

    def __contains__(self, name: object) -> bool:
        return name in self._present

    def drop(self, contestant: Contestant, unit: str, error: PeerError) -> SkippedRecord:
        """End an engine that failed, and say so."""
        self._present.pop(contestant.name, None)
        with suppress(PeerError):
            contestant.close()
        reason = f"failed in {unit} and was left out from then on: {error}"
        self.dropped.append(SkippedRecord(name=contestant.name, reason=reason, unit=unit))
        return self.dropped[-1]


@contextmanager
def awake(contestant: Contestant) -> Iterator[None]:
    """Let an engine run until the block ends.

    Raises:
        PeerError: it cannot be woken, or not be stopped afterwards.
    """
    contestant.resume()
    try:
        yield
    except BaseException:
        with suppress(PeerError):  # of an engine that is gone; what is on its way says more
            contestant.pause()
        raise
    contestant.pause()
