"""What takes part in an experiment: an engine that is given requests and tells when its tokens came."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rag.bench.suite.requests import BenchRequest, RequestStream

__all__ = ["AGAIN", "OWN", "SHORT", "Contestant", "Event", "Footprint", "Prepared"]

# Our own engine: every prompt computed; exact reuse; the same with passages in the order that suits the cache; chunk
# reuse at the certified repair, with passages read ahead. `preread-chunk@N` repairs N tokens, certified or not.
OWN = ("preread-off", "preread-exact", "preread-order", "preread-chunk")
SHORT = "short"  # gives too few tokens, on purpose
AGAIN = "#2"  # ends the name of an engine that takes part once more, in a process of its own


@dataclass(frozen=True, slots=True)
class Event:
    """News of a request.

    Attributes:
        number: of the request.
        at: when it happened, in seconds of `time.monotonic` (the same clock in every process of a machine).
        tokens: that came with it; ids, or nothing where an engine tells only how many.
        count: how many tokens came with it.
        started: when the engine began to compute its prompt, told with its first tokens or its last; else None.
        done: whether it is the last one.
        cached: with the last one: prompt tokens whose KV was not computed, by tier; None where an engine does not tell.
        outcomes: with the last one: passage tokens by outcome (path, canonical, shifted, computed).
        repair: with the last one: tokens recomputed a shifted passage; None where there was no chunk reuse.
        certified: with the last one: whether a certificate covers what was reused; None where nothing needs one.
        error: why it failed; then it is the last one.
    """

    number: int
    at: float
    tokens: tuple[int, ...] = ()
    count: int = 0
    started: float | None = None
    done: bool = False
    cached: Mapping[str, int] | None = None
    outcomes: Mapping[str, int] = field(default_factory=dict)
    repair: int | None = None
    certified: bool | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What an engine did before the first request, as ingestion does it.

    Attributes:
        tokens: of passages, read ahead.
        seconds: that it took.
    """

    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Footprint:
    """What an engine holds, in bytes.

    Attributes:
        memory: resident now, shared pages counted by their share; None where it cannot be known (another machine).
        disk: KV kept on disk.
        cpu_seconds: processor time since its start.
    """

    memory: int | None = None
    disk: int = 0
    cpu_seconds: float | None = None


class Contestant(Protocol):
    """An engine under test. It stands still between `pause` and `resume`; it is paused when it is opened.

    It is asked, prepared and cancelled while it is awake (`lineup.awake`).

    Every method may raise `PeerError`: it is gone, hangs, or refuses.
    """

    name: str
    version: str
    detail: str

    def prepare(self, stream: RequestStream) -> Prepared:
        """Forget everything, then read ahead what ingestion would (chunk reuse), untimed by the experiment."""
        ...

    def submit(self, request: BenchRequest) -> None:
        """Hand a request over; returns at once."""
        ...

    def events(self, timeout: float) -> Sequence[Event]:
        """Return what happened since the last call, waiting up to so many seconds for the first of it."""
        ...

    def cancel(self) -> None:
        """Drop every request that has not ended; their events may still come until this returns, none after."""
        ...

    def footprint(self) -> Footprint:
        """Measure what it holds."""
        ...

    def pause(self) -> None:
        """Let it stand still, so that it takes nothing from the others."""
        ...

    def resume(self) -> None:
        """Let it go on."""
        ...

    def close(self) -> None:
        """End it and give back what it holds."""
        ...
