"""An answer as it ended, and what the cache did for it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from engine.ladder import Outcome
from engine.prompt import SegmentKind
from engine.stats import CacheReport, Timings
from rag.caller import Caller

if TYPE_CHECKING:
    from engine.stats import SegmentReport

__all__ = ["CacheOutcome", "Ending", "Served", "cache_outcome"]

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
        embed_ms: time spent on the question's vector; None without retrieval.
        search_ms: time spent on the search; None without retrieval.
        timings: of the engine; None where it did not come to an end there.
        cache: how the prompt got its KV; empty where that was not begun.
        prompt_tokens: of the prompt; 0 where it was not begun.
        output_tokens: generated, as far as they were handed out.
    """

    caller: Caller
    pipeline: str
    model: str
    collection: str
    started: float
    ended: float
    ending: Ending
    error: str = ""
    embed_ms: float | None = None
    search_ms: float | None = None
    timings: Timings | None = None
    cache: CacheReport = field(default_factory=CacheReport)
    prompt_tokens: int = 0
    output_tokens: int = 0

    @property
    def outcome(self) -> CacheOutcome:
        """What the cache did for it."""
        return cache_outcome(self.cache)
