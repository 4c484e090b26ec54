"""What is measured only when somebody asks: the engine's load, blocks by state, the KV store, the shadow check."""

import asyncio
from collections.abc import Iterator
from importlib.metadata import version
from time import monotonic
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from engine.errors import EngineError
from rag.telemetry.metrics import PREFIX

if TYPE_CHECKING:
    from concurrent.futures import Future

    from engine.engine import Engine
    from engine.kv_report import StoreStats
    from engine.stats import EngineStats
    from rag.components import Components
    from rag.shadow import ShadowStats

    _Figures = tuple[EngineStats, int]  # with the bytes of a block

__all__ = ["StateMetrics"]

PATIENCE_SECONDS = 2.0  # for the engine between two steps; then its last figures are told, with their age


class StateMetrics(Collector):
    """Gauges and counters of the parts that are there.

    Args:
        components: of which engine, store and shadow check are told.
    """

    def __init__(self, components: "Components") -> None:
        self._components = components
        self._engine: _Figures | None = None
        self._as_of = monotonic()
        self._asked: Future[_Figures] | None = None

    async def refresh(self) -> None:
        """Ask the engine for its figures; one that is in a long step, or stopped, keeps those that it has told.

        What comes too late is there for the next time.
        """
        worker = self._components.worker.if_made
        if worker is None or not worker.is_alive:
            return
        if self._asked is None or self._asked.done():
            try:
                self._asked = worker.call(_figures)
            except EngineError:
                return  # it stops
            self._asked.add_done_callback(self._take)
        await asyncio.wait([asyncio.wrap_future(self._asked)], timeout=PATIENCE_SECONDS)

    def _take(self, asked: "Future[_Figures]") -> None:
        if not asked.cancelled() and asked.exception() is None:
            self._engine, self._as_of = asked.result(), monotonic()

    def describe(self) -> list[Metric]:
        """Tell the registry nothing beforehand: what there is depends on what was loaded."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        config = self._components.config
        names = {"version": version("preread"), "model_name": config.model, "embedder": config.embedder}
        yield InfoMetricFamily(f"{PREFIX}build", "What runs here", names)
        if self._engine is not None:
            stats, block_bytes = self._engine
            yield _gauge("engine_stats_age_seconds", "Age of the engine's figures", monotonic() - self._as_of)
            yield from _engine(stats)
            yield from _blocks(stats)
            yield _bytes(stats, block_bytes, self._store_stats())
        if (store := self._store_stats()) is not None:
            yield from _store(store)
        if (shadow := self._components.shadow.if_made) is not None:
            yield from _shadow(shadow.stats())

    def _store_stats(self) -> "StoreStats | None":
        store = self._components.store.if_made
        return store.stats() if store else None


def _figures(engine: "Engine") -> "_Figures":
    return engine.stats(), engine.runner.kv_cache.bytes_per_block


def _engine(stats: "EngineStats") -> Iterator[Metric]:
    totals = stats.totals
    yield _gauge("num_requests_running", "Requests in the engine's batch", stats.running)
    yield _gauge("num_requests_waiting", "Requests that wait for the engine", stats.waiting)
    yield _counter("num_preemptions", "Requests that had to give their blocks back", stats.preemptions)
    yield _counter("engine_steps", "Steps of the engine", totals.steps)
    yield _counter("prefix_cache_queries", "Prompt tokens looked up, work ahead included", totals.prompt_tokens)
    yield _counter("prefix_cache_hits", "Prompt tokens found, work ahead included", totals.cached_tokens)
    yield _counter("spec_decode_num_draft_tokens", "Drafted tokens", totals.drafted_tokens)
    yield _counter("spec_decode_num_accepted_tokens", "Drafted tokens that were right", totals.accepted_tokens)


def _blocks(stats: "EngineStats") -> Iterator[Metric]:
    blocks = GaugeMetricFamily(f"{PREFIX}kv_blocks", "KV blocks of the device by state", labels=["state"])
    for state, count in _states(stats).items():
        blocks.add_metric([state], count)
    yield blocks
    used = 1 - stats.free_blocks / stats.num_blocks
    yield _gauge("kv_cache_usage_perc", "Share of the device's blocks that hold KV; 1 is full, which is normal", used)
    yield _counter("kv_blocks_evicted", "Blocks whose KV had to make room", stats.evicted_blocks)


def _states(stats: "EngineStats") -> dict[str, int]:
    """Return the device's blocks by state: every block is in one.

    `cached`: in the trees, and may be read by running requests. `private`: held by requests alone.
    """
    private = stats.num_blocks - stats.free_blocks - stats.cached_blocks
    return {"free": stats.free_blocks, "cached": stats.cached_blocks, "private": private}


def _bytes(stats: "EngineStats", block_bytes: int, store: "StoreStats | None") -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}kv_bytes", "Room for KV by tier and state", labels=["tier", "state"])
    for state, count in _states(stats).items():
        family.add_metric(["device", state], count * block_bytes)
    if store is not None:
        family.add_metric(["disk", "cached"], store.nbytes)
        family.add_metric(["disk", "free"], max(store.capacity_bytes - store.nbytes, 0))
    return family


def _store(stats: "StoreStats") -> Iterator[Metric]:
    yield _gauge("kv_store_records", "Passages and templates whose KV is on disk", stats.records)
    operations = CounterMetricFamily(
        f"{PREFIX}kv_store_operations", "What happened to the KV store's records", labels=["operation"]
    )
    for operation in ("hits", "misses", "bad_records", "written", "declined", "evicted", "deleted", "moved"):
        operations.add_metric([operation], getattr(stats, operation))
    yield operations


def _shadow(stats: "ShadowStats") -> Iterator[Metric]:
    checks = CounterMetricFamily(
        f"{PREFIX}certificate_checks", "Answers over reused KV, looked at again in full", labels=["result"]
    )
    for result in ("checked", "skipped", "failed"):
        checks.add_metric([result], getattr(stats, result))
    yield checks
    if stats.drift is not None and stats.allowance is not None:
        yield _gauge("certificate_drift_nats", "Mean KL of reuse against full prefill, a token", stats.drift)
        yield _gauge("certificate_allowance_nats", "What the certificate allows of it", stats.allowance)
    yield _gauge("certificate_fallen_back", "1 once reuse drifted too far and was turned off", stats.fallen_back)


def _gauge(name: str, help_text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, help_text, value)


def _counter(name: str, help_text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(PREFIX + name, help_text, value)
