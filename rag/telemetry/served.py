"""An answer as it ended, and what the cache did for it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from engine.ladder import Outcome
from engine.prompt import SegmentKind
from engine.stats import CacheReport, Timings
from rag.caller import Caller

if TYPE_CHECKING:
    from engine.stats import SegmentReport

__all__ = ["CacheOutcome", "Ending", "Retrieval", "Served", "Stages", "cache_outcome"]

CacheOutcome = Literal["hit", "partial", "miss"]
Ending = Literal["stop", "length", "abort", "error"]  # vLLM's words


def cache_outcome(report: CacheReport) -> CacheOutcome:
    """Say by the tokens of an answer's passages what the cache did for it.

    `hit`: all of them came from the cache, but for the repaired heads of passages out of place. `miss`: none did.
    `partial`: some did. Of a prompt without passages, all of its segments count instead.
    """
    passages = [segment for segment in report.segments if segment.kind is SegmentKind.PASSAGE]
    counted: Sequence[SegmentReport] = passages or report.segments
    if not any(segment.hit_tokens for segment in counted):
        return "miss"
    return "partial" if any(segment.outcome is Outcome.COMPUTED for segment in counted) else "hit"


@dataclass(frozen=True, slots=True)
class Retrieval:
    """When the passages of an answer were looked for, in seconds of `time.perf_counter`, and how long it took."""

    started: float
    embed_seconds: float
    search_seconds: float


@dataclass(frozen=True, slots=True)
class Stages:
    """When the stages of an answer in the engine ended, in seconds of `time.perf_counter`.

    Attributes:
        arrival: when the engine took the question, and its queue began.
        queued: when it had waited long enough.
        loaded: when KV had been read from the disk, and the prompt began to be computed.
        first_token: when that had ended.
        finished: when the last token was there.
    """

    arrival: float
    queued: float
    loaded: float
    first_token: float
    finished: float

    @classmethod
    def of(cls, timings: Timings, load_seconds: float) -> "Stages | None":
        """Tell the stages of a request; None for one that did not come to a token."""
        if timings.first_token is None or timings.finished is None:
            return None
        loaded = timings.first_token if timings.first_scheduled is None else timings.first_scheduled
        queued = max(loaded - load_seconds, timings.arrival)  # loading comes last before the first step
        return cls(timings.arrival, queued, loaded, timings.first_token, timings.finished)

    @property
    def durations(self) -> dict[str, float]:
        """How long each stage took, in seconds."""
        return {
            "queue": self.queued - self.arrival,
            "load": self.loaded - self.queued,
            "prefill": self.first_token - self.loaded,
            "decode": self.finished - self.first_token,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One answer as it ended.

    Attributes:
        caller: who asked.
        pipeline: what answered: `rag`, or another short name.
        model: what computed it.
        collection: where its passages are from; empty where none was asked.
        started: when the question came, in seconds of `time.perf_counter`.
        ended: when its answer did, however that was.
        ending: stop, length, abort (nobody waited any more) or error.
        error: name of the error's class, if that was the end.
        retrieval: of its passages; None where there was none.
        stages: in the engine; None where it did not come to its end there.
        cache: how the prompt got its KV; empty where that was not begun.
        prompt_tokens: of the prompt; 0 where it was not begun.
        output_tokens: generated, as far as they were handed out.
        namespace: of the request: which collection its passages are from.
        question: its text, only where it may be logged.
        parent: of its spans, only where they are recorded.
    """

    caller: Caller
    pipeline: str
    model: str
    collection: str
    started: float
    ended: float
    ending: Ending
    error: str = ""
    retrieval: Retrieval | None = None
    stages: Stages | None = None
    cache: CacheReport = field(default_factory=CacheReport)
    prompt_tokens: int = 0
    output_tokens: int = 0
    namespace: str = ""
    question: str | None = None
    parent: Any = None

    @property
    def outcome(self) -> CacheOutcome:
        """What the cache did for it."""
        return cache_outcome(self.cache)
