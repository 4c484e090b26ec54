"""The trace benchmark: recorded traffic over passages that were read at ingestion, simulated or on the real engine.

Requests come one after the other: what they find cached does not depend on how fast they are answered. A run on the
real engine simulates the same requests, too, and must find the same.
"""

import math
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from data.traces import read_ragpulse
from engine.eviction import POLICIES
from engine.tokenizer import Tokenizer
from rag.bench.certified import certified_repair
from rag.bench.collection import default_work_dir
from rag.bench.environment import RunClock
from rag.bench.progress import BenchEvent, Progress
from rag.bench.trace_prompts import TracePrompts, read_documentation
from rag.bench.trace_replay import Replay
from rag.bench.trace_report import TraceReport, TraceRun, TraceSetting, Variant
from rag.config import RagConfig
from rag.errors import InvalidRequestError
from rag.model_hub import ModelHub

__all__ = ["ORDERS", "REUSES", "UNBOUNDED", "TraceBenchConfig", "run"]

REUSES = ("exact", "chunk")
ORDERS = ("score", "cache")
UNBOUNDED = "unbounded"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceBenchConfig:
    """What to measure: every combination of reuse, order, policy and size of the pool.

    Attributes:
        trace: folder of a RAGPulse trace.
        reuse: of `REUSES`.
        order: of `ORDERS`.
        policy: of `POLICIES`.
        device_tokens: what the pool holds: a number of tokens, a share of the distinct passages' tokens ("10%"), or
            `UNBOUNDED`.
        first: how many requests of the trace are left out at its beginning.
        limit: requests at most; None is all.
        repair: tokens that chunk reuse computes at a shifted passage's head; None is what the certificate asks for.
        store: whether the passages' KV is on disk before the first request, as ingestion leaves it.
        simulate: run the bookkeeping without a model.
        work_dir: where the store is kept while it runs; None is a folder in the user's cache.

    Raises:
        InvalidRequestError: a value that cannot work.
    """

    trace: Path
    reuse: tuple[str, ...] = ("chunk",)
    order: tuple[str, ...] = ("score",)
    policy: tuple[str, ...] = ("lru",)
    device_tokens: tuple[str, ...] = (UNBOUNDED,)
    first: int = 0
    limit: int | None = None
    repair: int | None = None
    store: bool = True
    simulate: bool = False
    work_dir: Path | None = None

    def __post_init__(self) -> None:
        for name, known in (("reuse", REUSES), ("order", ORDERS), ("policy", POLICIES)):
            if unknown := [value for value in getattr(self, name) if value not in known]:
                raise InvalidRequestError(f"{name} is {unknown[0]!r}; choose from: {', '.join(known)}")
        for text in self.device_tokens:
            _tokens_of(text, 1)
        for name, least in (("limit", 1), ("first", 0), ("repair", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InvalidRequestError(f"{name} is {value}; it must be at least {least}")

    def variants(self, distinct_tokens: int) -> list[Variant]:
        """Return what is measured, for a trace of passages with so many tokens."""
        return [
            Variant(reuse=reuse, order=order, policy=policy, device=_tokens_of(device, distinct_tokens))
            for reuse, device, order, policy in product(self.reuse, self.device_tokens, self.order, self.policy)
        ]


def run(config: RagConfig, bench: TraceBenchConfig, progress: Progress) -> TraceReport:
    """Measure; Ctrl-C ends it early and keeps what is complete.

    Args:
        config: model and engine; its data directory is not touched.
        bench: what to measure.
        progress: called as it advances, in the calling thread.

    Raises:
        KeyboardInterrupt: before any request was answered.
        TraceError: the trace cannot be read.
        UnknownModelError: the model is not here.
        InvalidRequestError: a pool that cannot hold a prompt, or that this machine cannot hold.
    """
    clock = RunClock()
    trace = read_ragpulse(bench.trace)
    requests = trace.requests[bench.first :][: bench.limit]
    if not requests:
        raise InvalidRequestError(f"first is {bench.first}; the trace has {len(trace.requests)} requests")
    folder = ModelHub(config.models_dir).resolve(config.model)
    progress(BenchEvent("text", 0, None))
    tokenizer = Tokenizer(folder)
    prompts = TracePrompts.make(requests, tokenizer, config.prompt, read_documentation(tokenizer))
    repair = certified_repair(config, prompts.template.tokens) if bench.repair is None else bench.repair
    replay = Replay(prompts, folder, config.engine.build(), progress, repair=repair, store=bench.store)
    variants = bench.variants(prompts.distinct_tokens)
    if bench.simulate:
        runs = replay.simulate(variants)
    else:
        runs = replay.measure(variants, bench.work_dir or default_work_dir())
    if not runs:
        raise KeyboardInterrupt
    return TraceReport(
        **_first_figures(runs),
        setting=_setting(trace.name, bench, config.model, prompts, replay),
        environment=clock.environment(),
        interrupted=replay.interrupted,
        problems=replay.problems,
        warnings=[] if bench.simulate else clock.warnings,
        seconds=clock.seconds,
        runs=runs,
    )


def _setting(trace: str, bench: TraceBenchConfig, model: str, prompts: TracePrompts, replay: Replay) -> TraceSetting:
    return TraceSetting(
        trace=trace,
        first=bench.first,
        distinct_passages=len(prompts.passages),
        distinct_tokens=prompts.distinct_tokens,
        store=bench.store,
        repair=replay.repair,
        simulated=bench.simulate,
        model=model,
        dtype=replay.dtype,
        block_size=replay.block_size,
        fill_seconds=replay.fill_seconds,
    )


def _first_figures(runs: list[TraceRun]) -> dict[str, Any]:
    """Return those of the first run that the report shows on top."""
    shown = {"requests", "passage_hit_rate", "passage_hit_rate_beyond_repair", "ttft_ms"}
    return runs[0].figures.model_dump(include=shown)


def _tokens_of(text: str, distinct: int) -> int | None:
    """Read a pool size.

    Raises:
        InvalidRequestError: it is neither a number, nor a share, nor `UNBOUNDED`.
    """
    if text == UNBOUNDED:
        return None
    number, percent, rest = text.partition("%")
    try:
        tokens = float(number) / 100 * distinct if percent and not rest else int(text)
    except ValueError:
        tokens = 0
    if not tokens > 0:
        raise InvalidRequestError(f"device-tokens is {text!r}; give a number of tokens, a share like 10%, or unbounded")
    return math.ceil(tokens)
