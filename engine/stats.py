"""What the engine counts, and what it reports of one request's use of the cache."""

from dataclasses import dataclass, field

from engine.ladder import Outcome
from engine.prompt import SegmentKind
from engine.request import Request

__all__ = ["CacheReport", "EngineStats", "SegmentReport", "Timings", "Totals", "cache_report"]


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """One segment's use of the cache: its rung, the tokens not computed, and where their KV came from."""

    kind: SegmentKind
    name: str
    num_tokens: int
    hit_tokens: int
    outcome: Outcome
    tier: str | None


@dataclass(frozen=True, slots=True)
class CacheReport:
    """A request's use of the cache, at its first admission; `load_seconds` went into reading KV from the disk."""

    segments: tuple[SegmentReport, ...] = ()
    hit_tokens: dict[str, int] = field(default_factory=lambda: {"device": 0, "disk": 0})
    load_seconds: float = 0.0

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens whose KV was not computed in this request."""
        return sum(self.hit_tokens.values())


@dataclass(slots=True)
class Timings:
    """When things happened to a request, in seconds of `time.perf_counter`; None has not happened."""

    arrival: float
    first_scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None


@dataclass(slots=True)
class Totals:
    """Counters since the engine started.

    Finished are all that have ended; some of them were cancelled, others failed in a step, others came too late.
    Of the drafted tokens, the accepted ones were right and became output tokens without a step of their own.
    """

    requests: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    late: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of the engine: load, blocks by state, counters."""

    running: int
    waiting: int
    num_blocks: int
    free_blocks: int
    cached_blocks: int
    preemptions: int
    evicted_blocks: int
    totals: Totals


def cache_report(request: Request) -> CacheReport:
    """Tell of each segment how it got its KV; empty for a request that was never admitted.

    A passage (or the template) that was computed beforehand because this request needs it counts as computed.
    """
    computed = {
        segment.tokens
        for other in request.prerequisites
        for segment, placement in zip(other.prompt.segments, other.first_admission, strict=False)
        if placement.hit_tokens < placement.num_tokens
    }
    reports = []
    for segment, placement in zip(request.prompt.segments, request.first_admission, strict=False):
        fresh = segment.sealed and segment.tokens in computed
        hit_tokens = 0 if fresh else placement.hit_tokens
        outcome = Outcome.COMPUTED if fresh else placement.outcome
        tier = ("disk" if placement.from_disk else "device") if hit_tokens else None
        report = SegmentReport(segment.kind, segment.name, placement.num_tokens, hit_tokens, outcome, tier)
        reports.append(report)
    hits = {tier: sum(report.hit_tokens for report in reports if report.tier == tier) for tier in ("device", "disk")}
    return CacheReport(tuple(reports), hits, sum(one.load_seconds for one in (request, *request.prerequisites)))
