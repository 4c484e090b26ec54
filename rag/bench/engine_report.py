"""What a run of the engine benchmark leaves behind: every measurement, and what follows from them."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from rag.bench.environment import Environment
from rag.bench.statistics import Interval, Summary

__all__ = [
    "FORMAT", "Bandwidth", "Bound", "CaseKind", "CaseResult", "EngineReport", "EngineSetting", "Floor", "GemmRate",
    "Machine", "Overhead", "PeerFigure", "PeerInfo", "SearchFigure", "ServerStart", "Skipped",
]  # fmt: skip

FORMAT = "preread-bench-engine-1"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CaseKind(StrEnum):
    """What a case measures: a prompt computed whole, one with a cached prefix, a decode step, one over shared KV."""

    PREFILL = "prefill"
    WARM = "warm"
    DECODE = "decode"
    SHARED = "shared"


class Bound(StrEnum):
    """What limits a floor: operations or memory traffic."""

    COMPUTE = "compute"
    MEMORY = "memory"


class GemmRate(_Part):
    """How fast a kernel runs the linear layers of the model at a number of rows; the best of its samples.

    Attributes:
        kernel: who computes, for instance "torch".
        dtype: of the weights; `int8` keeps activations in floating point, `int8x8` has both in 8 bits.
        rows: tokens at once.
        gflops: 1e9 operations a second.
        gbytes: 1e9 bytes of weights read a second.
    """

    kernel: str
    dtype: str
    rows: int
    gflops: float
    gbytes: float


class Bandwidth(_Part):
    """How fast memory is read over and over, with every thread.

    Attributes:
        bytes: size of what is read; a smaller one stays in caches.
        gbytes: 1e9 bytes a second, the best of the samples.
    """

    bytes: int
    gbytes: float


class Machine(_Part):
    """What the machine reaches: the ceilings that floors are computed with."""

    threads: int
    gemm: list[GemmRate]
    bandwidth: list[Bandwidth]
    seconds: float


class Floor(_Part):
    """The least time that a case can take on this machine.

    Attributes:
        operations: of the linear layers, the output head where a token is sampled, and attention.
        bytes: weights once a step, and KV; a shared prefix once.
        compute_ms: the operations at the best rate measured for the compute mode.
        memory_ms: the bytes at the bandwidth measured for so many.
        ms: the longer of the two.
        bound: which of them.
        linear_ms: the linear layers alone, at the best rate that any kernel reached with as many rows and, unless that
            is the compute mode, without 8-bit activations.
    """

    operations: int
    bytes: int
    compute_ms: float
    memory_ms: float
    ms: float
    bound: Bound
    linear_ms: float


class PeerFigure(_Part):
    """A case on a peer.

    Attributes:
        samples_ms: one a repeat, as those of the case.
        time_ms: of them.
        ratio: the peer's time over ours, the median of the repeats: above 1 we are faster.
        reason: why there are no figures, where there are none.
    """

    samples_ms: list[float] = []
    time_ms: Summary | None = None
    ratio: Interval | None = None
    reason: str | None = None


class CaseResult(_Part):
    """One case. Times are in milliseconds: to the first token, or of one decode step.

    Attributes:
        name: unique in the report.
        new: tokens computed before the first token of each sequence; of a decode step, 1.
        cached: tokens of each prompt whose KV is there already.
        batch: sequences.
        shared: of the cached tokens, those that every sequence shares.
        samples_ms: one a repeat; of decode steps, the median of the repeat's steps.
        tokens_per_second: computed or sampled tokens over the median time.
        tokens_per_step: of one sequence, on average; above 1 where drafts were accepted.
        over_floor: median time over the floor.
        over_linear: median time over `floor.linear_ms`.
        peers: by name.
    """

    name: str
    kind: CaseKind
    new: int
    cached: int
    batch: int
    shared: int
    samples_ms: list[float]
    time_ms: Summary
    tokens_per_second: float
    tokens_per_step: float
    floor: Floor
    over_floor: float
    over_linear: float
    peers: dict[str, PeerFigure]


class Skipped(_Part):
    """A case or part that was not measured, and why."""

    name: str
    reason: str


class Overhead(_Part):
    """Where a batch-1 decode step spends its time.

    Attributes:
        context: tokens before it.
        step_ms: wall time of a step, the median.
        kernel_ms: of it, inside the compiled kernels; null where the backend does not count it.
        outside_ms: the median of the steps' rests.
    """

    context: int
    step_ms: float
    kernel_ms: float | None
    outside_ms: float | None


class SearchFigure(_Part):
    """FAISS beside decoding.

    Attributes:
        vectors: in the index.
        dimension: of them.
        search_ms: one search alone.
        step_ms: a batch-1 decode step alone.
        step_beside_ms: a step with a search that starts when it starts.
        slowdown: how much longer the step takes, over the search's own time; 1 is its full price.
    """

    vectors: int
    dimension: int
    search_ms: float
    step_ms: float
    step_beside_ms: float
    slowdown: float


class ServerStart(_Part):
    """`rag serve` on an empty data directory, from the process's start until it says that it is ready."""

    seconds: list[float]
    median: float


class PeerInfo(_Part):
    """A peer that took part, or the reason why it did not."""

    name: str
    version: str = ""
    detail: str = ""
    reason: str | None = None


class EngineSetting(_Part):
    """What was measured.

    Attributes:
        dtype: KV compute mode; `int8` is products of 8-bit weights and activations.
        kv_dtype: of the stored keys and values.
        weights: what was asked for of the weights' format.
        decode_weights: format of the weights that a batch-1 decode step reads.
        lean_rows: up to how many private rows a step has 8-bit weights; null is any number, where it has them at all.
        tokens: decode steps timed a repeat.
    """

    model: str
    dtype: str
    kv_dtype: str
    weights: str
    decode_weights: str
    lean_rows: int | None
    backend: str
    device: str
    block_size: int
    kv_blocks: int
    max_num_batched_tokens: int
    linear_parameters: int
    head_parameters: int
    operations_per_pair: int
    kv_bytes_per_token: int
    repeats: int
    tokens: int
    seed: int


class EngineReport(_Part):
    """The whole run.

    Attributes:
        format: of this file.
        interrupted: the cases were not measured to their end.
        problems: self-checks that failed; the figures are void where there is one.
        warnings: what a reader of the figures has to know.
        seconds: the measurement took, with the machine's and the peers' own.
        machine: null where no case was wanted.
        sharing: the decode step over a shared prefix over the one without sharing; null where not measured.
    """

    format: str = FORMAT
    setting: EngineSetting
    environment: Environment
    interrupted: bool
    problems: list[str]
    warnings: list[str]
    seconds: float
    machine: Machine | None
    cases: list[CaseResult]
    sharing: Interval | None
    overhead: Overhead | None
    search: SearchFigure | None
    server: ServerStart | None
    peers: list[PeerInfo]
    skipped: list[Skipped]
