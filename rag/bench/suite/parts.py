"""What a run is made of: where requests come from, how engines are opened, what is measured in this process."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from rag.bench.collection import default_work_dir
from rag.bench.environment import RunClock, count_cores, physical_memory
from rag.bench.progress import Progress
from rag.bench.suite.contestant import Contestant
from rag.bench.suite.experiment import Experiment, Suite, WorkloadSpec
from rag.bench.suite.records import (
    AnswerRecord,
    ContestantRecord,
    Header,
    QualityRecord,
    Setting,
    SimulationRecord,
    SkippedRecord,
)
from rag.bench.suite.requests import RequestStream
from rag.config import RagConfig

__all__ = ["Opened", "Parts", "RunOptions", "make_parts"]

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")
MEMORY_SHARE = 0.9  # of the machine's, for all pools together; few are ever full
Opened = tuple[Sequence[Contestant], Sequence[ContestantRecord], Sequence[SkippedRecord]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What a run needs besides its suite.

    Attributes:
        pythons: name of a contestant -> the Python that has it; "" is for every other peer, else ours.
        gguf: for peers that read one; None is the one that the model was made of.
        work_dir: for collections, and for what is kept on disk meanwhile; None is the user's cache.
        threads: that every engine computes with; one a core by default.
        kv_gib: memory for KV, of each engine, at most.
        report: told of a download: what, and which share of it.
    """

    pythons: dict[str, Path] = field(default_factory=dict)
    gguf: Path | None = None
    work_dir: Path | None = None
    threads: int = field(default_factory=count_cores)
    kv_gib: int = 2
    report: Callable[[str, float | None], None] = lambda _stage, _fraction: None

    def settled(self, suite: Suite) -> "RunOptions":
        """Return them as they hold for a whole suite, whichever part of it is still to be measured.

        All engines' memory for KV together is not more than the machine has.
        """
        engines = {name for one in suite.experiments for name in one.contestants}
        memory, kv_gib = physical_memory(), self.kv_gib
        if memory is not None:
            kv_gib = max(1, min(kv_gib, int(MEMORY_SHARE * memory) // max(1, len(engines)) >> 30))
        return replace(self, kv_gib=kv_gib)

    @classmethod
    def restored(cls, setting: Setting) -> "RunOptions":
        """Return those of a run that goes on."""
        return cls(
            pythons={name: Path(path) for name, path in setting.pythons.items()},
            gguf=None if setting.gguf is None else Path(setting.gguf),
            threads=setting.threads,
            kv_gib=setting.kv_gib,
        )


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is made of; tests have others.

    Attributes:
        header: makes the first line of the file.
        stream: makes the requests of a workload.
        open: starts contestants by name, for prompts of so many tokens.
        quality: measures answers, for a unit.
        simulation: simulates caches, for a pass.
        scores: says how good the answers of a unit are.
    """

    header: Callable[[Suite], Header]
    stream: Callable[[WorkloadSpec, Progress], RequestStream]
    open: Callable[[Sequence[str], int], AbstractContextManager[Opened]]
    quality: Callable[[Experiment, RequestStream, str], Iterator[QualityRecord]]
    simulation: Callable[[Experiment, RequestStream, int], Iterator[SimulationRecord]]
    scores: Callable[[str, RequestStream, Sequence[AnswerRecord]], Iterator[QualityRecord]]


def make_parts(options: RunOptions, config: RagConfig) -> Parts:
    """Return the parts of a real run.

    Args:
        options: settled for the suite that is run.
        config: models and engine.

    Raises:
        UnknownModelError: the model is not here.
    """
    from engine.tokenizer import Tokenizer
    from rag.bench.suite.answer_quality import score_answers
    from rag.bench.suite.opening import ContestantSetting, open_contestants
    from rag.bench.suite.prompts import make_stream
    from rag.bench.suite.quality import run_quality
    from rag.bench.suite.simulation import run_simulation
    from rag.model_hub import ModelHub

    folder = ModelHub(config.models_dir).resolve(config.model)
    work_dir = options.work_dir or default_work_dir()
    tokenizer = Tokenizer(folder)

    def opened(names: Sequence[str], context: int) -> AbstractContextManager[Opened]:
        setting = ContestantSetting(
            folder=folder,
            model=config.model,
            models_dir=config.models_dir,
            config=config,
            work_dir=work_dir / "run",
            context=context,
            kv_gib=options.kv_gib,
            threads=options.threads,
            gguf=options.gguf,
            pythons=options.pythons,
            report=options.report,
        )
        return open_contestants(names, setting)

    return Parts(
        header=partial(_header, config, RunClock(), options),
        stream=lambda spec, progress: make_stream(spec, config, progress, work_dir=options.work_dir),
        open=opened,
        quality=lambda experiment, stream, unit: run_quality(
            experiment, stream, config, unit=unit, threads=options.threads
        ),
        simulation=lambda experiment, stream, repeat: run_simulation(experiment, stream, config, repeat=repeat),
        scores=lambda unit, stream, answers: score_answers(unit, stream, answers, tokenizer),
    )


def _header(config: RagConfig, clock: RunClock, options: RunOptions, suite: Suite) -> Header:
    setting = Setting(
        threads=options.threads,
        kv_gib=options.kv_gib,
        gguf=None if options.gguf is None else str(options.gguf),
        pythons={name: str(path) for name, path in options.pythons.items()},
    )
    return Header(
        suite=suite,
        model=config.model,
        embedder=config.embedder,
        environment=clock.environment(torch_threads=options.threads),
        memory=physical_memory(),
        flags=_flags(),
        setting=setting,
    )


def _flags() -> tuple[str, ...]:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return ()
    words = next(
        (set(line.partition(":")[2].split()) for line in lines if line.lower().startswith(("flags", "features"))), set()
    )
    return tuple(flag for flag in FLAGS if flag in words)
