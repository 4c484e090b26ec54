"""The reuse benchmark: what reading each passage once gives, by the number and length of passages and the repair.

Times are taken in turns: what the machine does meanwhile happens to all that is compared.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from engine.engine import Engine
from engine.kv_store import ExtentStore
from engine.models.config import ModelConfig
from rag.bench.certified import certified_repair
from rag.bench.collection import default_work_dir
from rag.bench.engine_floor import ModelShape
from rag.bench.environment import RunClock
from rag.bench.progress import Counter, Progress
from rag.bench.reuse_cases import measure_shape, tokens_of
from rag.bench.reuse_engine import QUESTION, TEMPLATE, ReuseEngine
from rag.bench.reuse_lasting import measure_disk, measure_endurance, measure_precompute
from rag.bench.reuse_report import (
    DiskFigure,
    Endurance,
    PrecomputeFigure,
    ReuseCase,
    ReuseReport,
    ReuseResult,
    ReuseSetting,
    Skipped,
)
from rag.components import Components
from rag.config import RagConfig
from rag.errors import InvalidRequestError
from rag.model_hub import ModelHub

__all__ = ["PARTS", "ReuseBenchConfig", "run"]

PARTS = ("cases", "endurance", "precompute", "disk")
USUAL_REPAIRS = (0, 16, 32)
ENDURANCE_PASSAGES = 14
PRECOMPUTE_BATCH = 16  # passages
DISK_PASSAGES = (320, 5)  # tokens, and how many: 1,600 together
SPARE_TOKENS = 4096  # in the pool, for what is not a case
VALUE_BYTES = 4  # of KV in float32, the largest; what is unused is free

Part = TypeVar("Part")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseBenchConfig:
    """What to measure.

    Attributes:
        only: of `PARTS`; none means all.
        passages: numbers of passages in a prompt.
        lengths: of passages, in tokens.
        repairs: tokens computed at the head of each passage but the first; none means 0, 16, 32 and what the model's
            certificate asks for.
        batches: of the endurance part.
        repeats: of everything else.
        seed: of token ids, orders and turns.
        work_dir: where the store is kept while it runs; None is a folder in the user's cache.

    Raises:
        InvalidRequestError: a value that cannot work.
    """

    only: tuple[str, ...] = ()
    passages: tuple[int, ...] = (1, 2, 4, 6, 8, 16)
    lengths: tuple[int, ...] = (64, 256, 1024)
    repairs: tuple[int, ...] = ()
    batches: int = 50
    repeats: int = 5
    seed: int = 0
    work_dir: Path | None = None

    def __post_init__(self) -> None:
        for part in self.only:
            if part not in PARTS:
                raise InvalidRequestError(f"only is {part!r}; choose from: {', '.join(PARTS)}")
        for name, values, least in (
            ("passages", self.passages, 1),
            ("lengths", self.lengths, 1),
            ("repairs", self.repairs or (0,), 0),
            ("batches", (self.batches,), 1),
            ("repeats", (self.repeats,), 1),
        ):
            if not values or min(values) < least:
                raise InvalidRequestError(f"{name} is {min(values, default='nothing')}; it must be at least {least}")

    def wants(self, part: str) -> bool:
        """Tell whether a part is measured."""
        return not self.only or part in self.only


def run(config: RagConfig, bench: ReuseBenchConfig, progress: Progress) -> ReuseReport:
    """Measure; Ctrl-C ends it early and keeps what is complete.

    Args:
        config: model and engine; its data directory is not touched.
        bench: what to measure.
        progress: called as it advances, in the calling thread.

    Raises:
        KeyboardInterrupt: before anything was measured.
        UnknownModelError: the model is not here.
        InvalidRequestError: a repair that is not whole blocks.
        CacheMismatchError: a prompt hit the cache other than its case says.
    """
    clock = RunClock()
    template = Components(config).layout().head.tokens
    certified = certified_repair(config, template)
    bench = replace(bench, repairs=bench.repairs or tuple(sorted({*USUAL_REPAIRS, certified})))
    with _engine(config, bench) as engine:
        own = ReuseEngine(engine, bench.seed)
        parts = _Parts(own, bench, progress, repair=certified if certified in bench.repairs else max(bench.repairs))
        cases = parts.of("cases", parts.cases) or []
        endurance = parts.of("endurance", parts.endurance)
        precompute = parts.of("precompute", parts.precompute)
        disk = parts.of("disk", parts.disk)
        if not (cases or endurance or precompute or disk):
            raise KeyboardInterrupt
        return ReuseReport(
            setting=_setting(config.model, engine, bench),
            environment=clock.environment(),
            interrupted=parts.interrupted,
            warnings=clock.warnings,
            seconds=clock.seconds,
            cases=cases,
            endurance=endurance,
            precompute=precompute,
            disk=disk,
            skipped=parts.skipped,
        )


@contextmanager
def _engine(config: RagConfig, bench: ReuseBenchConfig) -> Iterator[Engine]:
    """Give an engine with a store, and a pool that holds every passage and the longest prompt."""
    settings = config.engine.build()
    if bad := [repair for repair in bench.repairs if repair % settings.block_size]:
        raise InvalidRequestError(f"repair is {bad[0]}; it must be whole blocks of {settings.block_size} tokens")
    folder = ModelHub(config.models_dir).resolve(config.model)
    model = ModelConfig.from_folder(folder)
    shape = ModelShape.of(model)
    known = sum(length * max(*bench.passages, ENDURANCE_PASSAGES) for length in bench.lengths)
    tokens = known + 2 * model.max_position_embeddings + SPARE_TOKENS
    settings = replace(
        settings,
        max_draft_tokens=0,
        kv_cache_bytes=settings.kv_cache_bytes or VALUE_BYTES * tokens * shape.kv_values * shape.layers,
    )
    work_dir = bench.work_dir or default_work_dir()
    work_dir.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=work_dir, prefix="reuse-") as kept:
        store = ExtentStore(kept, capacity_bytes=8 * (settings.kv_cache_bytes or 0))
        engine = Engine.from_pretrained(folder, settings, store=store)
        try:
            engine.calibrate()  # as a server does before its first question
            yield engine
        finally:
            engine.close()
            store.close()


class _Parts:
    """The parts of the benchmark, and what became of them; `repair` is that of the parts which measure one only."""

    def __init__(self, own: ReuseEngine, bench: ReuseBenchConfig, progress: Progress, *, repair: int) -> None:
        self.interrupted = False
        self.skipped: list[Skipped] = []
        self._own, self._bench, self._progress, self._repair = own, bench, progress, repair

    def of(self, name: str, measure: Callable[[], Part]) -> Part | None:
        """Measure a part that was asked for, unless Ctrl-C came before; None where there is nothing."""
        if self.interrupted or not self._bench.wants(name):
            return None
        try:
            return measure()
        except KeyboardInterrupt:
            self.interrupted = True
            return None

    def cases(self) -> list[ReuseResult]:
        """Measure every shape that fits the model; on Ctrl-C, those that are complete."""
        bench, results = self._bench, list[ReuseResult]()
        shapes = [shape for shape in product(bench.lengths, sorted(bench.passages)) if self._fits(*shape)]
        counter = Counter(self._progress, "cases", len(shapes) * (bench.repeats + 1))
        try:
            for length, count in shapes:
                results += measure_shape(
                    self._own,
                    length,
                    count,
                    bench.repairs,
                    repeats=bench.repeats,
                    seed=bench.seed,
                    advance=counter.advance,
                )
        except KeyboardInterrupt:
            self.interrupted = True
        return results

    def endurance(self) -> Endurance | None:
        """Measure the middle length."""
        length = next((n for n in self._lengths() if self._fits(n, ENDURANCE_PASSAGES)), None)
        if length is None:
            return None
        shorter = [repair for repair in (*self._bench.repairs, self._repair) if repair < length]  # else all is computed
        repair = self._repair if self._repair in shorter else max(shorter, default=0)
        case = ReuseCase(passages=ENDURANCE_PASSAGES, length=length, repair=repair)
        counter = Counter(self._progress, "endurance", self._bench.batches + 1)
        return measure_endurance(self._own, case, self._bench.batches, counter.advance)

    def precompute(self) -> PrecomputeFigure:
        """Measure passages of the middle length."""
        counter = Counter(self._progress, "precompute", self._bench.repeats + 1)
        return measure_precompute(
            self._own,
            self._lengths()[0],
            PRECOMPUTE_BATCH,
            repeats=self._bench.repeats,
            seed=self._bench.seed,
            advance=counter.advance,
        )

    def disk(self) -> DiskFigure:
        """Measure loads of as many tokens as a usual question retrieves."""
        counter = Counter(self._progress, "disk", self._bench.repeats + 1)
        return measure_disk(
            self._own, *DISK_PASSAGES, self._repair, repeats=self._bench.repeats, advance=counter.advance
        )

    def _lengths(self) -> list[int]:
        """The lengths, the middle one first, then the shorter ones."""
        lengths = sorted(self._bench.lengths)
        middle = len(lengths) // 2
        return lengths[middle::-1]

    def _fits(self, length: int, count: int) -> bool:
        """Tell whether a shape fits the model's context and the pool; one that does not is noted."""
        tokens, context = tokens_of(length, count), self._own.engine.max_model_len
        if tokens < context:
            return True
        reason = f"{tokens} tokens, and the model reads at most {context} with its answer"
        self.skipped.append(Skipped(name=f"{count} passages of {length} tokens", reason=reason))
        return False


def _setting(model: str, engine: Engine, bench: ReuseBenchConfig) -> ReuseSetting:
    return ReuseSetting(
        model=model,
        dtype="int8" if engine.config.dtype == "int8" else str(engine.runner.kv_cache.dtype).removeprefix("torch."),
        backend=engine.runner.model.backend.name,
        block_size=engine.config.block_size,
        template=TEMPLATE,
        question=QUESTION,
        repeats=bench.repeats,
        seed=bench.seed,
    )
