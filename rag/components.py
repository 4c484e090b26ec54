"""The heavy parts, each made when it is first needed: a search never loads the language model.

Knows how to make them, not what they are used for.
"""

import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

from engine.errors import ConfigError
from rag.activity import Activity
from rag.answering import answering_of, template_of
from rag.config import RagConfig
from rag.fair_threads import FairThreads
from rag.key_store import KeyStore
from rag.living_store import LivingStore
from rag.model_hub import ModelHub
from rag.prompt_template import PromptTemplate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from engine.tokenizer import Tokenizer
    from engine.worker import EngineWorker
    from rag.cleaning import MemoryPurge
    from rag.ledger import Ledger
    from rag.prompt_layout import PassageTokens, PromptLayout
    from rag.retrieval_log import RetrievalLog
    from rag.shadow import ShadowChecker
    from rag.telemetry.telemetry import Telemetry
    from retriever.embedder import TextEmbedder, Vectors
    from retriever.records import Collection
    from retriever.retriever import Library

__all__ = ["LIBRARY_NAME", "STORE_NAME", "Components", "LateEmbedder", "Once"]

logger = logging.getLogger(__name__)

LIBRARY_NAME = "library"  # folders in the data directory
STORE_NAME = "kv"
MAX_DEFAULT_STORE_BYTES = 8 * 2**30
FREE_DISK_SHARE = 10  # a tenth of it
QUESTIONS_AT_ONCE = 4  # are prepared; embedding uses every core anyway
MAX_LAYOUTS = 256  # as many templates are laid out once

T = TypeVar("T")


class Once(Generic[T]):
    """A value that is made by the first thread that needs it; the others wait for it."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = Lock()
        self._made: list[T] = []

    def __call__(self) -> T:
        """Return the value; what making it raises is raised, and the next call tries again."""
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]

    @property
    def if_made(self) -> T | None:
        """The value, or None where nobody has needed it."""
        return self._made[0] if self._made else None


class LateEmbedder:
    """An embedder that is looked up when it is used, so that documents can be listed where none was pulled."""

    def __init__(self, embedder: "Once[TextEmbedder]") -> None:
        self._embedder = embedder

    @property
    def name(self) -> str:
        """Return a name for people."""
        return self._embedder().name

    @property
    def fingerprint(self) -> str:
        """Return what vectors depend on."""
        return self._embedder().fingerprint

    @property
    def dimension(self) -> int:
        """Return the length of a vector."""
        return self._embedder().dimension

    def embed_documents(self, texts: "Sequence[str]", headers: "Sequence[str] | None" = None) -> "list[Vectors]":
        """Return float32 unit vectors [windows, dimension] of each text; its header goes before every window."""
        return self._embedder().embed_documents(texts, headers)

    def embed_query(self, text: str) -> "Vectors":
        """Return the float32 unit vector [dimension] of a question."""
        return self._embedder().embed_query(text)

    def num_tokens(self, texts: "Sequence[str]") -> int:
        """Count the tokens of texts as the embedder cuts them."""
        return self._embedder().num_tokens(texts)


class Components:
    """Model hub, tokenizer, layout, embedder, library and engine of one configuration.

    Args:
        config: names the models and folders.
        embedder: used instead of the configured one (tests).
    """

    def __init__(self, config: RagConfig, *, embedder: "TextEmbedder | None" = None) -> None:
        self.config = config
        self.hub = ModelHub(config.models_dir)
        self.tokenizer: Once[Tokenizer] = Once(self._make_tokenizer)
        self.passage_tokens: Once[PassageTokens] = Once(self._make_passage_tokens)
        self.layout: Once[PromptLayout] = Once(self._make_layout)
        self.embedder: Once[TextEmbedder] = Once(lambda: embedder or self._make_embedder())
        self.library: Once[Library] = Once(self._make_library)
        self.keys = Once(lambda: KeyStore(self.library().store))
        self.store: Once[LivingStore | None] = Once(self._make_store)
        self.worker: Once[EngineWorker] = Once(self._make_worker)
        self.shadow: Once[ShadowChecker | None] = Once(self._make_shadow)
        self.ledger: Once[Ledger] = Once(self._make_ledger)
        self.retrieval_log: Once[RetrievalLog] = Once(self._make_retrieval_log)
        self.telemetry: Once[Telemetry] = Once(self._make_telemetry)
        self.activity = Activity()
        self.purging: list[MemoryPurge] = []  # what answers under way still read in the engine's memory
        self.threads = FairThreads(QUESTIONS_AT_ONCE, config.engine.max_share_waiting)
        self.layout_with = lru_cache(MAX_LAYOUTS)(self._layout_with)
        self._is_loaded = False

    def load(self) -> None:
        """Load embedder and language model at the same time; nothing happens where they are loaded."""
        if self.is_loaded:
            return
        self.telemetry()
        self.hub.resolve(self.config.model)  # a name that is wrong is told before anything is loaded
        self.hub.resolve(self.config.embedder)
        import torch  # noqa: F401 - two threads must not be the first to import it

        with ThreadPoolExecutor(2, thread_name_prefix="load") as pool:
            engine, embedder = pool.submit(self.worker), pool.submit(lambda: self.embedder().dimension)
            engine.result()
            embedder.result()
        self._is_loaded = True

    def layout_of(self, collection: "Collection") -> "PromptLayout":
        """Return the layout of a collection's prompts; where it says nothing of it, the usual one."""
        return self.layout_with(template_of(answering_of(collection), self.config.prompt))

    def _layout_with(self, template: PromptTemplate) -> "PromptLayout":
        from rag.prompt_layout import PromptLayout

        return PromptLayout(self.tokenizer(), template, self.passage_tokens())

    @property
    def is_loaded(self) -> bool:
        """Whether `load` has come to its end: a question can be answered without loading anything."""
        return self._is_loaded

    @property
    def keeps_kv(self) -> bool:
        """Whether new KV is stored; what was stored before may still have to be cleaned up where it is not."""
        return self.config.engine.kv_store_bytes != 0

    def close(self) -> None:
        """Stop the engine, write its KV down, then save and close the library."""
        if worker := self.worker.if_made:
            worker.close()
        self.threads.close()
        if shadow := self.shadow.if_made:
            shadow.close()
        if store := self.store.if_made:
            store.close()
        if keys := self.keys.if_made:
            keys.flush()
        if telemetry := self.telemetry.if_made:
            telemetry.close()
        if library := self.library.if_made:
            library.close()

    def _make_tokenizer(self) -> "Tokenizer":
        from engine.tokenizer import Tokenizer

        return Tokenizer(self.hub.resolve(self.config.model))

    def _make_passage_tokens(self) -> "PassageTokens":
        from rag.prompt_layout import PassageTokens

        return PassageTokens(self.tokenizer())

    def _make_layout(self) -> "PromptLayout":
        return self.layout_with(self.config.prompt)

    def _make_embedder(self) -> "TextEmbedder":
        from retriever.embedder import Embedder

        return Embedder(self.hub.resolve(self.config.embedder))

    def _make_library(self) -> "Library":
        from retriever.retriever import Library

        return Library.open(
            self.config.data_dir / LIBRARY_NAME, self.config.retriever.build(), embedder=LateEmbedder(self.embedder)
        )

    @property
    def store_folder(self) -> "Path":
        """Where KV is stored, if it is."""
        return self.config.data_dir / STORE_NAME

    def _make_store(self) -> "LivingStore | None":
        """Open the KV store; there is none on a disk that fails, and where its budget is 0 and none was made before."""
        budget, folder = self.config.engine.kv_store_bytes, self.store_folder
        if not (self.keeps_kv or folder.exists()):
            return None
        from engine.kv_store import ExtentStore

        try:
            store = ExtentStore(folder, capacity_bytes=budget or _default_budget(folder))
        except (ConfigError, OSError) as error:
            logger.warning("KV is not stored, and passages are read again after a restart: %s", error)
            return None
        living = LivingStore(store, self.library().derived)
        living.sweep()
        living.clean()
        return living

    def _make_worker(self) -> "EngineWorker":
        from engine.engine import Engine
        from engine.worker import EngineWorker
        from rag.certify.folders import certificates_of

        folder = self.hub.resolve(self.config.model)
        store = self.store() if self.keeps_kv else None
        certificates = certificates_of(self.hub, self.config.model)
        engine = Engine.from_pretrained(folder, self.config.engine.build(), store=store, certificates=certificates)
        return EngineWorker(engine).start()

    def _make_shadow(self) -> "ShadowChecker | None":
        """Make what looks at answers again, if any of them are to be."""
        from rag.certify.folders import certificates_of
        from rag.shadow import ShadowChecker

        worker, rate = self.worker(), self.config.server.shadow_rate
        certificates = certificates_of(self.hub, self.config.model)
        return ShadowChecker(worker, rate, partial(certificates.find, worker.engine.identity)) if rate else None

    def _make_ledger(self) -> "Ledger":
        from rag.ledger import Ledger

        return Ledger(self.library().store)

    def _make_retrieval_log(self) -> "RetrievalLog":
        from rag.retrieval_log import RetrievalLog

        return RetrievalLog(self.library().store, self.config.server.logged_retrievals)

    def _make_telemetry(self) -> "Telemetry":
        from rag.telemetry.spans import Tracing
        from rag.telemetry.state_metrics import StateMetrics
        from rag.telemetry.telemetry import Telemetry

        settings = self.config.server
        return Telemetry(
            self.ledger(),
            self.retrieval_log(),
            StateMetrics(self),
            tracing=Tracing(self.config.embedder) if settings.tracing else None,
            log_questions=settings.log_questions,
        )


def _default_budget(folder: "Path") -> int:
    """Return a tenth of the disk space that is free or the store's own, at most 8 GiB."""
    folder.mkdir(parents=True, exist_ok=True)
    own = sum(file.stat().st_blocks * 512 for file in folder.iterdir() if file.is_file())  # extents have holes
    return min((shutil.disk_usage(folder).free + own) // FREE_DISK_SHARE, MAX_DEFAULT_STORE_BYTES)
