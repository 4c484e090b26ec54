"""From a workload to requests as token ids: passages found by the real embedder, or real text laid over lengths."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from data.corpora import CORPUS_NAMES, Corpus
from data.folders import find_corpus
from data.traces import TraceRequest
from data.workloads import Arrival, Workload
from engine.models.config import ModelConfig
from engine.prompt import Prompt
from engine.tokenizer import Tokenizer
from rag.bench.collection import ingest_corpus, with_collection
from rag.bench.progress import BenchEvent, Progress
from rag.bench.stream import gold_rank
from rag.bench.suite.drawing import Drawn, draw
from rag.bench.suite.experiment import WorkloadKind, WorkloadSpec
from rag.bench.suite.requests import BenchRequest, RequestStream
from rag.bench.trace_prompts import TracePrompts, read_documentation
from rag.config import RagConfig
from rag.data_dir import open_owned
from rag.errors import InvalidRequestError
from rag.model_hub import ModelHub
from rag.service import Service

if TYPE_CHECKING:
    from retriever.embedder import TextEmbedder

__all__ = ["make_stream"]


def make_stream(
    spec: WorkloadSpec,
    config: RagConfig,
    progress: Progress,
    *,
    work_dir: Path | None = None,
    embedder: "TextEmbedder | None" = None,
) -> RequestStream:
    """Draw or read a workload and lay out its prompts for the model.

    Equal settings give equal digests on machines with the same release of Python, whose documentation the text is.

    Args:
        spec: what is asked.
        config: model, embedder, splitting and words; its data directory is not touched.
        progress: called as it advances.
        work_dir: where collections of benchmarks are kept; None is a folder in the user's cache.
        embedder: used instead of the configured one (tests).

    Raises:
        DataError: it cannot be read.
        InvalidRequestError: a workload that cannot be drawn, or prompts that do not fit the model.
        UnknownModelError: the model is not here.
        DataDirBusyError: another benchmark of the same collection is running.
    """
    drawn = draw(spec)
    if isinstance(drawn.content, Workload):
        return _asked(drawn.content, drawn.spec, config, progress, work_dir, embedder)
    return _laid(drawn, config, progress)


def _asked(
    workload: Workload,
    spec: WorkloadSpec,
    config: RagConfig,
    progress: Progress,
    work_dir: Path | None,
    embedder: "TextEmbedder | None",
) -> RequestStream:
    """Retrieve passages for every question, each time anew, and lay the prompts out as the pipeline does."""
    corpus = find_corpus(workload.corpus)
    config = with_collection(config, work_dir, corpus)
    with open_owned(config.data_dir), Service(config, embedder=embedder) as service:
        ingest_corpus(service, corpus, progress)
        progress(BenchEvent("load", 0, None))
        service.components.embedder().embed_query(workload.arrivals[0].question.text)  # its first use takes longer
        limit = _context(config) - spec.output_tokens
        requests = []
        for number, arrival in enumerate(workload.arrivals):
            requests.append(_retrieved(service, corpus, spec, number, arrival, limit))
            progress(BenchEvent("retrieve", number + 1, len(workload.arrivals)))
    return RequestStream(tuple(requests), f"questions about {corpus.source}, {_popularity(workload)}")


def _popularity(workload: Workload) -> str:
    """Say how often what is asked for again, of which a benchmark of caches depends."""
    ranked = "documents they ask for" if workload.popularity == "document" else "questions"
    asked = {arrival.question for arrival in workload.arrivals}
    documents = {question.gold_document_id for question in asked}
    drawn = f"drawn by Zipf (s = {workload.s:g}) over the {ranked}"
    return f"{drawn}: {len(asked)} distinct questions, {len(documents)} documents"


def _retrieved(
    service: Service, corpus: Corpus, spec: WorkloadSpec, number: int, arrival: Arrival, limit: int
) -> BenchRequest:
    question = arrival.question
    found = service.pipeline.preparation.retrieve(question.text, corpus.name, spec.k)
    passages = [hit.passage for hit in found.hits]
    return BenchRequest(
        number=number,
        time=arrival.time,
        prompt=service.components.layout().lay_out(question.text, passages, max_tokens=limit).prompt,
        output_tokens=spec.output_tokens,
        question=question.text,
        golds=tuple(gold.text for gold in question.golds),
        gold_rank=gold_rank(question, found.hits),
        retrieval_ms=found.embed_ms + found.search_ms,
    )


def _laid(drawn: Drawn, config: RagConfig, progress: Progress) -> RequestStream:
    spec, trace = drawn.spec, drawn.content
    assert not isinstance(trace, Workload), "questions in words have text of their own"
    progress(BenchEvent("text", 0, None))
    talks = spec.kind is WorkloadKind.CONVERSATIONS
    fitting = _fitting(trace.requests, spec, config)
    requests = tuple(
        BenchRequest(
            number=number,
            time=one.timestamp,
            prompt=prompt,
            output_tokens=spec.output_tokens,
            conversation=one.session_id if talks else "",
        )
        for number, (one, prompt) in enumerate(fitting)
    )
    left_out = len(trace.requests) - len(requests)
    without = f"; {left_out} requests too long for the model left out" if left_out else ""
    return RequestStream(requests, f"{trace.name}, with text of {' and '.join(CORPUS_NAMES)}{without}")


def _fitting(
    requests: Sequence[TraceRequest], spec: WorkloadSpec, config: RagConfig
) -> list[tuple[TraceRequest, Prompt]]:
    """Return requests whose prompts leave room for an answer; only recorded ones may be left out."""
    limit = _context(config) - spec.output_tokens
    short = [one for one in requests if _least_tokens(one) <= limit]  # no text is laid over what cannot fit
    folder = ModelHub(config.models_dir).resolve(config.model)
    prompts = TracePrompts.make(
        short,
        Tokenizer(folder),
        config.prompt,
        _documentation(folder),
        dialogue=spec.kind is WorkloadKind.CONVERSATIONS,
    ).prompts
    fitting = [(one, prompt) for one, prompt in zip(short, prompts, strict=True) if prompt.num_tokens <= limit]
    if not fitting or (len(fitting) < len(requests) and spec.kind is not WorkloadKind.RAGPULSE):
        longest = max((*map(_least_tokens, requests), *(prompt.num_tokens for prompt in prompts)))
        raise InvalidRequestError(
            f"a prompt has {longest} tokens, and {config.model} reads {limit} before an answer of "
            f"{spec.output_tokens}: ask for fewer or shorter passages"
        )
    return fitting


def _least_tokens(request: TraceRequest) -> int:
    return sum(part.num_tokens for part in (*request.passages, *request.history, *request.web_search))


@lru_cache(maxsize=1)
def _documentation(folder: Path) -> tuple[int, ...]:
    """Return the text that is laid over ids; it is the same for all workloads of a run."""
    return tuple(read_documentation(Tokenizer(folder)))


def _context(config: RagConfig) -> int:
    return ModelConfig.from_folder(ModelHub(config.models_dir).resolve(config.model)).max_position_embeddings
