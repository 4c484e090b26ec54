"""What a run of the trace benchmark leaves behind."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from engine.prompt import SegmentKind
from engine.stats import CacheReport
from rag.bench.environment import Environment

__all__ = ["FORMAT", "Answer", "Figures", "Percentiles", "TraceReport", "TraceRun", "TraceSetting", "Variant"]

FORMAT = "preread-bench-trace-1"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Variant(_Part):
    """How requests meet the cache.

    Attributes:
        reuse: exact or chunk.
        order: score (as retrieved) or cache.
        policy: of eviction.
        device: tokens that the block pool holds; None is enough for everything.
    """

    reuse: str
    order: str
    policy: str
    device: int | None


class Answer(_Part):
    """What one request found cached. Empty lists where its prompt has no passages.

    Attributes:
        passages: tokens of each passage, in the order in which they were read.
        hits: of them, those whose KV was not computed for this request.
        disk: of those, the ones that came from the disk.
        outcomes: the rung of each passage.
        ttft_ms: from submitting it to its first token; None in a simulation.
    """

    passages: list[int]
    hits: list[int]
    disk: int
    outcomes: list[str]
    ttft_ms: float | None = None

    @classmethod
    def of(cls, report: CacheReport, ttft_ms: float | None = None) -> "Answer":
        """Make it from the engine's own report."""
        passages = [segment for segment in report.segments if segment.kind is SegmentKind.PASSAGE]
        return cls(
            passages=[one.num_tokens for one in passages],
            hits=[one.hit_tokens for one in passages],
            disk=sum(one.hit_tokens for one in passages if one.tier == "disk"),
            outcomes=[one.outcome.value for one in passages],
            ttft_ms=ttft_ms,
        )


class Percentiles(_Part):
    """Of a time, in its own unit; interpolated linearly between neighbours."""

    p50: float
    p90: float
    p99: float


class Figures(_Part):
    """What follows from the answers of a run.

    Attributes:
        requests: how many.
        passages: how many those had together.
        passage_tokens: in these passages.
        hit_tokens: of them, those whose KV was not computed for the request, by tier.
        passage_hit_rate: their share.
        passage_hit_rate_beyond_repair: the same without the first tokens of each passage, which chunk reuse computes
            in context by design.
        outcomes: passages by rung.
        ttft_ms: None in a simulation.
    """

    requests: int
    passages: int
    passage_tokens: int
    hit_tokens: dict[str, int]
    passage_hit_rate: float
    passage_hit_rate_beyond_repair: float
    outcomes: dict[str, int]
    ttft_ms: Percentiles | None

    @classmethod
    def of(cls, answers: Sequence[Answer], *, repair: int) -> "Figures":
        """Compute them.

        Args:
            answers: at least one.
            repair: tokens at the head of each passage that do not count beyond the repair.
        """
        passages = [
            (length, hit, outcome)
            for answer in answers
            for length, hit, outcome in zip(answer.passages, answer.hits, answer.outcomes, strict=True)
        ]
        tokens, hits = sum(one[0] for one in passages), sum(one[1] for one in passages)
        beyond = sum(max(length - repair, 0) for length, _, _ in passages)
        hits_beyond = sum(hit if outcome == "shifted" else max(hit - repair, 0) for _, hit, outcome in passages)
        disk = sum(answer.disk for answer in answers)
        return cls(
            requests=len(answers),
            passages=len(passages),
            passage_tokens=tokens,
            hit_tokens={"device": hits - disk, "disk": disk},
            passage_hit_rate=hits / max(tokens, 1),
            passage_hit_rate_beyond_repair=hits_beyond / max(beyond, 1),
            outcomes={name: sum(one[2] == name for one in passages) for name in sorted({one[2] for one in passages})},
            ttft_ms=_percentiles([answer.ttft_ms for answer in answers if answer.ttft_ms is not None]),
        )


class TraceRun(_Part):
    """One way of meeting the cache.

    Attributes:
        variant: which.
        device_blocks: of the pool.
        figures: of all its answers.
        evicted_blocks: that left the pool.
        seconds: that it took.
        answers: one a request, in order.
    """

    variant: Variant
    device_blocks: int
    figures: Figures
    evicted_blocks: int
    seconds: float
    answers: list[Answer]


class TraceSetting(_Part):
    """What was asked.

    Attributes:
        trace: its name.
        first: which of its requests came first, from 0.
        distinct_passages: in all requests.
        distinct_tokens: in those.
        store: whether the canonical KV of every passage was on disk before the first request.
        repair: tokens that chunk reuse computes at a shifted passage's head.
        simulated: whether nothing was computed.
        model: whose tokens and template the prompts have.
        dtype: compute mode; None in a simulation.
        block_size: of the pool.
        fill_seconds: that it took to compute and store the passages; None where nothing was.
    """

    trace: str
    first: int
    distinct_passages: int
    distinct_tokens: int
    store: bool
    repair: int
    simulated: bool
    model: str
    dtype: str | None
    block_size: int
    fill_seconds: float | None = None


class TraceReport(_Part):
    """The report. The first figures are those of the first run, under the names that people look for.

    Attributes:
        problems: self-checks that failed; then the figures are void.
        runs: one for each way of meeting the cache.
    """

    format: str = FORMAT
    requests: int
    passage_hit_rate: float
    passage_hit_rate_beyond_repair: float
    ttft_ms: Percentiles | None
    setting: TraceSetting
    environment: Environment
    interrupted: bool
    problems: list[str]
    warnings: list[str]
    seconds: float
    runs: list[TraceRun]


def _percentiles(times: Sequence[float]) -> Percentiles | None:
    import numpy as np

    if not times:
        return None
    p50, p90, p99 = np.percentile(times, [50, 90, 99])
    return Percentiles(p50=float(p50), p90=float(p90), p99=float(p99))
