"""What a FAISS index is made of: factory string, run-time parameters and device. Knows no vectors."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from retriever.errors import SettingsError

__all__ = ["IndexSpec", "load_faiss", "one_thread", "to_cpu", "to_gpu", "with_ids"]

POINTS_PER_CENTROID = 39  # FAISS's own minimum for k-means


def load_faiss() -> Any:
    """Return FAISS, imported when it is first needed."""
    import faiss

    return faiss


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep FAISS to one thread, since the engine owns the cores.

    The setting is put back: where FAISS shares torch's OpenMP runtime, it would slow the embedder in this thread.
    """
    faiss = load_faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


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
    def keeps_vectors(self) -> bool:
        """Whether the index keeps vectors as they are, so that its scores are exact."""
        return re.fullmatch(r"(IVF\w*,|IMI\w*,)?Flat|HNSW\d+(,Flat)?|NSG\d+(,Flat)?", self.bare_factory) is not None

    @property
    def identity(self) -> dict[str, object]:
        """Return what a saved index must agree with."""
        return {"dimension": self.dimension, "factory": self.bare_factory, "embedder": self.embedder}

    def make(self) -> Any:
        """Return the empty FAISS index of the factory string.

        Raises:
            SettingsError: FAISS does not know the string, or the index cannot rank by inner product.
        """
        faiss = load_faiss()
        try:
            index = faiss.index_factory(self.dimension, self.bare_factory, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise SettingsError(
                f"index_factory {self.factory!r} does not work for dimension {self.dimension} "
                f"({_reason(error)}); use a FAISS factory string such as 'Flat', 'IVF256,Flat' or 'HNSW32'"
            ) from error
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise SettingsError(f"index_factory {self.factory!r} cannot rank by inner product; use 'Flat' or 'HNSW32'")
        self.tune(index)
        return index

    def tune(self, index: Any) -> None:
        """Set run-time parameters: those given, after defaults that favour recall."""
        faiss = load_faiss()
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
        faiss = load_faiss()
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


def to_gpu(index: Any, spec: IndexSpec) -> Any | None:
    """Return the index on the first CUDA device, or None where it stays on the CPU.

    Raises:
        SettingsError: "gpu" was asked for and cannot be had.
    """
    faiss = load_faiss()
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
    return load_faiss().StandardGpuResources()


def to_cpu(index: Any) -> Any:
    """Return a copy on the CPU of an id map over a GPU index."""
    faiss = load_faiss()
    return with_ids(faiss.index_gpu_to_cpu(faiss.downcast_index(index.index)), index)


def with_ids(inner: Any, source: Any) -> Any:
    """Return an id map over `inner`, whose vectors are in the order of `source`."""
    faiss = load_faiss()
    mapped = faiss.IndexIDMap2(faiss.IndexFlatIP(inner.d))  # its constructor insists on an empty index
    mapped.index = inner
    mapped.referenced_objects = [inner]
    for name in ("ntotal", "is_trained", "metric_type"):
        setattr(mapped, name, getattr(inner, name))
    faiss.copy_array_to_vector(faiss.vector_to_array(source.id_map), mapped.id_map)
    mapped.construct_rev_map()
    return mapped
