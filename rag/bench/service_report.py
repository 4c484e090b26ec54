"""What a run of the service benchmark leaves behind, and how it reads."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from rag.bench.environment import Environment, describe_machine
from rag.bench.statistics import Summary

__all__ = ["Condition", "FairnessFigure", "Inspection", "OverheadFigure", "ServiceReport", "SoakFigure", "render"]

FORMAT = "preread-bench-service-1"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Condition(_Part):
    """Something that has to hold: a measured value of at most so much."""

    name: str
    value: float
    limit: float
    unit: str

    @property
    def holds(self) -> bool:
        """Whether the value is within its limit."""
        return self.value <= self.limit


class Inspection(_Part):
    """What the server found of itself after its last request.

    Attributes:
        broken: the invariant that does not hold; empty where all do.
        running: requests that still ran.
        waiting: requests that still waited.
        leaked_blocks: blocks that are neither free nor cached.
        step_seconds: begin (of `time.perf_counter`) and length of every step, and how many requests ran in it.
    """

    broken: str
    running: int
    waiting: int
    leaked_blocks: int
    step_seconds: list[tuple[float, float, int]]


class OverheadFigure(_Part):
    """What HTTP adds to a warm answer, in milliseconds: the client's time less that of the pipeline and the engine.

    Attributes:
        http_ms: of the whole request, for the client.
        engine_ms: of the same answer, from the question's arrival in the pipeline to its last token.
        overhead_ms: the difference, answer by answer.
        samples_ms: every pair of the first two.
    """

    http_ms: Summary
    engine_ms: Summary
    overhead_ms: Summary
    samples_ms: list[tuple[float, float]]


class FairnessFigure(_Part):
    """Times to the first token of one key, alone and beside the flood of another, in milliseconds.

    Attributes:
        flood: requests of the other key that are always on their way.
        flood_answers: how many of them were answered meanwhile.
        max_num_seqs: requests that run at once.
        max_num_batched_tokens: most tokens of a step.
        max_slowdown: how many times longer a step may be for the prompts in it.
        step_ms: of the steps while the flood lasted.
        most_running: the most requests in one of them.
        ttft_ms: by "idle cold", "idle warm", "flooded cold", "flooded warm".
        p95_ms: the same, 95 of 100 are sooner.
        samples_ms: the same, one by one.
    """

    flood: int
    flood_answers: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_slowdown: float
    step_ms: Summary
    step_p95_ms: float
    most_running: int
    ttft_ms: dict[str, Summary]
    p95_ms: dict[str, float]
    samples_ms: dict[str, list[float]]


class SoakFigure(_Part):
    """Many clients for a while.

    Attributes:
        clients: at once.
        seconds: for how long.
        requests: by what they were.
        statuses: by HTTP status; "closed" where the client left.
        health_ms: of the health routes, asked all the time.
        health_p99_ms: of the same.
        lost: documents that were acknowledged and are not there, or were deleted and are.
        stuck: requests that did not end in time.
        unexpected: statuses that no such request should have.
        memory_mib: of the server, at equal times.
        growth: the last quarter's memory by that of the second, less one.
    """

    clients: int
    seconds: float
    requests: dict[str, int]
    statuses: dict[str, int]
    health_ms: Summary
    health_p99_ms: float
    lost: list[str]
    stuck: int
    unexpected: list[str]
    memory_mib: list[float]
    growth: float


class ServiceReport(_Part):
    """Every part that was measured."""

    format: str = FORMAT
    benchmark: str = "service"
    corpus: str
    k: int
    max_tokens: int
    environment: Environment
    warnings: list[str]
    overhead: OverheadFigure | None
    fairness: FairnessFigure | None
    soak: SoakFigure | None
    conditions: list[Condition]
    seconds: float

    @property
    def problems(self) -> list[str]:
        """The conditions that do not hold."""
        return [one.name for one in self.conditions if not one.holds]


def render(report: ServiceReport) -> str:
    """Return the report as text."""
    lines = [f"{report.corpus}, k {report.k}, answers of {report.max_tokens} tokens; medians", *report.warnings]
    if report.overhead is not None:
        one = report.overhead
        lines.append(
            f"a warm answer: {one.http_ms.median:.1f} ms over HTTP, {one.engine_ms.median:.1f} in pipeline and engine: "
            f"{one.overhead_ms.median:.2f} ms more (p90 {one.overhead_ms.p90:.2f})"
        )
    if report.fairness is not None:
        lines += _fairness(report.fairness)
    if report.soak is not None:
        lines += _soak(report.soak)
    lines += [
        f"{'holds' if one.holds else 'FAILS'}: {one.name}: {one.value:.4g} {one.unit} of at most {one.limit:.4g}"
        for one in report.conditions
    ]
    return "\n".join([*lines, describe_machine(report.environment)])


def _fairness(one: FairnessFigure) -> list[str]:
    times = ", ".join(
        f"{name} {summary.median:.0f} (p95 {one.p95_ms[name]:.0f})" for name, summary in one.ttft_ms.items()
    )
    return [
        f"first tokens beside {one.flood} requests of another key, ms: {times}",
        (
            f"  its steps: {one.step_ms.median:.0f} ms (p95 {one.step_p95_ms:.0f}), up to {one.most_running} requests "
            f"of {one.max_num_seqs}, {one.max_num_batched_tokens} tokens, {one.max_slowdown:g} x its decodes; "
            f"{one.flood_answers} answers"
        ),
    ]


def _soak(one: SoakFigure) -> list[str]:
    return [
        f"{one.clients} clients for {one.seconds:.0f} s: {_counts(one.requests)}; status {_counts(one.statuses)}",
        (
            f"  health routes {one.health_ms.median:.1f} ms (p99 {one.health_p99_ms:.0f}); memory "
            f"{one.memory_mib[0]:.0f} to {one.memory_mib[-1]:.0f} MiB ({100 * one.growth:+.1f} %)"
        ),
        *(f"  unexpected: {text}" for text in one.unexpected[:5]),
    ]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in _by_count(counts))


def _by_count(counts: dict[str, int]) -> Sequence[str]:
    return sorted(counts, key=lambda name: (-counts[name], name))
