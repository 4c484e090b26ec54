"""What a run of the reuse benchmark leaves behind."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from rag.bench.environment import Environment
from rag.bench.statistics import Interval, Summary, median_ratio, summarise

__all__ = [
    "FORMAT", "DiskFigure", "Endurance", "PrecomputeFigure", "ReuseCase", "ReuseReport", "ReuseResult", "ReuseSetting",
    "Skipped",
]  # fmt: skip

FORMAT = "preread-bench-reuse-1"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReuseCase(_Part):
    """A prompt's shape: template, passages, question.

    Attributes:
        passages: how many.
        length: tokens of each.
        repair: tokens computed at the head of each but the first.
    """

    passages: int
    length: int
    repair: int


class ReuseResult(_Part):
    """First tokens of one shape, in milliseconds. The three took turns in every repeat.

    Attributes:
        case: the shape.
        prompt_tokens: of the prompt.
        new_tokens: computed with chunk reuse: the repaired heads and the question.
        chunk_ms: passages' KV on the device, in an order that was never read before.
        full_ms: the same prompt with nothing cached.
        contiguous_ms: as many new tokens after one cached prefix, together about as long.
        full_over_chunk: how many times sooner the first token comes; median of the repeats, with its interval.
        chunk_over_contiguous: what reuse in pieces costs over reuse in one piece.
    """

    case: ReuseCase
    prompt_tokens: int
    new_tokens: int
    chunk_ms: Summary
    full_ms: Summary
    contiguous_ms: Summary
    full_over_chunk: Interval
    chunk_over_contiguous: Interval
    samples_ms: dict[str, list[float]]

    @classmethod
    def of(
        cls, case: ReuseCase, prompt_tokens: int, new_tokens: int, samples_ms: dict[str, list[float]], seed: int
    ) -> "ReuseResult":
        """Summarise samples of `chunk`, `full` and `contiguous`, one of each a repeat."""
        chunk, full, contiguous = (samples_ms[name] for name in ("chunk", "full", "contiguous"))
        return cls(
            case=case,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            chunk_ms=summarise(chunk),
            full_ms=summarise(full),
            contiguous_ms=summarise(contiguous),
            full_over_chunk=median_ratio(full, chunk, seed=seed),
            chunk_over_contiguous=median_ratio(chunk, contiguous, seed=seed),
            samples_ms=samples_ms,
        )


class Endurance(_Part):
    """The same passages again and again, each time in an order that was never read before.

    Attributes:
        case: the shape.
        chunk_ms: first token of each batch.
        full_ms: the same prompt with nothing cached, beside it.
        first: full over chunk, the median of the first tenth of the batches (ten of them at least).
        last: the same of the last.
        cached_blocks_before: that the tree held before the first batch.
        cached_blocks_after: after the last.
        evicted_blocks: by all of them.
    """

    case: ReuseCase
    chunk_ms: list[float]
    full_ms: list[float]
    first: float
    last: float
    cached_blocks_before: int
    cached_blocks_after: int
    evicted_blocks: int

    @property
    def drift(self) -> float:
        """The last speed-up over the first, less one."""
        return self.last / self.first - 1


class PrecomputeFigure(_Part):
    """Ingestion's reading of passages beside plain prompts of as many tokens.

    Attributes:
        passages: of a batch.
        length: tokens of each.
        precompute: passage tokens a second, written to the disk.
        prefill: tokens a second of plain prompts.
        share: the first over the second, in pairs.
    """

    passages: int
    length: int
    precompute: Summary
    prefill: Summary
    share: Interval


class DiskFigure(_Part):
    """Passages' KV from a warm page cache into blocks, checksums verified.

    Attributes:
        tokens: loaded together.
        bytes: of their KV.
        load_ms: into blocks.
        device_ms: first token of a question over these passages while they are on the device.
        disk_ms: of the same while they are on the disk alone.
    """

    tokens: int
    bytes: int
    load_ms: Summary
    device_ms: Summary
    disk_ms: Summary


class Skipped(_Part):
    """What was left out, and why."""

    name: str
    reason: str


class ReuseSetting(_Part):
    """What was asked, and of whom.

    Attributes:
        question: tokens after the passages.
        template: tokens before them.
    """

    model: str
    dtype: str
    backend: str
    block_size: int
    template: int
    question: int
    repeats: int
    seed: int


class ReuseReport(_Part):
    """The report; parts that were not asked for are None.

    Attributes:
        cases: by passage length, number, repair.
    """

    format: str = FORMAT
    setting: ReuseSetting
    environment: Environment
    interrupted: bool
    warnings: list[str]
    seconds: float
    cases: list[ReuseResult]
    endurance: Endurance | None
    precompute: PrecomputeFigure | None
    disk: DiskFigure | None
    skipped: Sequence[Skipped]
