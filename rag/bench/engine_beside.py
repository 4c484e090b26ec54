"""What surrounds a batch-1 decode step: the time outside kernels, and a FAISS search at the same time."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from rag.bench.engine_own import OwnEngine
from rag.bench.engine_report import Overhead, SearchFigure

if TYPE_CHECKING:
    from retriever.vector_index import VectorIndex

__all__ = ["measure_overhead", "measure_search"]

VECTORS, DIMENSION, FOUND = 20_000, 384, 10


def measure_overhead(
    own: OwnEngine, prompt: Sequence[int], cached: int, *, steps: int, busy: Callable[[], float] | None
) -> Overhead:
    """Time single decode steps and, of each, what is spent outside the kernels."""
    walls, outside = [], []
    with own.decoding([prompt], cached, steps) as step:
        for _ in range(steps):
            inside = busy() if busy else 0.0
            began = perf_counter()
            step()
            walls.append(perf_counter() - began)
            outside.append(walls[-1] - (busy() if busy else 0.0) + inside)
    step_ms, outside_ms = 1e3 * median(walls), 1e3 * median(outside)
    return Overhead(
        context=len(prompt),
        step_ms=step_ms,
        kernel_ms=step_ms - outside_ms if busy else None,
        outside_ms=outside_ms if busy else None,
    )


def measure_search(own: OwnEngine, prompt: Sequence[int], cached: int, *, steps: int, seed: int) -> SearchFigure:
    """Alternate decode steps alone, searches alone, and steps with a search that starts with them."""
    generator = np.random.default_rng(seed)
    index = _index(generator)
    alone: list[float] = []
    searches: list[float] = []
    beside: list[float] = []
    with own.decoding([prompt], cached, 2 * steps) as step:
        for query in _unit(generator.standard_normal((steps, DIMENSION))):
            alone.append(_seconds(step))
            search_it = partial(index.search, query, FOUND)
            searches.append(_seconds(search_it))
            beside.append(_beside(step, search_it))
    search, step_alone, step_beside = median(searches), median(alone), median(beside)
    return SearchFigure(
        vectors=VECTORS,
        dimension=DIMENSION,
        search_ms=1e3 * search,
        step_ms=1e3 * step_alone,
        step_beside_ms=1e3 * step_beside,
        slowdown=(step_beside - step_alone) / search,
    )


def _index(generator: np.random.Generator) -> "VectorIndex":
    """Fill an index of the retriever's own kind with random unit vectors."""
    from retriever.index_spec import IndexSpec
    from retriever.vector_index import VectorIndex

    vectors = _unit(generator.standard_normal((VECTORS, DIMENSION)))
    return VectorIndex.build(IndexSpec(DIMENSION, device="cpu"), np.arange(VECTORS), vectors, 0)


def _unit(vectors: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def _seconds(work: Callable[[], object]) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began


def _beside(step: Callable[[], object], search: Callable[[], object]) -> float:
    """Return the seconds of a step while another thread searches; both start together."""
    gate = threading.Barrier(2)

    def other() -> None:
        gate.wait()
        search()

    thread = threading.Thread(target=other)
    thread.start()
    gate.wait()
    seconds = _seconds(step)
    thread.join()
    return seconds
