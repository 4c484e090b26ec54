"""The collections that benchmarks ask: a corpus, ingested once and kept between runs."""

import logging
from pathlib import Path

from blake3 import blake3

from data.corpora import Corpus
from rag.bench.progress import BenchEvent, Progress
from rag.config import RagConfig
from rag.service import Service
from retriever.document import TextSource
from retriever.ingest import IngestEvent

__all__ = ["collection_dir", "default_work_dir", "ingest_corpus", "with_collection"]

logger = logging.getLogger(__name__)


def default_work_dir() -> Path:
    """Return the folder in the user's cache where collections of benchmarks are kept."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("preread")) / "bench"


def with_collection(config: RagConfig, work_dir: Path | None, corpus: Corpus, *, keeps_kv: bool = False) -> RagConfig:
    """Return the settings for a benchmark's own collection of a corpus; its KV is stored only where that is asked for.

    Args:
        config: the user's.
        work_dir: where collections are kept; None is a folder in the user's cache.
        corpus: whose documents the collection has.
        keeps_kv: whether the engine stores KV there, as the settings say.
    """
    engine = config.engine if keeps_kv else config.engine.model_copy(update={"kv_store_bytes": 0})
    return config.model_copy(update={"data_dir": collection_dir(config, work_dir, corpus), "engine": engine})


def collection_dir(config: RagConfig, work_dir: Path | None, corpus: Corpus) -> Path:
    """Name a folder for each way of cutting and embedding a corpus, so that none has to be undone for another."""
    key = "\0".join((config.model, config.embedder, config.retriever.model_dump_json()))
    name = f"{corpus.name}-{blake3(key.encode()).hexdigest()[:12]}"
    return (work_dir or default_work_dir()).expanduser().absolute() / name


def ingest_corpus(service: Service, corpus: Corpus, progress: Progress) -> None:
    """Bring the collection of the corpus's name up to date; one that is there already takes no time."""

    def show(event: IngestEvent) -> None:
        progress(BenchEvent("ingest", event.documents, event.total))

    sources = [TextSource(d.uri, d.text, d.title, d.media_type) for d in corpus.documents]
    report = service.ingest(corpus.name, sources, prune_scope=[""], progress=show)
    for skipped in report.skipped:
        logger.warning("%s is left out: %s", skipped.uri, skipped.reason)
