"""The service benchmark: what HTTP costs, whether a flood is fair to others, and what many rude clients leave behind.

The server runs in a process of its own, the clients in this one. A question is cold when it was never asked: reuse is
exact, so that all but its first passage has to be computed, whatever was asked before.
"""

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from data.corpora import Corpus, load_corpus
from data.questions import make_questions
from rag.bench.collection import collection_dir, default_work_dir, ingest_corpus
from rag.bench.environment import RunClock
from rag.bench.progress import Counter, Progress
from rag.bench.service_client import ServerProcess, serving
from rag.bench.service_fairness import FairnessRun, fairness_conditions, fairness_figure, measure_fairness
from rag.bench.service_report import Condition, FairnessFigure, OverheadFigure, ServiceReport, SoakFigure
from rag.bench.service_soak import Soak, soak_conditions
from rag.bench.statistics import summarise
from rag.config import RagConfig
from rag.data_dir import open_owned
from rag.errors import ConfigurationError
from rag.keys import EVERY, Grants
from rag.service import Service

if TYPE_CHECKING:
    import httpx

    from retriever.embedder import TextEmbedder

__all__ = ["PARTS", "ServiceBenchConfig", "run"]

PARTS = ("overhead", "fairness", "soak")
OVERHEAD_LIMIT_MS = 5.0
MAX_BODY_BYTES = 4 * 2**20
KV_BYTES = 512 * 2**20  # filled within the first minutes, so that memory is flat from then on
STORE_BYTES = 256 * 2**20
CHILD = "rag.bench.service_child"
PATIENCE_SECONDS = 600.0  # a flood waits for a long time, and nobody is to give up


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceBenchConfig:
    """What to measure.

    Attributes:
        only: parts; all where empty.
        corpus: whose passages are asked for.
        k: passages a question.
        max_tokens: length of an answer.
        questions: of each kind: warm for the overhead; cold and warm, idle and flooded, for fairness.
        flood: requests of the flooding key that are always on their way.
        clients: of the soak.
        seconds: of the soak.
        work_dir: where collections are kept; None is the user's cache.
        seed: of the questions.
    """

    only: tuple[str, ...] = ()
    corpus: str = "python-topics"
    k: int = 4
    max_tokens: int = 48
    questions: int = 20
    flood: int = 50
    clients: int = 64
    seconds: float = 300.0
    work_dir: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = set(self.only) - set(PARTS)
        if unknown:
            raise ConfigurationError(f"there are no parts {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")

    def has(self, part: str) -> bool:
        """Whether a part is wanted."""
        return not self.only or part in self.only


@dataclass(frozen=True, slots=True)
class _Bench:
    """What every part needs."""

    settings: ServiceBenchConfig
    config: RagConfig
    corpus: Corpus
    questions: Sequence[str]
    keys: tuple[str, str]
    module: str

    @property
    def body(self) -> dict[str, Any]:
        return {
            "collection": self.corpus.name,
            "k": self.settings.k,
            "max_tokens": self.settings.max_tokens,
            "reuse": "exact",
            "extractive": False,
        }

    @contextmanager
    def server(self, *, kv_store_bytes: int) -> Iterator[ServerProcess]:
        engine = self.config.engine.model_copy(update={"kv_store_bytes": kv_store_bytes})
        with serving(self.config.model_copy(update={"engine": engine}), module=self.module) as server:
            yield server

    def http(self, server: ServerProcess, key: int = 0) -> "httpx.AsyncClient":
        import httpx

        return httpx.AsyncClient(
            base_url=server.url,
            headers={"Authorization": f"Bearer {self.keys[key]}"},
            timeout=PATIENCE_SECONDS,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=False,
        )


def run(
    config: RagConfig,
    settings: ServiceBenchConfig,
    progress: Progress,
    *,
    embedder: "TextEmbedder | None" = None,
    module: str | None = None,
) -> ServiceReport:
    """Measure each part.

    Args:
        config: names the models; its data directory is left alone.
        settings: what to measure.
        progress: called after every step.
        embedder: used instead of the configured one, here and (by another module) in the server (tests).
        module: what the server's process runs; our own by default.

    Raises:
        DataDirBusyError: another benchmark of the same kind is running.
        ServerError: the server fails.
        RagError: a model is missing or cannot be used.
    """
    clock = RunClock()
    bench = _prepare(config, settings, progress, embedder, module or CHILD)
    conditions: list[Condition] = []
    overhead, fairness = _measure_times(bench, progress, conditions)
    soak = _measure_soak(bench, progress, conditions) if settings.has("soak") else None
    return ServiceReport(
        corpus=settings.corpus,
        k=settings.k,
        max_tokens=settings.max_tokens,
        environment=clock.environment(),
        warnings=clock.warnings,
        overhead=overhead,
        fairness=fairness,
        soak=soak,
        conditions=conditions,
        seconds=clock.seconds,
    )


def _prepare(
    config: RagConfig,
    settings: ServiceBenchConfig,
    progress: Progress,
    embedder: "TextEmbedder | None",
    module: str,
) -> _Bench:
    """Ingest the corpus and make two keys."""
    corpus = load_corpus(settings.corpus)
    work_dir = (settings.work_dir or default_work_dir()) / "service"
    engine = config.engine.model_copy(
        update={"precompute_when_idle": False, "kv_cache_bytes": config.engine.kv_cache_bytes or KV_BYTES}
    )
    server = config.server.model_copy(update={"max_body_bytes": MAX_BODY_BYTES, "shadow_rate": 0.0})
    answer = config.answer.model_copy(update={"stop_repetition": False})
    config = config.model_copy(
        update={
            "data_dir": collection_dir(config, work_dir, corpus),
            "engine": engine.model_copy(update={"kv_store_bytes": 0}),
            "server": server,
            "answer": answer,
        }
    )
    with open_owned(config.data_dir), Service(config, embedder=embedder) as service:
        ingest_corpus(service, corpus, progress)
        keys = _two_keys(service)
    questions = [question.text for question in make_questions(corpus, seed=settings.seed)]
    return _Bench(settings, config, corpus, questions, keys, module)


def _two_keys(service: Service) -> tuple[str, str]:
    """Make keys for the one that asks and the one that floods; those of runs before are revoked."""
    keys = service.components.keys()
    for key in keys.list():
        if key.revoked_at is None:
            keys.revoke(key.id)
    grants = Grants({EVERY: "write"})
    (_, asking), (_, flooding) = (keys.create(f"bench {name} {os.getpid()}", grants) for name in ("asks", "floods"))
    return asking, flooding


def _measure_times(
    bench: _Bench, progress: Progress, conditions: list[Condition]
) -> tuple[OverheadFigure | None, FairnessFigure | None]:
    settings = bench.settings
    if not (settings.has("overhead") or settings.has("fairness")):
        return None, None
    overhead, times = None, None
    with bench.server(kv_store_bytes=0) as server:
        if settings.has("overhead"):
            overhead = asyncio.run(_measure_overhead(bench, server, progress))
            limit = OVERHEAD_LIMIT_MS
            conditions.append(
                Condition(name="overhead of HTTP", value=overhead.overhead_ms.median, limit=limit, unit="ms")
            )
        if settings.has("fairness"):
            times = asyncio.run(_measure_fairness(bench, server, progress))
        inspection = server.stop()
    if times is None:
        return overhead, None
    fairness = fairness_figure(times, inspection, bench.config.engine, flood=settings.flood)
    conditions += fairness_conditions(fairness)
    return overhead, fairness


async def _measure_overhead(bench: _Bench, server: ServerProcess, progress: Progress) -> OverheadFigure:
    """Ask one question again and again; each answer tells how long it took without HTTP."""
    repeats = 3 * bench.settings.questions
    counter = Counter(progress, "overhead", repeats)
    body = bench.body | {"question": bench.questions[0]}
    samples: list[tuple[float, float]] = []
    async with bench.http(server) as http:
        await http.post("/v1/answer", json=body)
        for _ in range(repeats):
            began = perf_counter()
            response = await http.post("/v1/answer", json=body)
            total = 1e3 * (perf_counter() - began)
            samples.append((total, response.raise_for_status().json()["timings_ms"]["total"]))
            counter.advance()
    return OverheadFigure(
        http_ms=summarise([total for total, _ in samples]),
        engine_ms=summarise([engine for _, engine in samples]),
        overhead_ms=summarise([total - engine for total, engine in samples]),
        samples_ms=samples,
    )


async def _measure_fairness(bench: _Bench, server: ServerProcess, progress: Progress) -> FairnessRun:
    settings = bench.settings
    counter = Counter(progress, "fairness", 4 * settings.questions)
    async with bench.http(server, 0) as asking, bench.http(server, 1) as flooding:
        return await measure_fairness(
            asking,
            flooding,
            bench.body,
            bench.questions,
            flood=settings.flood,
            each=settings.questions,
            counter=counter,
        )


def _measure_soak(bench: _Bench, progress: Progress, conditions: list[Condition]) -> SoakFigure:
    settings = bench.settings

    async def measure(server: ServerProcess) -> SoakFigure:
        async with bench.http(server) as http:
            soak = Soak(
                http,
                server,
                bench.body | {"reuse": "auto"},
                questions=bench.questions[:200],
                texts=[document.text for document in bench.corpus.documents],
                too_large=MAX_BODY_BYTES + 1,
            )
            return await soak.run(settings.clients, settings.seconds, progress)

    with bench.server(kv_store_bytes=STORE_BYTES) as server:
        figure = asyncio.run(measure(server))
        inspection = server.stop()
    conditions += soak_conditions(figure, inspection)
    return figure
