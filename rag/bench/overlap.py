"""The overlap benchmark: what it saves to begin with the candidates of a search before the search has ended.

Every question is asked with and without, by turns and from the same state. The index keeps vectors in eight bits, so
that the search has a second stage. Embedding is timed alone and beside an answer that is being written.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from data.corpora import load_corpus
from data.questions import make_questions
from rag.bench.collection import ingest_corpus, with_collection
from rag.bench.environment import Environment, RunClock
from rag.bench.progress import BenchEvent, Counter, Progress
from rag.bench.statistics import Interval, Summary, median_ratio, summarise
from rag.components import STORE_NAME
from rag.config import RagConfig
from rag.data_dir import open_owned
from rag.living_store import namespace_of
from rag.operations import final_answer
from rag.pipeline import Pipeline
from rag.schemas import AnswerRequest
from rag.service import Service

if TYPE_CHECKING:
    from retriever.embedder import TextEmbedder

__all__ = ["OverlapBenchConfig", "OverlapReport", "Switch", "render", "run"]

INDEX = "SQ8"
LONG_ANSWER = 512  # tokens; cancelled once the embedding beside it is timed


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapBenchConfig:
    """What to measure.

    Attributes:
        corpus: whose passages are asked for.
        questions: how many, each with and without.
        k: passages a question.
        work_dir: where collections are kept; None is the user's cache.
        seed: of the questions.
    """

    corpus: str = "python-topics"
    questions: int = 20
    k: int = 6
    work_dir: Path | None = None
    seed: int = 0


class Switch(BaseModel):
    """One thing that can be overlapped: milliseconds without and with it, and how much shorter they are with it.

    Attributes:
        name: of the setting, or of what is measured.
        state: that every measurement begins from.
        without_ms: time to the first token, or of an embedding.
        with_ms: the same with it.
        ratio: median of without by with, question by question.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    state: str
    without_ms: Summary
    with_ms: Summary
    ratio: Interval


class OverlapReport(BaseModel):
    """Every switch, measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    benchmark: str = "overlap"
    corpus: str
    index: str
    questions: int
    k: int
    environment: Environment
    switches: list[Switch]
    seconds: float


def run(
    config: RagConfig, bench: OverlapBenchConfig, progress: Progress, *, embedder: "TextEmbedder | None" = None
) -> OverlapReport:
    """Measure each switch.

    Args:
        config: names the models; its data directory is left alone.
        bench: what to measure.
        progress: called after every step.
        embedder: used instead of the configured one (tests).

    Raises:
        DataDirBusyError: another benchmark of the same kind is running.
        RagError: a model is missing or cannot be used.
    """
    clock = RunClock()
    corpus = load_corpus(bench.corpus)
    asked = [question.text for question in make_questions(corpus, seed=bench.seed)[: bench.questions]]
    retriever = config.retriever.model_copy(update={"index_factory": INDEX})
    config = config.model_copy(update={"retriever": retriever})
    keeping = with_collection(config, bench.work_dir, corpus, keeps_kv=True)
    counter = Counter(progress, "measure", 3 * len(asked))
    with open_owned(keeping.data_dir):
        with Service(keeping, embedder=embedder) as service:
            ingest_corpus(service, corpus, progress)
            for step in service.precompute(corpus.name):
                progress(BenchEvent("read ahead", step.passages, step.total))
            prefetch = _measure_prefetch(_Asker(service, corpus.name, bench.k), asked, counter)
        with Service(with_collection(config, bench.work_dir, corpus), embedder=embedder) as service:
            asker = _Asker(service, corpus.name, bench.k)
            speculation = _switched(asker, "speculate", "no KV, idle engine", asked, counter)
            embedding = _measure_embedding(asker, asked, counter)
            return OverlapReport(
                corpus=bench.corpus,
                index=INDEX,
                questions=len(asked),
                k=bench.k,
                environment=clock.environment(torch_threads=asker.torch_threads),
                switches=[prefetch, speculation, embedding],
                seconds=clock.seconds,
            )


def render(report: OverlapReport) -> str:
    """Return the report as text."""
    lines = [f"{report.corpus} ({report.index}), {report.questions} questions of {report.k} passages, medians in ms"]
    for switch in report.switches:
        ratio = switch.ratio
        lines.append(
            f"{switch.name}: {switch.without_ms.median:.1f} without, {switch.with_ms.median:.1f} with: "
            f"{ratio.value:.3f} x [{ratio.low:.3f}, {ratio.high:.3f}] ({switch.state})"
        )
    return "\n".join(lines)


class _Asker:
    """Asks a collection, with some settings of answers, from a clean state."""

    def __init__(self, service: Service, collection: str, k: int) -> None:
        self.service = service
        self._request = AnswerRequest(question="?", collection=collection, k=k, max_tokens=1, extractive=False)
        self._namespace = namespace_of(service.collection(collection).id)
        service.warm_up()

    @property
    def torch_threads(self) -> int:
        import torch

        return self.service.components.worker().call(lambda _: torch.get_num_threads()).result()

    def forget(self) -> None:
        """Take the collection's KV out of the engine's memory, and its files out of the machine's."""
        worker = self.service.components.worker()
        worker.call(lambda engine: engine.cache.drop_namespace(self._namespace)).result()
        for path in (self.service.config.data_dir / STORE_NAME).glob("*"):
            with suppress(OSError, AttributeError), path.open("rb") as file:  # not every system can
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def ttft_ms(self, question: str, **settings: bool) -> float:
        """Ask from a clean state and return the time to the first token."""
        self.forget()
        answer = self.service.config.answer.model_copy(update=settings)
        pipeline = Pipeline(self.service.components, answer)
        return final_answer(pipeline.answer(self._request.model_copy(update={"question": question}))).timings_ms.ttft

    def embed_ms(self, question: str) -> float:
        """Return the time that the embedding of a question takes."""
        return self.service.pipeline.preparation.retrieve(question, self._request.collection, 1).embed_ms

    def embed_beside_ms(self, question: str) -> float:
        """Return the same while an answer is being written."""
        request = self._request.model_copy(update={"question": question, "max_tokens": LONG_ANSWER})
        settings = self.service.config.answer.model_copy(update={"stop_repetition": False})
        events = Pipeline(self.service.components, settings).answer(request)
        next(events)
        next(events)
        try:
            return self.embed_ms(question)
        finally:
            events.close()


def _measure_prefetch(asker: _Asker, questions: Sequence[str], counter: Counter) -> Switch:
    if store := asker.service.components.store():
        store.flush()  # what is not on the disk cannot be taken out of memory
    return _switched(asker, "prefetch", "KV on disk, not in memory", questions, counter)


def _switched(asker: _Asker, setting: str, state: str, questions: Sequence[str], counter: Counter) -> Switch:
    """Measure times to the first token with a setting of answers off and on."""

    def ttft_ms(question: str, *, is_on: bool) -> float:
        return asker.ttft_ms(question, **{setting: is_on})

    off, on = partial(ttft_ms, is_on=False), partial(ttft_ms, is_on=True)
    return _compare(f"answer.{setting}", state, questions, off, on, counter)


def _measure_embedding(asker: _Asker, questions: Sequence[str], counter: Counter) -> Switch:
    state = "an idle engine, then a busy one"
    return _compare("embedding", state, questions, asker.embed_ms, asker.embed_beside_ms, counter)


def _compare(
    name: str,
    state: str,
    questions: Sequence[str],
    without: Callable[[str], float],
    with_it: Callable[[str], float],
    counter: Counter,
) -> Switch:
    """Measure both by turns, each first every other time."""
    first, second = list[float](), list[float]()
    for number, question in enumerate(questions):
        turns = [(without, first), (with_it, second)]
        for measure, found in turns if number % 2 == 0 else turns[::-1]:
            found.append(measure(question))
        counter.advance()
    ratio = median_ratio(first, second)
    return Switch(name=name, state=state, without_ms=summarise(first), with_ms=summarise(second), ratio=ratio)
