"""Looks at an installation: versions, backends, index, models, data directory, and one real answer."""

import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import DataError
from engine.errors import EngineError
from rag.client import Client
from rag.components import LIBRARY_NAME, STORE_NAME
from rag.config import RagConfig
from rag.data_dir import find_owner, open_owned
from rag.errors import RagError
from rag.file_stats import stats_below
from rag.model_hub import ModelHub
from rag.schemas import KVStoreInfo
from retriever.errors import RetrieverError

if TYPE_CHECKING:
    from retriever.retriever import Library

__all__ = ["Check", "diagnose"]

PACKAGES = ("preread", "torch", "tokenizers", "safetensors", "sentence-transformers", "transformers", "fastapi")
EXPECTED = (RagError, RetrieverError, EngineError, DataError, OSError, ImportError)
PROBE = "The lighthouse of Orrin was built in 1874. Its lamp burns whale oil and is lit every evening by Mara Venn."
PROBE_QUESTION = "Who lights the lamp of the lighthouse?"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `works` is None where it is only told."""

    name: str
    works: bool | None
    detail: str

    def as_dict(self) -> dict[str, object]:
        """Return it for JSON."""
        return asdict(self)


def diagnose(config: RagConfig, *, end_to_end: bool = True) -> list[Check]:
    """Run every check; what fails is a finding, not an exception."""
    checks = [Check("machine", None, f"{platform.platform()}, Python {platform.python_version()}, {_cpus()} CPUs")]
    checks.append(Check("packages", None, ", ".join(f"{name} {_version(name)}" for name in PACKAGES)))
    checks += _guarded("kernels", _kernels)
    checks += _guarded("index", _index)
    checks += _guarded("models", lambda: _models(config))
    checks += _guarded("data directory", lambda: _data_dir(config))
    checks += _guarded("KV store", lambda: _kv_store(config))
    checks += _guarded("collections", lambda: _collections(config))
    if end_to_end:
        checks += _guarded("end to end", lambda: _end_to_end(config))
    return checks


def _guarded(name: str, check: Callable[[], Iterator[Check]]) -> list[Check]:
    try:
        return list(check())
    except EXPECTED as error:
        return [Check(name, works=False, detail=str(error) or type(error).__name__)]


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _kernels() -> Iterator[Check]:
    from engine.backends import available_backends, describe, load_backend

    for name, reason in available_backends().items():
        yield Check(f"kernel backend {name}", None if reason else True, reason or "available")
    yield Check("kernel backend chosen", works=True, detail=describe(load_backend("auto", "cpu")))


def _index() -> Iterator[Check]:
    import faiss

    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    yield Check("index", works=True, detail=f"FAISS {faiss.__version__}, {gpus} GPUs")


def _models(config: RagConfig) -> Iterator[Check]:
    hub = ModelHub(config.models_dir)
    for role, name in (("language model", config.model), ("embedder", config.embedder)):
        try:
            yield Check(role, works=True, detail=f"{name}: {hub.resolve(name)}")
        except RagError as error:
            yield Check(role, works=False, detail=str(error))


def _data_dir(config: RagConfig) -> Iterator[Check]:
    path, owner = config.data_dir, find_owner(config.data_dir)
    if owner is not None:
        served = f"served at {owner.url}" if owner.url else "without HTTP API"
        yield Check("data directory", works=True, detail=f"{path}, in use by process {owner.pid}, {served}")
        return
    if not path.exists():
        yield Check("data directory", works=True, detail=f"{path}, not made yet")
        return
    writable = os.access(path, os.W_OK)
    size = sum(512 * one.st_blocks for one in stats_below(path))  # KV extents have holes
    detail = f"{path}, {size / 2**20:.1f} MiB" + ("" if writable else ", not writable: choose another with --data-dir")
    yield Check("data directory", writable, detail)


def _kv_store(config: RagConfig) -> Iterator[Check]:
    """Read the headers of every stored record, or ask the server that has them open."""
    owner = find_owner(config.data_dir)
    if owner is not None and not owner.url:
        yield Check("KV store", None, f"not looked at while process {owner.pid} uses it; stop it and run this again")
        return
    store = _served_store(owner.url) if owner is not None and owner.url else _own_store(config)
    if store is None:
        yield Check("KV store", None, "none yet; it is made with the first answer, or with `rag ingest --precompute`")
        return
    detail = (
        f"{store.records} records, {store.bytes_stored / 2**20:.1f} of {store.bytes_budget / 2**20:.0f} MiB, "
        f"{store.damages} damaged places, {store.bad_records} bad records"
    )
    yield Check("KV store", True if store.damages + store.bad_records == 0 else None, detail)


def _served_store(url: str) -> KVStoreInfo | None:
    with closing(Client(url)) as client:
        info = client.health().get("kv_store")
    return KVStoreInfo.model_validate(info) if info else None


def _own_store(config: RagConfig) -> KVStoreInfo | None:
    from rag.service import Service

    if not (config.data_dir / STORE_NAME).exists():
        return None
    with open_owned(config.data_dir), Service(config) as service:
        store = service.components.store()
        return store.info() if store else None


def _collections(config: RagConfig) -> Iterator[Check]:
    """Look at the index of every collection, and compare it with what is stored."""
    from retriever.retriever import Library

    owner = find_owner(config.data_dir)
    if owner is not None:
        detail = f"not looked at while process {owner.pid} uses them; stop it and run this again"
        yield Check("collections", None, detail)
        return
    if not (config.data_dir / LIBRARY_NAME).exists():
        yield Check("collections", None, "none yet; add documents with `rag ingest PATH`")
        return
    with (
        open_owned(config.data_dir),
        Library.open(config.data_dir / LIBRARY_NAME, config.retriever.build()) as library,
    ):
        names = [collection.name for collection in library.collections()]
        for name in names:
            yield from _guarded(f"collection {name}", partial(_collection, library, name))
        if not names:
            yield Check("collections", None, "none yet; add documents with `rag ingest PATH`")


def _collection(library: "Library", name: str) -> Iterator[Check]:
    row, status = library.collection(name), library.index_status(name)
    trained = "trained" if status.get("is_trained", True) else "not trained"
    detail = (
        f"{row.num_documents} documents, {row.num_passages} passages, index {status['factory']}: "
        f"{status['vectors']} vectors, {status['dead']} dead, {trained}"
    )
    library.check_invariants(name)
    yield Check(f"collection {name}", works=True, detail=f"{detail}; index and store agree")


def _end_to_end(config: RagConfig) -> Iterator[Check]:
    """Ingest one document into a throw-away directory, ask twice, and look at what comes back."""
    from rag.operations import final_answer
    from rag.schemas import AnswerRequest
    from rag.service import Service
    from retriever.document import TextSource

    with tempfile.TemporaryDirectory(prefix="preread-doctor-") as folder:
        probe_config = config.model_copy(update={"data_dir": Path(folder)})
        with Service(probe_config) as service:
            report = service.ingest("probe", [TextSource("probe:lighthouse", PROBE)])
            yield Check("ingest", report.passages > 0, f"{report.passages} passage in {report.seconds:.1f} s")
            request = AnswerRequest(question=PROBE_QUESTION, collection="probe", max_tokens=24)
            first, second = (final_answer(service.answer(request)) for _ in range(2))
    cited = bool(first.citations) and all(
        first.answer[citation.start : citation.end] == citation.marker for citation in first.citations
    )
    text = " ".join(first.answer.split())
    yield Check("answer", cited, f"{first.usage.completion_tokens} tokens, {len(first.citations)} citations: {text}")
    hit = second.cache.passages[0].outcome != "computed"
    yield Check(
        "cache",
        hit,
        f"asked again: {second.usage.cached_tokens} of {second.usage.prompt_tokens} prompt tokens from cache, "
        f"first token after {second.timings_ms.ttft:.0f} ms instead of {first.timings_ms.ttft:.0f} ms",
    )
