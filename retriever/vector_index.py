"""A FAISS inner-product index over stable 64-bit ids, derived from the store and rebuilt from it at will.

It may hold ids that are deleted or not committed yet: whoever searches resolves ids through live rows and fetches more
where some were dead. So every factory string works, also those whose index cannot remove (HNSW, GPU).
Knows nothing of passages, SQL or text.
"""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.document import digest
from retriever.embedder import Vectors
from retriever.index_spec import IndexSpec, load_faiss, one_thread, to_cpu, to_gpu, with_ids

__all__ = ["Ids", "VectorIndex", "overwrite"]

Ids = NDArray[np.int64]

MAGIC = b"PREADIDX"
GPU_MAX_K = 2048
ZEROS_AT_ONCE = 2**20


class _ReadWriteLock:
    """Many readers or one writer; a waiting writer goes first."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readers = 0
        self._writing = False
        self._writers_waiting = 0

    @contextmanager
    def read(self) -> Iterator[None]:
        """Hold it with other readers until the block ends."""
        with self._condition:
            self._condition.wait_for(lambda: not self._writing and not self._writers_waiting)
            self._readers += 1
        try:
            yield
        finally:
            with self._condition:
                self._readers -= 1
                self._condition.notify_all()

    @contextmanager
    def write(self) -> Iterator[None]:
        """Hold it alone until the block ends."""
        with self._condition:
            self._writers_waiting += 1
            try:
                self._condition.wait_for(lambda: not self._writing and not self._readers)
            finally:  # Ctrl-C while waiting must not lock the readers out
                self._writers_waiting -= 1
            self._writing = True
        try:
            yield
        finally:
            with self._condition:
                self._writing = False
                self._condition.notify_all()


class VectorIndex:
    """One FAISS index; thread-safe.

    Attributes:
        spec: what it is made of.
        generation: generation of the store up to which every vector was added.
        base_generation: oldest generation that it holds whole; vectors deleted before may be gone.
        training_size: vectors needed before it can be trained, 0 for an index that needs no training.
        is_trained: False while an index that needs training is still a flat one.
    """

    def __init__(self, spec: IndexSpec, *, generation: int = 0) -> None:
        self.spec = spec
        self.generation = generation
        self.base_generation = generation
        self.training_size = spec.training_size()
        self.is_trained = self.training_size == 0
        self._lock = _ReadWriteLock()
        index = spec.make() if self.is_trained else load_faiss().IndexFlatIP(spec.dimension)
        self._wrap(index)

    @classmethod
    def build(cls, spec: IndexSpec, ids: Ids, vectors: Vectors, generation: int) -> "VectorIndex":
        """Return an index of the vectors [n, dimension], trained when there are enough of them."""
        built = cls(spec, generation=generation)
        if not built.is_trained and len(ids) >= built.training_size:
            index = spec.make()
            with one_thread():
                index.train(np.ascontiguousarray(vectors))
            built.is_trained = True
            built._wrap(index)
        built.add(ids, vectors)
        return built

    def _wrap(self, index: Any) -> None:
        faiss = load_faiss()
        on_gpu = to_gpu(index, self.spec)
        self._on_gpu = on_gpu is not None
        self._index = faiss.IndexIDMap2(index if on_gpu is None else on_gpu)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def ids(self) -> Ids:
        """Return the id of every vector, dead ones too."""
        with self._lock.read():
            ids: Ids = load_faiss().vector_to_array(self._index.id_map).copy()
        return ids

    @property
    def is_approximate(self) -> bool:
        """Whether scores are of vectors that are kept only roughly."""
        return self.is_trained and not self.spec.keeps_vectors

    @property
    def device(self) -> str:
        """Return where searches run: "cpu" or "gpu"."""
        return "gpu" if self._on_gpu else "cpu"

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Add vectors [n, dimension]; an id that is there already gets a second, equal vector."""
        if len(ids) == 0:
            return
        with self._lock.write(), one_thread():
            self._index.add_with_ids(np.ascontiguousarray(vectors, np.float32), np.ascontiguousarray(ids, np.int64))

    def search(self, query: Vectors, k: int) -> tuple[Vectors, Ids]:
        """Return scores and ids of at most k vectors, best first; dead ids are among them."""
        lock = self._lock.write() if self._on_gpu else self._lock.read()  # a GPU index shares its scratch memory
        with lock, one_thread():
            k = min(k, len(self), *([GPU_MAX_K] if self._on_gpu else []))
            if k == 0:
                return np.empty(0, np.float32), np.empty(0, np.int64)
            scores, ids = self._index.search(np.ascontiguousarray(query, np.float32)[None, :], k)
        found = ids[0] >= 0
        return scores[0][found], ids[0][found]

    def search_among(self, query: Vectors, k: int, ids: Ids) -> tuple[Vectors, Ids] | None:
        """Return exact scores and ids of the k best of these vectors, best first; None where the index cannot.

        All that it holds are compared: an inverted file probes every list, which only a flat coarse quantizer finds; a
        graph's flat storage is searched itself.
        """
        if self._on_gpu or self.is_approximate:
            return None
        faiss = load_faiss()
        with self._lock.read(), one_thread():
            places = np.flatnonzero(np.isin(faiss.vector_to_array(self._index.id_map), ids))
            k = min(k, len(places))
            if k == 0:
                return np.empty(0, np.float32), np.empty(0, np.int64)
            inner = faiss.downcast_index(self._index.index)
            inner = faiss.downcast_index(getattr(inner, "storage", inner))
            selector = faiss.IDSelectorBatch(places)
            inverted = faiss.try_extract_index_ivf(inner)
            if inverted is not None and not isinstance(faiss.downcast_index(inverted.quantizer), faiss.IndexFlat):
                return None
            if inverted is None:
                parameters = faiss.SearchParameters(sel=selector)
            else:
                parameters = faiss.SearchParametersIVF(sel=selector, nprobe=inverted.nlist)
            scores, found = inner.search(np.ascontiguousarray(query, np.float32)[None, :], k, params=parameters)
            is_there = found[0] >= 0
            there = faiss.vector_to_array(self._index.id_map)[found[0][is_there]]
        return scores[0][is_there], there

    def save(self, path: Path) -> None:
        """Write the index beside `path` and move it there, so that a crash leaves the old file or the new one."""
        faiss = load_faiss()
        with self._lock.read():
            index = to_cpu(self._index) if self._on_gpu else self._index
            payload = faiss.serialize_index(index).tobytes()
            header = {
                **self.spec.identity,
                "generation": self.generation,
                "is_trained": self.is_trained,
                "checksum": digest(payload).hex(),
            }
        encoded = json.dumps(header).encode()
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.write(MAGIC + len(encoded).to_bytes(4, "little") + encoded)
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)

    @classmethod
    def load(cls, path: Path, spec: IndexSpec, on_bad: Callable[[str], None]) -> "VectorIndex | None":
        """Return the saved index, or None when it is missing, damaged or of another kind; `on_bad` hears why."""
        if not path.exists():
            return None
        try:
            data = path.read_bytes()
            size = int.from_bytes(data[8:12], "little")
            header = json.loads(data[12 : 12 + size])
            payload = data[12 + size :]
            if data[:8] != MAGIC or digest(payload).hex() != header["checksum"]:
                on_bad("its checksum is wrong")
                return None
            if any(header[name] != value for name, value in spec.identity.items()):
                on_bad("it was made with other settings")
                return None
            loaded = cls(spec, generation=header["generation"])
            loaded._adopt(payload, header)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            on_bad(f"it cannot be read ({error})")
            return None
        return loaded

    def _adopt(self, payload: bytes, header: dict[str, Any]) -> None:
        faiss = load_faiss()
        self.is_trained = header["is_trained"]
        self._index = faiss.deserialize_index(np.frombuffer(payload, np.uint8))
        inner = faiss.downcast_index(self._index.index)
        if self.is_trained:
            self.spec.tune(inner)
        on_gpu = to_gpu(inner, self.spec)
        self._on_gpu = on_gpu is not None
        if on_gpu is not None:
            self._index = with_ids(on_gpu, self._index)


def overwrite(path: Path) -> None:
    """Write zeros over an index file, if there is one; whoever loads it makes the index anew.

    Raises:
        OSError: the disk fails.
    """
    if not path.exists():
        return
    with path.open("r+b") as file:
        for offset in range(0, path.stat().st_size, ZEROS_AT_ONCE):
            file.write(bytes(min(ZEROS_AT_ONCE, path.stat().st_size - offset)))
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
