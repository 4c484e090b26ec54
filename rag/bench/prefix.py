"""The prefix-hit benchmark: one skewed stream of questions, with the cache off, cold and warm.

The three modes take turns at every question, in a random order, so that a machine that becomes slower or faster
meanwhile does so for all of them. Collection and index are the benchmark's own, kept between runs.
"""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, get_args

from data.corpora import Corpus, load_corpus
from data.questions import make_questions
from data.workloads import Popularity, Workload, zipf_workload
from rag.bench.checks import check_at_least_one, check_corpus
from rag.bench.collection import ingest_corpus, with_collection
from rag.bench.environment import RunClock
from rag.bench.progress import BenchEvent, Counter, Progress
from rag.bench.report import PrefixReport, Record, Setting
from rag.bench.stream import QuestionStream
from rag.bench.summary import find_problems, summaries_of
from rag.config import RagConfig
from rag.data_dir import open_owned
from rag.errors import InvalidRequestError
from rag.service import Service

if TYPE_CHECKING:
    from engine.engine import Engine
    from retriever.embedder import TextEmbedder

__all__ = ["PrefixBenchConfig", "make_workload", "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixBenchConfig:
    """What to measure.

    Attributes:
        corpus: of `data.corpora`.
        questions: length of the stream.
        zipf_s: exponent of the skew; 0 asks every question equally often.
        popularity: whether the skew is over questions or over the documents that they ask for.
        k: passages a question.
        max_tokens: length of an answer at most.
        seed: of questions, stream, and the order of the modes.
        repeats: passes over the stream.
        workload: a saved stream to ask instead; then corpus, questions, skew and its seed are those of the file.
        save_workload: where to save the stream.
        work_dir: where collections of benchmarks are kept; None is a folder in the user's cache.

    Raises:
        InvalidRequestError: a value that cannot work.
    """

    corpus: str = "python-topics"
    questions: int = 30
    zipf_s: float = 1.0
    popularity: Popularity = "question"
    k: int = 4
    max_tokens: int = 16
    seed: int = 0
    repeats: int = 1
    workload: Path | None = None
    save_workload: Path | None = None
    work_dir: Path | None = None

    def __post_init__(self) -> None:
        check_at_least_one(self, ("questions", "k", "max_tokens", "repeats"))
        check_corpus(self.corpus)
        if self.popularity not in get_args(Popularity):
            raise InvalidRequestError(f"popularity is {self.popularity!r}; choose question or document")


def make_workload(bench: PrefixBenchConfig) -> Workload:
    """Draw or load the stream, and save it where that is asked for.

    Raises:
        WorkloadError: the file is missing or malformed, or the stream cannot be drawn.
    """
    if bench.workload is not None:
        workload = Workload.load(bench.workload)
    else:
        workload = zipf_workload(
            make_questions(load_corpus(bench.corpus), seed=bench.seed),
            corpus=bench.corpus,
            count=bench.questions,
            s=bench.zipf_s,
            popularity=bench.popularity,
            seed=bench.seed,
        )
    if bench.save_workload is not None:
        bench.save_workload.parent.mkdir(parents=True, exist_ok=True)
        workload.save(bench.save_workload)
    return workload


def run(
    config: RagConfig, bench: PrefixBenchConfig, progress: Progress, *, embedder: "TextEmbedder | None" = None
) -> PrefixReport:
    """Measure; Ctrl-C ends the measurement early and keeps what is complete.

    Args:
        config: models, engine and splitting; its data directory is not touched.
        bench: what to measure.
        progress: called as it advances, in the calling thread.
        embedder: used instead of the configured one (tests).

    Raises:
        KeyboardInterrupt: before anything was measured.
        DataDirBusyError: another benchmark of the same kind is running.
        InvalidRequestError: a workload without questions, or over an unknown corpus.
    """
    clock = RunClock()
    workload = make_workload(bench)
    if not workload.arrivals:
        raise InvalidRequestError(f"the workload {bench.workload} has no questions; save another one")
    corpus = load_corpus(workload.corpus)
    config = with_collection(config, bench.work_dir, corpus)
    with open_owned(config.data_dir), Service(config, embedder=embedder) as service:
        ingest_corpus(service, corpus, progress)
        progress(BenchEvent("load", 0, None))
        service.load()
        stream = _stream(service, corpus, workload, bench)
        asked = [*stream.retrieve()]
        engine = service.components.worker().engine
        evicted = engine.cache.num_evicted_blocks
        began = perf_counter()
        records, interrupted = _measure(stream, bench.repeats, progress)
        seconds = perf_counter() - began
        evicted = engine.cache.num_evicted_blocks - evicted
        return PrefixReport(
            setting=_setting(service, bench, workload, corpus),
            environment=clock.environment(torch_threads=_engine_threads(service)),
            interrupted=interrupted,
            problems=find_problems(records, evicted_blocks=evicted),
            warnings=[*clock.warnings, *_warnings(evicted, engine)],
            seconds=seconds,
            evicted_blocks=evicted,
            summaries=summaries_of(records, asked, k=bench.k, seed=bench.seed),
            questions=asked,
            records=records,
        )


def _stream(service: Service, corpus: Corpus, workload: Workload, bench: PrefixBenchConfig) -> QuestionStream:
    questions = [arrival.question for arrival in workload.arrivals]
    return QuestionStream(service, corpus.name, questions, k=bench.k, max_tokens=bench.max_tokens, seed=bench.seed)


def _measure(stream: QuestionStream, repeats: int, progress: Progress) -> tuple[list[Record], bool]:
    """Return the records of complete questions, and whether Ctrl-C cut the run short."""
    progress(BenchEvent("fill", 0, len(stream.distinct)))
    for done, _ in enumerate(stream.fill(), 1):
        progress(BenchEvent("fill", done, len(stream.distinct)))
    advance = Counter(progress, "measure", 3 * len(stream) * repeats).advance
    records: list[Record] = []
    try:
        for repeat in range(repeats):
            for complete in stream.measure(repeat, advance):
                records += complete
    except KeyboardInterrupt:
        if not records:
            raise
        return records, True
    return records, False


def _setting(service: Service, bench: PrefixBenchConfig, workload: Workload, corpus: Corpus) -> Setting:
    info = service.collection(corpus.name)
    engine = service.components.worker().engine
    return Setting(
        corpus=corpus.name,
        corpus_source=corpus.source,
        documents=info.documents,
        passages=info.passages,
        passage_tokens=info.passage_tokens,
        model=service.config.model,
        embedder=info.embedder or service.config.embedder,
        dtype=str(engine.runner.kv_cache.dtype).removeprefix("torch."),
        backend=engine.runner.model.backend.name,
        device=engine.config.device,
        block_size=engine.config.block_size,
        kv_blocks=engine.cache.pool.num_blocks,
        questions=len(workload.arrivals),
        zipf_s=workload.s,
        popularity=workload.popularity,
        k=bench.k,
        max_tokens=bench.max_tokens,
        workload_seed=workload.seed,
        seed=bench.seed,
        repeats=bench.repeats,
    )


def _engine_threads(service: Service) -> int:
    """Return how many threads torch has where the engine runs; each thread of a process may have its own number."""
    import torch

    return service.components.worker().call(lambda _: torch.get_num_threads()).result()


def _warnings(evicted: int, engine: "Engine") -> list[str]:
    if not evicted:
        return []
    text = (
        f"{evicted} of {engine.cache.pool.num_blocks} KV blocks were evicted: the pool does not hold the cold and "
        "the warm cache together, so both hit less; raise PREREAD_ENGINE__KV_CACHE_BYTES"
    )
    return [text]
