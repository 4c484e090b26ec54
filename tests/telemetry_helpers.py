"""What the tests of metrics, traces, ledger and usage share: answers that nobody computed."""

import asyncio
from concurrent.futures import Future
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from engine.ladder import Outcome
from engine.output import Generation, TokenDelta
from engine.prompt import SegmentKind
from engine.request import FinishReason
from engine.stats import CacheReport, SegmentReport, Timings
from rag.ledger import Ledger
from rag.retrieval_log import RetrievalLog
from rag.telemetry.telemetry import Telemetry
from retriever.store import Store

REPAIR = 16
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def passage(name: str, outcome: Outcome, tokens: int = 100, tier: str = "device") -> SegmentReport:
    """A passage of a prompt; a shifted one has its head repaired."""
    hits = {Outcome.COMPUTED: 0, Outcome.SHIFTED: tokens - REPAIR}.get(outcome, tokens)
    return SegmentReport(SegmentKind.PASSAGE, name, tokens, hits, outcome, tier if hits else None)


def report(*passages: SegmentReport) -> CacheReport:
    """A prompt of a template that is in the cache, passages and a tail."""
    template = SegmentReport(SegmentKind.TEMPLATE, "", 20, 20, Outcome.PATH, "device")
    tail = SegmentReport(SegmentKind.TAIL, "", 10, 0, Outcome.COMPUTED, None)
    segments = (template, *passages, tail)
    hits = {tier: sum(s.hit_tokens for s in segments if s.tier == tier) for tier in ("device", "disk")}
    return CacheReport(segments, hits, 0.25)


def generation(cache: CacheReport, *, tokens: int = 5, reason: FinishReason = FinishReason.STOP) -> Generation:
    """A finished request: a queue of 0.5 s, 0.25 s of which loading, a prefill of 2 s, a decode of 4 s."""
    now = perf_counter()
    timings = Timings(now - 6.5, now - 6, now - 4, now)
    size = sum(segment.num_tokens for segment in cache.segments)
    return Generation(tuple(range(tokens)), "text", reason, size, cache, timings)


def delta(*tokens: int) -> TokenDelta:
    return TokenDelta(tokens, "x" * len(tokens))


def state_of(**parts: Any) -> Any:
    """Components of which only the named parts are made."""
    config = SimpleNamespace(model="small", embedder="tiny")
    made = {name: SimpleNamespace(if_made=parts.get(name)) for name in ("worker", "store", "shadow")}
    return SimpleNamespace(config=config, **made)


def done(value: object) -> Future[object]:
    """A future that has come."""
    future: Future[object] = Future()
    future.set_result(value)
    return future


class Watched:
    """A telemetry over a library of its own, with what it wrote."""

    def __init__(self, folder: Path, components: Any = None, **more: Any) -> None:
        from rag.telemetry.state_metrics import StateMetrics

        self.store = Store(folder / "library.sqlite3")
        self.ledger = Ledger(self.store)
        self.retrievals = RetrievalLog(self.store, 1000)
        state = StateMetrics(components or state_of())
        self.telemetry = Telemetry(self.ledger, self.retrievals, state, **more)

    def samples(self) -> Samples:
        return parsed(asyncio.run(self.telemetry.text()))

    def close(self) -> None:
        self.telemetry.close()
        self.store.close()


def parsed(text: bytes) -> Samples:
    """Read metrics as Prometheus' own client does: value by name and labels."""
    families = text_string_to_metric_families(text.decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def total(samples: Samples, name: str, **labels: str) -> float:
    """Sum the samples of a name whose labels have these values."""
    matching = [value for (known, found), value in samples.items() if known == name and labels.items() <= set(found)]
    assert matching, f"there is no {name} with {labels}"
    return sum(matching)
