"""The lines of a result file: what was measured, one record a line, nothing derived."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from rag.bench.environment import Environment
from rag.bench.suite.experiment import Suite

__all__ = [
    "FORMAT", "AnswerRecord", "CheckRecord", "ContestantRecord", "Header", "QualityRecord", "Record", "RecordLine",
    "Setting", "SimulationRecord", "SkippedRecord", "StreamRecord", "UnitRecord", "WindowRecord",
]  # fmt: skip

FORMAT = "preread-bench-1"


class _Record(BaseModel):
    # what is no number stays that, and every line is JSON: null means that nothing was measured
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Setting(_Record):
    """What engines run with, whatever the experiment.

    Attributes:
        threads: that every engine computes with.
        kv_gib: memory for KV, of each engine.
        gguf: for peers that read one, as given; None is the one that the model was made of.
        pythons: name of a contestant -> the Python that has it, as given; "" is for every other peer.
    """

    threads: int
    kv_gib: int
    gguf: str | None = None
    pythons: dict[str, str] = {}


class Header(_Record):
    """The first line.

    Attributes:
        suite: what is run, whole.
        model: of the engines.
        embedder: of the questions.
        memory: of the machine, in bytes.
        flags: of the processor that matter (avx512f, avx512_bf16, avx512_fp16, amx_tile, avx2 ...).
        setting: of the engines; a run that goes on has the same.
    """

    kind: Literal["header"] = "header"
    format: str = FORMAT
    suite: Suite
    model: str
    embedder: str
    environment: Environment
    memory: int | None = None
    flags: tuple[str, ...] = ()
    setting: Setting | None = None


class ContestantRecord(_Record):
    """An engine that takes part."""

    kind: Literal["contestant"] = "contestant"
    name: str
    version: str
    detail: str
    start_seconds: float


class SkippedRecord(_Record):
    """Something that was left out: an engine, or an experiment for one or all of them.

    Attributes:
        name: of the engine or experiment.
        reason: why, and what to do about it.
        unit: in which an engine that took part failed; empty where it is absent.
    """

    kind: Literal["skipped"] = "skipped"
    name: str
    reason: str
    unit: str = ""


class StreamRecord(_Record):
    """What an experiment asks, and what the retriever found for it.

    Attributes:
        digest: of every prompt, time and length; equal digests are equal requests.
        source: what the text is.
        prompt_tokens: on average.
        longest: tokens of the longest prompt with its answer; engines are opened for the longest of all experiments.
        passage_tokens: distinct ones, together.
        recall: share of requests with a gold text among the first n passages, by n; empty where nothing is known.
        retrieval_ms: of each request; empty where nothing was searched.
    """

    kind: Literal["stream"] = "stream"
    experiment: str
    digest: str
    source: str
    requests: int
    prompt_tokens: float
    longest: int = 0
    passages: int
    passage_tokens: int
    recall: dict[int, float] = {}
    retrieval_ms: tuple[float, ...] = ()


class AnswerRecord(_Record):
    """One request on one engine. Times are seconds since the unit began.

    Attributes:
        unit: id of the unit that it belongs to; it counts only where that unit is complete.
        request: its place in the stream.
        warmup: it is one of those that are reported apart.
        status: `short` gave too few tokens, `failed` none or an error; neither counts in any time.
        arrival: when it was due (not when it was sent).
        sent: when the generator handed it over.
        started: when the engine began to compute it, where it tells.
        first: its first token.
        finished: its last token.
        prompt: digest of its token ids.
        wanted: tokens asked for.
        tokens: ids of the answer; empty where an engine tells only how many.
        count: tokens given.
        cached: prompt tokens whose KV was not computed, by tier; None where the engine does not tell.
        outcomes: passage tokens by outcome.
        repair: tokens recomputed a shifted passage.
        certified: whether a certificate covers the reuse.
    """

    kind: Literal["answer"] = "answer"
    unit: str
    contestant: str
    request: int
    warmup: bool = False
    status: Literal["ok", "short", "failed"]
    error: str = ""
    arrival: float
    sent: float
    started: float | None = None
    first: float | None = None
    finished: float | None = None
    prompt: str
    prompt_tokens: int
    wanted: int
    count: int
    tokens: tuple[int, ...] = ()
    cached: dict[str, int] | None = None
    outcomes: dict[str, int] = {}
    repair: int | None = None
    certified: bool | None = None


class WindowRecord(_Record):
    """One engine in one unit: what it held, and what driving it cost.

    Attributes:
        rate: requests a second that were offered; None where arrivals depended on answers.
        prepared_tokens: read ahead before the first request.
        prepared_seconds: that it took.
        memory: bytes resident at the end.
        disk: bytes of KV on disk.
        engine_cpu: processor seconds of the engine.
        generator_cpu: processor seconds of the load generator.
        seconds: that the window took.
        lateness_ms: how much after its arrival a request was handed over, at p99.
        cut: the window was ended before its last answer, since nothing kept up.
    """

    kind: Literal["window"] = "window"
    unit: str
    contestant: str
    rate: float | None = None
    prepared_tokens: int = 0
    prepared_seconds: float = 0.0
    memory: int | None = None
    disk: int = 0
    engine_cpu: float | None = None
    generator_cpu: float = 0.0
    seconds: float
    lateness_ms: float = 0.0
    cut: bool = False


class QualityRecord(_Record):
    """One question answered one way, beside full prefill of the same prompt.

    Attributes:
        variant: `full`, `order` (full prefill, passages shuffled), `chunk` (certified), `repair-N`, `none` (no
            passages), `wrong-shift` (broken on purpose), or the name of a contestant (free answers only).
        kl: mean over the tokens of full prefill's greedy answer; None where the variant is not ours.
        first_kl: of its first token.
        top1: share of its tokens that this variant ranks first too.
        f1: of the free answer's words with those of full prefill's answer.
        gold_f1: with the gold text; None without one.
        gold: whether the free answer contains the gold text.
        ttft_ms: to the first token; None where it was not timed.
        full_ms: the same of full prefill, beside it.
    """

    kind: Literal["quality"] = "quality"
    unit: str
    request: int
    variant: str
    k: int
    kl: float | None = None
    first_kl: float | None = None
    top1: float | None = None
    f1: float | None = None
    gold_f1: float | None = None
    gold: bool | None = None
    ttft_ms: float | None = None
    full_ms: float | None = None


class SimulationRecord(_Record):
    """Hit rates of a stream in a cache of some size, by the engine's own bookkeeping.

    Attributes:
        device_tokens: that the cache holds; None is enough for everything.
        share: of the distinct passage tokens.
        hit_rate: passage tokens whose KV was found, on the device or on disk, over all.
        device_rate: those found on the device alone, over all.
    """

    kind: Literal["simulation"] = "simulation"
    unit: str
    reuse: str
    order: str
    policy: str
    device_tokens: int | None
    share: float
    hit_rate: float
    device_rate: float


class CheckRecord(_Record):
    """A self-check of the benchmark."""

    kind: Literal["check"] = "check"
    unit: str
    name: str
    passed: bool
    detail: str


class UnitRecord(_Record):
    """The last line of a unit: all before it of the same unit is complete.

    Attributes:
        unit: `experiment/repeat`; under load `experiment/repeat/contestant` come before it, and it closes the pass.
            For goodput `experiment/repeat/contestant` is a whole search, with the answers that filled the cache, and
            within it are `experiment/repeat/contestant/step`: step 0 is one client alone (without a rate), the others
            are windows at a rate each. `experiment/checks` holds its self-checks.
        load: load average before it.
    """

    kind: Literal["unit"] = "unit"
    unit: str
    experiment: str
    repeat: int
    began: str
    seconds: float
    load: float | None = None


Record = (
    Header | ContestantRecord | SkippedRecord | StreamRecord | AnswerRecord | WindowRecord | QualityRecord
    | SimulationRecord | CheckRecord | UnitRecord
)  # fmt: skip
RecordLine: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])
