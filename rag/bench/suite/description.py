"""What a stream of requests is like, before anybody answers it: skew, repetition, arrivals, recall."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, median, pstdev

from pydantic import BaseModel, ConfigDict

from data.traffic import HOT_SHARE
from engine.prompt import Segment, SegmentKind
from rag.bench.printed import as_text, facts_table
from rag.bench.suite.drawing import Drawn
from rag.bench.suite.experiment import ArrivalKind, WorkloadSpec
from rag.bench.suite.requests import RequestStream

__all__ = ["FORMAT", "WorkloadReport", "describe", "render"]

FORMAT = "preread-bench-workload-1"


class WorkloadReport(BaseModel):
    """A workload in figures. Shares are of 1, and None where there is nothing to take a share of.

    Attributes:
        workload: as it was drawn.
        source: what the text is.
        digest: of every prompt, time and length.
        requests: how many.
        prompt_tokens: on average.
        longest: tokens of the longest prompt with its answer.
        passages: distinct ones.
        passage_tokens: in those.
        passages_a_request: on average.
        asked_once: share of the distinct passages.
        asked_before: share of the passages, as they come, that an earlier request had.
        pool: distinct passages that they were drawn from; None where only those asked for are known.
        hot_draws: share of the passages, as they come, that are of those asked for most: 3 % of the pool.
        known_orders: share of the requests with the same passages in the same order as an earlier one.
        conversations: how many.
        seconds: from the stream's start to the last request; 0 where arrivals depend on answers.
        gap_cv: coefficient of variation of the gaps between requests.
        recall: share of the requests with a gold text among the first n passages, by n.
        retrieval_ms: median of embedding and search.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = FORMAT
    workload: WorkloadSpec
    source: str
    digest: str
    requests: int
    prompt_tokens: float
    longest: int
    passages: int
    passage_tokens: int
    passages_a_request: float
    asked_once: float | None
    asked_before: float | None
    pool: int | None
    hot_draws: float | None
    known_orders: float
    conversations: int
    seconds: float
    gap_cv: float | None
    recall: dict[int, float]
    retrieval_ms: float | None


def describe(drawn: Drawn, stream: RequestStream) -> WorkloadReport:
    """Count what a stream has that was made of what was drawn."""
    asked = [_passages(one.prompt.segments) for one in stream.requests]
    uses = [passage for passages in asked for passage in passages]
    counts = sorted(Counter(uses).values(), reverse=True)
    hot = max(1, round(HOT_SHARE * (drawn.pool or len(counts))))
    times = [one.retrieval_ms for one in stream.requests if one.retrieval_ms is not None]
    seconds = stream.requests[-1].time
    return WorkloadReport(
        workload=drawn.spec,
        source=stream.source,
        digest=stream.digest,
        requests=len(stream.requests),
        prompt_tokens=fmean(one.prompt.num_tokens for one in stream.requests),
        longest=stream.longest,
        passages=len(counts),
        passage_tokens=sum(len(one.tokens) for one in stream.passages),
        passages_a_request=len(uses) / len(asked),
        asked_once=counts.count(1) / len(counts) if counts else None,
        asked_before=_repeated(asked, uses) if uses else None,
        pool=drawn.pool,
        hot_draws=sum(counts[:hot]) / len(uses) if uses else None,
        known_orders=1 - len(set(asked)) / len(asked),
        conversations=len({one.conversation for one in stream.requests} - {""}),
        seconds=seconds,
        gap_cv=_variation([later.time - earlier.time for earlier, later in pairwise(stream.requests)]),
        recall=_recall(stream, max(map(len, asked))),
        retrieval_ms=median(times) if times else None,
    )


def render(report: WorkloadReport) -> str:
    """Return the figures as lines, ending with a line break."""
    facts = [
        ("workload", f"{report.workload.kind.value}: {report.source}"),
        ("digest", report.digest),
        ("requests", f"{report.requests:,}, {_arrivals(report)}"),
        ("prompts", f"{report.prompt_tokens:,.0f} tokens on average, {report.longest:,} at most with the answer"),
        ("passages", f"{report.passages_a_request:.1f} a request, {report.passages:,} distinct ones"),
        ("", f"of {report.passage_tokens:,} tokens together{_drawn_from(report)}"),
    ]
    if report.asked_once is not None and report.asked_before is not None and report.hot_draws is not None:
        facts += [
            ("skew", f"{report.asked_once:.0%} of the distinct ones are asked for once;"),
            ("", f"the most popular {HOT_SHARE:.0%} make up {report.hot_draws:.0%} of those asked for;"),
            ("", f"{report.asked_before:.0%} of those asked for were asked for before"),
            ("orders", f"{report.known_orders:.0%} of the requests have passages and order of an earlier one"),
        ]
    if report.conversations:
        facts.append(("conversations", f"{report.conversations:,}"))
    if report.recall:
        facts.append(("recall", ", ".join(f"{share:.0%} at {n}" for n, share in report.recall.items())))
    if report.retrieval_ms is not None:
        facts.append(("retrieval", f"{report.retrieval_ms:.1f} ms in the middle"))
    return as_text(facts_table(facts), width=120)


def _passages(segments: Sequence[Segment]) -> tuple[tuple[int, ...], ...]:
    return tuple(one.tokens for one in segments if one.kind is SegmentKind.PASSAGE)


def _repeated(asked: Sequence[Sequence[tuple[int, ...]]], uses: Sequence[tuple[int, ...]]) -> float:
    seen: set[tuple[int, ...]] = set()
    known = 0
    for passages in asked:
        known += sum(passage in seen for passage in passages)
        seen.update(passages)
    return known / len(uses)


def _variation(gaps: Sequence[float]) -> float | None:
    return pstdev(gaps) / fmean(gaps) if sum(gaps) > 0 else None


def _recall(stream: RequestStream, most: int) -> dict[int, float]:
    ranks = [one.gold_rank for one in stream.requests if one.golds]
    if not ranks:
        return {}
    return {n: sum(rank is not None and rank <= n for rank in ranks) / len(ranks) for n in sorted({1, most})}


def _arrivals(report: WorkloadReport) -> str:
    arrivals = report.workload.arrivals
    if arrivals.kind is ArrivalKind.CLOSED:
        return f"{arrivals.clients} {'client' if arrivals.clients == 1 else 'clients'}, each asking again when answered"
    if not report.seconds:
        return "each after the last one's answer"
    variation = "" if report.gap_cv is None else f", gaps vary by {report.gap_cv:.1f} times their mean"
    return f"{report.requests / report.seconds:.2f} a second for {report.seconds:,.1f} s{variation}"


def _drawn_from(report: WorkloadReport) -> str:
    return "" if report.pool is None else f", drawn from {report.pool:,}"
