"""What can be asked of Preread, whoever does it: this process (`Service`) or a running server (`Client`)."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Protocol

from rag.config import RetrieverSettings
from rag.key_operations import KeyOperations
from rag.schemas import (
    Answer,
    AnswerEvent,
    AnswerRequest,
    CollectionInfo,
    CollectionPatch,
    DeletedDocument,
    DocumentInfo,
    DocumentWithPassages,
    DoneEvent,
    IngestReport,
    NewCollection,
    PrecomputePlan,
    PrecomputeProgress,
    SearchRequest,
    SearchResult,
)
from rag.usage_operations import UsageOperations
from retriever.document import Source
from retriever.ingest import IngestEvent

__all__ = ["Operations", "Progress", "final_answer", "ignore_progress", "ignored_settings"]

Progress = Callable[[IngestEvent], None]


def ignore_progress(event: IngestEvent) -> None:
    """Stand in for a progress callback."""


def final_answer(events: Iterable[AnswerEvent]) -> Answer:
    """Read a stream of events to its end and return the answer."""
    last = None
    for last in events:  # noqa: B007 - only the last one is wanted
        pass
    assert isinstance(last, DoneEvent), f"an answer ended with {last!r}"
    return last.answer


def ignored_settings(collection: CollectionInfo, wanted: RetrieverSettings) -> list[str]:
    """Say which settings do nothing because the collection keeps those it was made with.

    A setting that has its default is not asked for: the collection may have been made with another one on purpose.
    """
    default = RetrieverSettings()
    return [
        f"PREREAD_RETRIEVER__{name.upper()} asks for {getattr(wanted, name)}, but collection {collection.name!r} was "
        f"made with {name} {getattr(collection, name)} and keeps it; to use {getattr(wanted, name)}, make a new "
        "collection (--collection NAME), and where a server does the work, start that with the setting"
        for name in ("passage_tokens", "overlap_tokens", "index_factory")
        if getattr(wanted, name) not in (getattr(default, name), getattr(collection, name))
    ]


class Operations(Protocol):
    """Documents in, answers out. Errors are those of `retriever`, `engine` and `rag`, or `ServerError`."""

    @property
    def keys(self) -> KeyOperations:
        """Makes, shows and revokes API keys."""

    @property
    def usage(self) -> UsageOperations:
        """Tells what was used."""

    def answer(self, request: AnswerRequest) -> Iterator[AnswerEvent]:
        """Answer a question; yields retrieval, deltas, citations, done."""

    def search(self, request: SearchRequest) -> SearchResult:
        """Find passages."""

    def ingest(
        self,
        collection: str,
        sources: Sequence[Source],
        *,
        prune_scope: Sequence[str] | None = None,
        progress: Progress = ignore_progress,
    ) -> IngestReport:
        """Bring a collection in line with sources; it is made if it is missing and a document can be used.

        Args:
            collection: its name.
            sources: documents to add or to replace.
            prune_scope: remove documents below these uri prefixes that are not among the sources; None removes none.
            progress: called after every step.
        """

    def precompute_plan(self, collection: str) -> PrecomputePlan:
        """Tell what it takes to store the KV of a collection's passages."""

    def precompute(self, collection: str) -> Generator[PrecomputeProgress, None, None]:
        """Compute and store the KV of a collection's passages, best ones first, as far as the budget goes.

        What is stored is skipped, and stays when the generator is closed early.
        """

    def collections(self) -> list[CollectionInfo]:
        """Return every collection, by name."""

    def collection(self, name: str) -> CollectionInfo:
        """Return a collection."""

    def create_collection(self, wanted: NewCollection) -> CollectionInfo:
        """Make an empty collection with settings of its own."""

    def update_collection(self, name: str, patch: CollectionPatch) -> CollectionInfo:
        """Change how questions over a collection are answered."""

    def delete_collection(self, name: str) -> None:
        """Delete a collection with everything in it."""

    def documents(self, collection: str) -> list[DocumentInfo]:
        """Return every document of a collection, by uri."""

    def document(self, collection: str, document_id: str) -> DocumentWithPassages:
        """Return a document with its passages."""

    def delete_document(self, collection: str, document_id: str, *, purge: bool = False) -> DeletedDocument:
        """Delete a document with its passages, and return it; with `purge` no copy of them is left."""

    def close(self) -> None:
        """Let go of everything held."""
