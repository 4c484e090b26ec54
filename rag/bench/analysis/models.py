"""The figures of a run: what tables, plots, comparisons and the README show. Times are in milliseconds."""

from pydantic import BaseModel, ConfigDict

from rag.bench.statistics import Estimate
from rag.bench.suite.experiment import Experiment
from rag.bench.suite.records import CheckRecord, ContestantRecord, Header, SimulationRecord, SkippedRecord, StreamRecord

__all__ = [
    "ContestantFigures", "ExperimentFigures", "Figures", "GoodputFigures", "QualityFigures", "RateStep", "Times",
]  # fmt: skip


class _Figure(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Times(_Figure):
    """How a measure is distributed.

    Attributes:
        n: values.
        lost: requests under load without an answer that counts: longer than any value, in the percentiles.
        windows: passes that they come from.
        p50: with its interval, which is left out below 5 values; None where so many were lost that it is not known.
        p90: None below 10 values, or where it is not known; its interval is left out below 51.
        p99: None below 100 values, or where it is not known; its interval is left out below 528.
        most: the greatest value.
        mean: the average of the values.
    """

    n: int
    lost: int = 0
    windows: int
    p50: Estimate | None
    p90: Estimate | None
    p99: Estimate | None
    most: float
    mean: float


class ContestantFigures(_Figure):
    """One engine in one experiment. Warm-up is in none of the figures but those named so.

    Attributes:
        contestant: its name.
        warmup: answers of the warm-up that count.
        short: answers with too few tokens, which count nowhere.
        failed: requests without an answer, which count nowhere.
        unanswered: of the failed, those that were still waiting when a window was cut.
        ttft: from arrival to the first token; None where no answer counts.
        warmup_ttft: the same during warm-up.
        prefill: from the engine's start on the prompt to the first token, where it tells.
        tpot: time per output token after the first.
        total: from arrival to the last token.
        speedup: the baseline's TTFT over its own; None for the baseline, where that is missing, and where a window of
            either was cut or not finished.
        hit_rate: prompt tokens whose KV was not computed, over all; None where the engine does not tell.
        warmup_hit_rate: the same during warm-up.
        tiers: cached prompt tokens by tier.
        outcomes: passage tokens by outcome.
        prompt_tokens: of the answers that count.
        repairs: tokens recomputed a shifted passage, each number that occurred.
        uncertified: answers with a reuse that no certificate covers.
        requests_per_second: answers over the windows' time; None in turns, where engines stand still in between.
        tokens_per_second: output tokens over the same.
        memory: most bytes resident at the end of a window.
        disk: most bytes of KV on disk.
        prepared_tokens: read ahead before a pass.
        prepared_seconds: that it took, longest.
        engine_cpu: processor seconds of the engine a request that was handed over; None where it is not known.
        generator: share of the machine that the load generator took, at most in any window of more than a second.
        lateness_ms: of handing requests over, at p99, at most in any window.
        ttft_ms: TTFT of every answer that counts, pass by pass in the order of the requests.
        shares: request and the cached share of its prompt, of every answer with its warm-up, first pass.
    """

    contestant: str
    warmup: int = 0
    short: int = 0
    failed: int = 0
    unanswered: int = 0
    ttft: Times | None = None
    warmup_ttft: Times | None = None
    prefill: Times | None = None
    tpot: Times | None = None
    total: Times | None = None
    speedup: Estimate | None = None
    hit_rate: float | None = None
    warmup_hit_rate: float | None = None
    tiers: dict[str, int] = {}
    outcomes: dict[str, int] = {}
    prompt_tokens: int = 0
    repairs: tuple[int, ...] = ()
    uncertified: int = 0
    requests_per_second: float | None = None
    tokens_per_second: float | None = None
    memory: int | None = None
    disk: int = 0
    prepared_tokens: int = 0
    prepared_seconds: float = 0.0
    engine_cpu: float | None = None
    generator: float = 0.0
    lateness_ms: float = 0.0
    ttft_ms: tuple[float, ...] = ()
    shares: tuple[tuple[int, float], ...] = ()


class RateStep(_Figure):
    """One rate that was tried.

    Attributes:
        rate: requests a second.
        n: answers that count.
        p95_ms: of TTFT, where a request without an answer took forever; None where that is so long.
        passed: whether it stayed within the limit, and every request was answered.
        cut: the window was ended early, since the engine did not keep up.
    """

    rate: float
    n: int
    p95_ms: float | None
    passed: bool
    cut: bool


class GoodputFigures(_Figure):
    """The highest rate at which an engine's p95 TTFT stays within five times its own unloaded one.

    Of several passes, each has a limit of its own, and `goodput` and `failing` are the ends of their range.

    Attributes:
        unloaded_ms: p95 TTFT of one client alone, over its answers that count; the median of the passes.
        limit_ms: five times that; None where nothing counts, so that goodput is not known.
        steps: by ascending rate, of all passes.
        goodput: the highest rate that passed, below every one that failed; None where the first failed. Of several
            passes the least.
        failing: the lowest rate that failed; None where none did, so that goodput is at least what is said. Of several
            passes the greatest.
        passes: that have a limit.
    """

    contestant: str
    unloaded_ms: float | None
    limit_ms: float | None
    steps: tuple[RateStep, ...]
    goodput: float | None
    failing: float | None
    passes: int = 1


class QualityFigures(_Figure):
    """How a variant's answers compare with those of full prefill, on average over requests.

    Attributes:
        variant: see `QualityRecord`.
        k: passages a request.
        n: requests.
        kl: of the tokens of full prefill's answer, nats a token.
        first_kl: of its first token.
        top1: share of its tokens that rank first here too.
        f1: of the words of the free answer with those of full prefill's.
        gold_f1: of the words of the free answer with the gold text's.
        gold: share of free answers that contain the gold text.
        ttft: to the first token.
        speedup: full prefill's TTFT over its own, by request.
    """

    variant: str
    k: int
    n: int
    kl: Estimate | None = None
    first_kl: Estimate | None = None
    top1: Estimate | None = None
    f1: Estimate | None = None
    gold_f1: Estimate | None = None
    gold: Estimate | None = None
    ttft: Times | None = None
    speedup: Estimate | None = None


class ExperimentFigures(_Figure):
    """What an experiment shows.

    Attributes:
        experiment: as it was planned.
        stream: what was asked; None where nothing was, yet.
        passes: complete ones.
        baseline: whose TTFT speed-ups are over.
        retrieval: time of embedding and search.
        contestants: by name, in the experiment's order; empty for quality and simulation.
        problems: why figures are doubtful or void.
        void: those of the problems after which no figure counts.
    """

    experiment: Experiment
    stream: StreamRecord | None
    passes: int
    baseline: str
    retrieval: Times | None = None
    contestants: dict[str, ContestantFigures] = {}
    goodput: dict[str, GoodputFigures] = {}
    quality: tuple[QualityFigures, ...] = ()
    simulation: tuple[SimulationRecord, ...] = ()
    problems: tuple[str, ...] = ()
    void: tuple[str, ...] = ()


class Figures(_Figure):
    """A whole run.

    Attributes:
        header: of the result file.
        contestants: that took part, by name.
        skipped: what was left out, and why.
        experiments: by name, in the suite's order; those without any record are in `missing`.
        missing: names of experiments that were not measured, or not yet.
        checks: of the benchmark itself.
        seconds: that its units took.
        problems: of the run as a whole.
    """

    header: Header
    contestants: dict[str, ContestantRecord]
    skipped: tuple[SkippedRecord, ...]
    experiments: dict[str, ExperimentFigures]
    missing: tuple[str, ...]
    checks: tuple[CheckRecord, ...]
    seconds: float
    problems: tuple[str, ...]
