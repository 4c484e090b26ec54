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

__all__ = ["collection_dir", "default_work_dir", "ingest_corpus"]

logger = logging.getLogger(__name__)


def default_work_dir() -> Path:
    """Return the folder in the user's cache where collections of benchmarks are kept."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("preread")) / "bench"


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
