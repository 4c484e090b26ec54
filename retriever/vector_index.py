"""A FAISS inner-product index over stable 64-bit ids, derived from the store and rebuilt from it at will.

It may hold ids that are deleted or not committed yet: whoever searches resolves ids through live rows and fetches more
where some were dead. So every factory string works, also those whose index cannot remove (HNSW, GPU).
Knows nothing of passages, SQL or text.
"""

import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retriever.document import digest
from retriever.embedder import Vectors
from retriever.errors import SettingsError

__all__ = ["Ids", "IndexSpec", "VectorIndex"]

Ids = NDArray[np.int64]

MAGIC = b"PREADIDX"
POINTS_PER_CENTROID = 39  # FAISS's own minimum for k-means
GPU_MAX_K = 2048


def _faiss() -> Any:
    """Return FAISS, kept to one thread: each thread has its own setting, and the engine owns the cores."""
    import faiss

    faiss.omp_set_num_threads(1)
    return faiss


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """What an index is made of; a saved index of another one is not loaded.

    Attributes:
        dimension: length of a vector.
        factory: FAISS factory string without id map.
        parameters: FAISS run-time parameters, for example "nprobe=32".
        embedder: fingerprint of the embedder.
        device: "auto", "cpu" or "gpu".
    """

    dimension: int
    factory: str = "Flat"
    parameters: str = ""
    embedder: str = ""
    device: str = "auto"

    @property
    def bare_factory(self) -> str:
        """Return the factory string without an id map, which is always added."""
        return re.sub(r"^IDMap2?,", "", self.factory)

    @property
    def identity(self) -> dict[str, object]:
        """Return what a saved index must agree with."""
        return {"dimension": self.dimension, "factory": self.bare_factory, "embedder": self.embedder}

    def make(self) -> Any:
        """Return the empty FAISS index of the factory string.

        Raises:
            SettingsError: FAISS does not know the string, or the index cannot rank by inner product.
        """
        faiss = _faiss()
        try:
            index = faiss.index_factory(self.dimension, self.bare_factory, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise SettingsError(
                f"index_factory {self.factory!r} does not work for dimension {self.dimension} "
                f"({_reason(error)}); use a FAISS factory string such as 'Flat', 'IVF256,Flat' or 'HNSW32'"
            ) from error
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise SettingsError(f"index_factory {self.factory!r} cannot rank by inner product; use 'Flat' or 'HNSW32'")
        self._tune(index)
        return index

    def _tune(self, index: Any) -> None:
        """Set run-time parameters: those given, after defaults that favour recall."""
        faiss = _faiss()
        lists = self.num_lists(index)
        defaults = [f"nprobe={max(8, lists // 16)}"] if lists else []
        defaults += ["efSearch=64"] if "HNSW" in self.bare_factory and not lists else []
        try:
            for parameters in [*defaults, *filter(None, [self.parameters])]:
                faiss.ParameterSpace().set_index_parameters(index, parameters)
        except RuntimeError as error:
            raise SettingsError(
                f"index_parameters {self.parameters!r} do not fit {self.factory!r} ({_reason(error)}); "
                "use for example 'nprobe=32' with IVF or 'efSearch=128' with HNSW"
            ) from error

    def num_lists(self, index: Any) -> int:
        """Return the number of inverted lists, 0 for an index without."""
        faiss = _faiss()
        inverted = faiss.try_extract_index_ivf(index)
        return int(inverted.nlist) if inverted is not None else 0

    def training_size(self) -> int:
        """Return how many vectors the index needs before it can be trained; 0 when it needs no training."""
        index = self.make()
        if index.is_trained:
            return 0
        needed = [1, POINTS_PER_CENTROID * self.num_lists(index)]
        if re.match(r"(PCA|OPQ|ITQ)", self.bare_factory):
            needed.append(self.dimension)  # a rotation is as large as the vectors
        product = re.search(r"PQ\d+(?:x(\d+))?", self.bare_factory)
        if product:
            needed.append(POINTS_PER_CENTROID * 2 ** int(product[1] or 8))
        return max(needed)


def _reason(error: Exception) -> str:
    """Return FAISS's message without its C++ signature."""
    return str(error).rsplit("Error: ", 1)[-1].strip()


class _ReadWriteLock:
    """Many readers or one writer; a waiting writer goes first."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readers = 0
        self._writing = False
        self._writers_waiting = 0

    @contextmanager
    def read(self) -> Iterator[None]:
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
        with self._condition:
            self._writers_waiting += 1
            self._condition.wait_for(lambda: not self._writing and not self._readers)
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
        base_generation: generation at which it was built; deleted vectors of earlier ones are gone.
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
        index = spec.make() if self.is_trained else _faiss().IndexFlatIP(spec.dimension)
        self._wrap(index)

    @classmethod
    def build(cls, spec: IndexSpec, ids: Ids, vectors: Vectors, generation: int) -> "VectorIndex":
        """Return an index of the vectors [n, dimension], trained when there are enough of them."""
        built = cls(spec, generation=generation)
        if not built.is_trained and len(ids) >= built.training_size:
            index = spec.make()
            index.train(np.ascontiguousarray(vectors))
            built.is_trained = True
            built._wrap(index)
        built.add(ids, vectors)
        return built

    def _wrap(self, index: Any) -> None:
        faiss = _faiss()
        on_gpu = _to_gpu(index, self.spec)
        self._on_gpu = on_gpu is not None
        self._index = faiss.IndexIDMap2(index if on_gpu is None else on_gpu)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def ids(self) -> Ids:
        """Return the id of every vector, dead ones too."""
        with self._lock.read():
            ids: Ids = _faiss().vector_to_array(self._index.id_map).copy()
        return ids

    @property
    def device(self) -> str:
        """Return where searches run: "cpu" or "gpu"."""
        return "gpu" if self._on_gpu else "cpu"

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Add vectors [n, dimension]; an id that is there already gets a second, equal vector."""
        if len(ids) == 0:
            return
        _faiss()
        with self._lock.write():
            self._index.add_with_ids(np.ascontiguousarray(vectors, np.float32), np.ascontiguousarray(ids, np.int64))

    def search(self, query: Vectors, k: int) -> tuple[Vectors, Ids]:
        """Return scores and ids of at most k vectors, best first; dead ids are among them."""
        _faiss()
        with self._lock.read():
            k = min(k, len(self), *([GPU_MAX_K] if self._on_gpu else []))
            if k == 0:
                return np.empty(0, np.float32), np.empty(0, np.int64)
            scores, ids = self._index.search(np.ascontiguousarray(query, np.float32)[None, :], k)
        found = ids[0] >= 0
        return scores[0][found], ids[0][found]

    def save(self, path: Path) -> None:
        """Write the index beside `path` and move it there, so that a crash leaves the old file or the new one."""
        faiss = _faiss()
        with self._lock.read():
            index = _to_cpu(self._index) if self._on_gpu else self._index
            payload = faiss.serialize_index(index).tobytes()
            header = {
                **self.spec.identity,
                "generation": self.generation,
                "base_generation": self.base_generation,
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
        faiss = _faiss()
        self.base_generation = header["base_generation"]
        self.is_trained = header["is_trained"]
        self._index = faiss.deserialize_index(np.frombuffer(payload, np.uint8))
        inner = faiss.downcast_index(self._index.index)
        if self.is_trained:
            self.spec._tune(inner)  # noqa: SLF001 - same module
        on_gpu = _to_gpu(inner, self.spec)
        self._on_gpu = on_gpu is not None
        if on_gpu is not None:
            self._index = _with_ids(on_gpu, self._index)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _to_gpu(index: Any, spec: IndexSpec) -> Any | None:
    """Return the index on the first CUDA device, or None where it stays on the CPU.

    Raises:
        SettingsError: "gpu" was asked for and cannot be had.
    """
    faiss = _faiss()
    available = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
    if spec.device == "cpu" or (spec.device == "auto" and (not available or "HNSW" in spec.bare_factory)):
        return None
    if not available:
        raise SettingsError(
            'index_device is "gpu", but faiss-gpu or a CUDA device is missing; install both or use "auto"'
        )
    try:
        return faiss.index_cpu_to_gpu(_gpu_resources(), 0, index)
    except RuntimeError as error:
        if spec.device == "gpu":
            raise SettingsError(
                f"{spec.factory!r} does not run on a GPU ({_reason(error)}); use Flat or IVF"
            ) from error
        return None


@cache
def _gpu_resources() -> Any:
    """Return the memory that GPU indexes share; they use it but do not keep it alive."""
    return _faiss().StandardGpuResources()


def _to_cpu(index: Any) -> Any:
    faiss = _faiss()
    return _with_ids(faiss.index_gpu_to_cpu(faiss.downcast_index(index.index)), index)


def _with_ids(inner: Any, source: Any) -> Any:
    """Return an id map over `inner`, whose vectors are in the order of `source`."""
    faiss = _faiss()
    mapped = faiss.IndexIDMap2(faiss.IndexFlatIP(inner.d))  # its constructor insists on an empty index
    mapped.index = inner
    mapped.referenced_objects = [inner]
    for name in ("ntotal", "is_trained", "metric_type"):
        setattr(mapped, name, getattr(inner, name))
    faiss.copy_array_to_vector(faiss.vector_to_array(source.id_map), mapped.id_map)
    mapped.construct_rev_map()
    return mapped
