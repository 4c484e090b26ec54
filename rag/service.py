"""Everything Preread does, in this process: what the CLI, the server and the benchmark call.

Every method may be called from any thread. Whoever makes a `Service` owns the data directory (`data_dir.open_owned`).
"""

import asyncio
from collections.abc import AsyncGenerator, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rag.answering import answering_json, answering_of, patched, settings_of, template_of
from rag.bare_model import BareModel
from rag.cache_control import CacheControl
from rag.caller import NOBODY, Caller
from rag.cleaning import clean, drop_namespace, outdate
from rag.cleaning import purge as purge_kv
from rag.components import Components
from rag.config import RagConfig
from rag.idle import IdlePrecompute
from rag.key_operations import StoredKeys
from rag.library_infos import collection_info, document_info, document_with_passages, ingest_report
from rag.operations import Progress, ignore_progress, ignored_settings
from rag.pipeline import Pipeline
from rag.precompute import Precompute
from rag.schemas import (
    AnswerEvent,
    Answering,
    AnswerRequest,
    CollectionInfo,
    CollectionPatch,
    DeletedDocument,
    DocumentInfo,
    DocumentPatch,
    DocumentWithPassages,
    IngestReport,
    NewCollection,
    PrecomputePlan,
    PrecomputeProgress,
    SearchRequest,
    SearchResult,
)
from rag.usage_operations import StoredUsage
from retriever.document import Source
from retriever.ingest import IngestEvent, Stage

if TYPE_CHECKING:
    from retriever.embedder import TextEmbedder

__all__ = ["Service"]

WARM_UP = "A few words of no importance. " * 16
MAX_RUNS = 2  # over passages, of as many collections, that advance at once beside each other


class Service:
    """Documents in, answers out; heavy parts load when they are first needed.

    Args:
        config: every setting.
        embedder: used instead of the configured one (tests).
    """

    def __init__(self, config: RagConfig, *, embedder: "TextEmbedder | None" = None) -> None:
        self.config = config
        self.components = Components(config, embedder=embedder)
        self.pipeline = Pipeline(self.components)
        self.bare_model = BareModel(self.components)
        self.cache = CacheControl(self.components)
        self._precompute = Precompute(self.components)
        self._idle = IdlePrecompute(self.components, self._precompute)
        self._threads = ThreadPoolExecutor(MAX_RUNS, "precompute")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engine, save and close the library; unfinished answers end with `EngineStoppedError`."""
        self._idle.close()
        self.components.close()
        self._threads.shutdown(cancel_futures=True)

    def load(self) -> None:
        """Load embedder and language model now, so that the first question does not wait for them."""
        self.components.load()

    def warm_up(self) -> None:
        """Load the models and run each once, so that the first question pays for no first use."""
        from engine.config import SamplingParams

        self.load()
        self.components.embedder().embed_query(WARM_UP)
        worker = self.components.worker()
        tokens = self.components.tokenizer().encode(WARM_UP)
        handle = worker.submit_sync(tokens, SamplingParams(max_tokens=2, ignore_eos=True), namespace="warm-up")
        for _ in worker.stream_sync(handle):
            pass

    @property
    def keys(self) -> StoredKeys:
        """Makes, shows and revokes API keys."""
        return StoredKeys(self.components.keys())

    @property
    def usage(self) -> StoredUsage:
        """Tells what was used."""
        return StoredUsage(self.components)

    def work_while_idle(self) -> None:
        """From now on, while nobody waits, look at answers again and read passages ahead, as the settings say."""
        self.components.shadow()
        if self.config.engine.precompute_when_idle and self.components.keeps_kv:
            self._idle.start()

    @property
    def is_loaded(self) -> bool:
        """Whether a question can be answered without loading anything."""
        return self.components.is_loaded

    def answer(self, request: AnswerRequest, caller: Caller = NOBODY) -> Generator[AnswerEvent, None, None]:
        """Answer a question; see `Pipeline.answer`."""
        self.components.library().collection(request.collection)  # a wrong name is told before models load
        return self.pipeline.answer(request, caller)

    def answer_async(self, request: AnswerRequest, caller: Caller = NOBODY) -> AsyncGenerator[AnswerEvent, None]:
        """Answer a question on an event loop; see `Pipeline.answer_async`."""
        return self.pipeline.answer_async(request, caller)

    def search(self, request: SearchRequest) -> SearchResult:
        """Find passages; see `Pipeline.search`."""
        return self.pipeline.search(request)

    def ingest(
        self,
        collection: str,
        sources: Sequence[Source],
        *,
        prune_scope: Sequence[str] | None = None,
        progress: Progress = ignore_progress,
    ) -> IngestReport:
        """Bring a collection in line with sources; see `Operations.ingest`."""
        with self.components.activity.busy():
            report = self._ingest(collection, sources, prune_scope, progress)
        clean(self.components)
        return report

    def _ingest(
        self, collection: str, sources: Sequence[Source], prune_scope: Sequence[str] | None, progress: Progress
    ) -> IngestReport:
        started = perf_counter()
        encoder = self.components.passage_tokens()
        library = self.components.library()
        is_new = all(row.name != collection for row in library.collections())
        row = library.ensure_collection(collection)
        for message in ignored_settings(collection_info(row), self.config.retriever):
            progress(IngestEvent(Stage.NOTICE, "", 0, len(sources), 0, message))
        try:
            report = library.ingest(
                collection, sources, encoder, prune=prune_scope is not None, scope=prune_scope, progress=progress
            )
        finally:
            if is_new:
                library.drop_empty_collection(collection)  # nothing came of it
        return ingest_report(collection, report, perf_counter() - started)

    def precompute_plan(self, collection: str) -> PrecomputePlan:
        """Tell what it takes to store the KV of a collection's passages; see `Precompute.plan`."""
        return self._precompute.plan(collection)

    def precompute(self, collection: str) -> Generator[PrecomputeProgress, None, None]:
        """Compute and store the KV of a collection's passages; see `Operations.precompute`."""
        with self._precompute.alone(collection), self.components.activity.busy():
            run = self._precompute.start(collection)
            with closing(iter(run)) as events:
                yield from events

    async def precompute_async(self, collection: str) -> AsyncGenerator[PrecomputeProgress, None]:
        """Do what `precompute` does without blocking the event loop; cancelling the task ends it."""
        in_thread = partial(asyncio.get_running_loop().run_in_executor, self._threads)
        with self._precompute.alone(collection), self.components.activity.busy():
            run = await in_thread(self._precompute.start, collection)
            events = iter(run)
            try:
                while (progress := await in_thread(next, events, None)) is not None:
                    yield progress
            finally:
                run.stop()

    def collections(self) -> list[CollectionInfo]:
        """Return every collection, by name."""
        return [collection_info(row) for row in self.components.library().collections()]

    def collection(self, name: str) -> CollectionInfo:
        """Return a collection.

        Raises:
            UnknownCollectionError: there is none of this name.
        """
        return collection_info(self.components.library().collection(name))

    def create_collection(self, wanted: NewCollection) -> CollectionInfo:
        """Make an empty collection with settings of its own.

        Raises:
            CollectionExistsError: there is one of this name.
            SettingsError: the name or a setting cannot work.
            TemplateError: the words around the passages do not go with the model.
        """
        self._check_template(wanted.answering)
        settings = settings_of(wanted.settings, self.config.retriever)
        answering = answering_json(wanted.answering)
        return collection_info(self.components.library().create_collection(wanted.name, settings, answering=answering))

    def update_collection(self, name: str, patch: CollectionPatch) -> CollectionInfo:
        """Change how questions over a collection are answered. Errors are those of `create_collection`.

        Raises:
            UnknownCollectionError: there is none of this name.
        """
        library = self.components.library()
        answering = patched(answering_of(library.collection(name)), patch.answering)
        self._check_template(answering)
        return collection_info(library.set_answering(name, answering_json(answering)))

    def _check_template(self, answering: Answering) -> None:
        if answering.prompt is not None:
            _ = self.components.layout_with(template_of(answering, self.config.prompt)).head

    def delete_collection(self, name: str) -> None:
        """Delete a collection with everything in it, its cached KV included.

        Raises:
            UnknownCollectionError: there is none of this name.
        """
        collection = self.components.library().delete_collection(name)
        drop_namespace(self.components, collection)
        clean(self.components)

    def documents(self, collection: str) -> list[DocumentInfo]:
        """Return every document of a collection, by uri.

        Raises:
            UnknownCollectionError: there is no such collection.
        """
        return [document_info(row) for row in self.components.library().documents(collection)]

    def document(self, collection: str, document_id: str) -> DocumentWithPassages:
        """Return a document with its passages.

        Raises:
            UnknownDocumentError: the collection has none of this id.
        """
        library = self.components.library()
        row = library.document(collection, document_id)
        return document_with_passages(row, library.passages(collection, document_id))

    def update_document(self, collection: str, document_id: str, patch: DocumentPatch) -> DocumentInfo:
        """Replace a document's metadata, and return the document.

        Raises:
            UnknownDocumentError: the collection has none of this id.
        """
        return document_info(self.components.library().set_metadata(collection, document_id, patch.metadata))

    def delete_document(self, collection: str, document_id: str, *, purge: bool = False) -> DeletedDocument:
        """Delete a document with its passages, and return it; with `purge` no copy of their KV is left.

        Raises:
            UnknownDocumentError: the collection has none of this id.
        """
        if not purge:
            deletion = self.components.library().delete_document(collection, document_id)
            outdate(self.components, deletion.collection_id, deletion.generation)
            clean(self.components)
            return DeletedDocument(**document_info(deletion.document).model_dump())
        with self.components.activity.busy():  # what is read ahead may be what is purged
            document, purged = purge_kv(self.components, collection, document_id)
        return DeletedDocument(**document_info(document).model_dump(), purge=purged)
