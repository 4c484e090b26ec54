"""A trace on a real engine, with the passages' KV on a real disk."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from engine.backends import load_backend
from engine.config import EngineConfig, SamplingParams
from engine.engine import Engine
from engine.kv_cache import allocate_kv_cache, resolve_dtype
from engine.kv_store import ExtentStore
from engine.models.config import ModelConfig
from engine.output import Generation
from engine.prompt import Prompt, Reuse, Segment
from engine.recompute_cost import RecomputeCost
from engine.recompute_profile import recompute_cost
from rag.bench.environment import physical_memory
from rag.bench.trace_report import Answer
from rag.errors import InvalidRequestError

__all__ = ["FILL_BATCH", "Models", "RealEngine"]

FILL_BATCH = 16  # passages between two looks at the clock
MEMORY_SHARE = 2  # half of the memory is for KV at most


class Models:
    """Makes engines over one store of passages' KV, which is gone afterwards.

    Args:
        folder: of the model.
        config: of the engines, but for pool and policy.
        work_dir: where the store is kept meanwhile.
        keeps: whether there is a store.
    """

    def __init__(self, folder: Path, config: EngineConfig, work_dir: Path, *, keeps: bool) -> None:
        self._folder = folder
        self._config = replace(config, max_draft_tokens=0)
        self._work_dir = work_dir
        self._keeps = keeps
        model = ModelConfig.from_folder(folder)
        self.dtype = resolve_dtype(config, folder, load_backend(config.backend, config.device))
        self._block_bytes = allocate_kv_cache(config, model, self.dtype).bytes_per_block  # its memory is never touched

    @contextmanager
    def store(self, num_blocks: int) -> Iterator[ExtentStore | None]:
        """Give a store with room for the KV of so many blocks, or none."""
        if not self._keeps:
            yield None
            return
        self._work_dir.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self._work_dir, prefix="trace-") as folder:
            store = ExtentStore(folder, capacity_bytes=2 * num_blocks * self._block_bytes)
            try:
                yield store
            finally:
                store.close()

    @contextmanager
    def engine(self, num_blocks: int, policy: str, store: ExtentStore | None) -> Iterator["RealEngine"]:
        """Give an engine with a pool of so many blocks.

        Raises:
            InvalidRequestError: the pool is too large for this machine.
        """
        nbytes = num_blocks * self._block_bytes
        memory = physical_memory()
        if memory is not None and nbytes > memory // MEMORY_SHARE:
            raise InvalidRequestError(
                f"device-tokens: {num_blocks} blocks take {nbytes / 2**30:.1f} GiB, more than half of this machine's "
                "memory; give fewer, a smaller limit, or simulate"
            )
        config = replace(self._config, kv_cache_bytes=nbytes, eviction=policy)
        engine = Engine.from_pretrained(self._folder, config, store=store)
        assert engine.cache.pool.num_blocks == num_blocks, "the pool has another size"
        try:
            engine.calibrate()  # as a server does before its first question
            yield RealEngine(engine)
        finally:
            engine.close()


class RealEngine:
    """Answers prompts one after the other with one token.

    Args:
        engine: nobody else uses it.
    """

    def __init__(self, engine: Engine) -> None:
        self.cache = engine.cache
        self._engine = engine

    @property
    def recompute_cost(self) -> RecomputeCost:
        """What its eviction policy may weigh."""
        return recompute_cost(self._engine.runner, measure=False)[0]

    def fill(
        self, namespace: str, template: Segment, passages: Sequence[Segment], advance: Callable[[int], None]
    ) -> float:
        """Compute and store passages, as ingestion does; return the seconds it took."""
        assert self._engine.tier is not None, "there is no store to fill"
        began = perf_counter()
        for first in range(0, len(passages), FILL_BATCH):
            self._engine.precompute(template, passages[first : first + FILL_BATCH], namespace)
            self._engine.tier.flush()
            advance(min(first + FILL_BATCH, len(passages)))
        seconds = perf_counter() - began
        missing = self._engine.missing(template, passages, namespace)
        assert not missing, f"{len(missing)} passages could not be stored"
        return seconds

    def answer(
        self, prompt: Prompt, *, reuse: Reuse, repair: int, namespace: str, groups: Sequence[int] = ()
    ) -> Answer:
        """Run a prompt to its first token."""
        began = perf_counter()
        request = self._engine.submit(
            prompt,
            SamplingParams(max_tokens=1, ignore_eos=True),
            reuse=reuse,
            namespace=namespace,
            groups=groups,
            uncertified_repair=repair if reuse is Reuse.CHUNK else None,
        )
        *_, generation = self._engine.stream(request)
        assert isinstance(generation, Generation), f"request {request.id} ended with {generation}"
        assert generation.timings.first_token is not None, "a finished request has a token"
        ttft_ms = 1e3 * (generation.timings.first_token - began)
        return Answer.of(generation.cache, ttft_ms)
