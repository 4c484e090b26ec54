"""Tells what the cache did for an answer: the engine's report, in terms of sources and passages."""

from collections.abc import Sequence

from engine.ladder import Outcome
from engine.prompt import SegmentKind
from engine.stats import CacheReport, SegmentReport
from rag.schemas import Cache, HitTokens, PassageCache, PromptSegment, Source

__all__ = ["cache_use"]


def cache_use(report: CacheReport, sources: Sequence[Source]) -> Cache:
    """Return the use of the cache as an answer has it.

    Args:
        report: of a prompt whose passages are named by their ids.
        sources: the passages, numbered.
    """
    numbers = {source.passage_id: source.n for source in sources}
    segments = [_prompt_segment(segment, numbers) for segment in report.segments]
    passages = [
        PassageCache(passage_id=part.passage_id, tokens=part.tokens, outcome=part.outcome, tier=part.tier)
        for part in segments
        if part.passage_id is not None
    ]
    return Cache(passages=passages, hit_tokens=HitTokens(**report.hit_tokens), segments=segments)


def _prompt_segment(segment: SegmentReport, numbers: dict[int, int]) -> PromptSegment:
    passage_id = int(segment.name) if segment.kind is SegmentKind.PASSAGE else None
    is_repaired = segment.outcome is Outcome.SHIFTED
    return PromptSegment.model_validate(
        {
            "kind": segment.kind,
            "passage_id": passage_id,
            "source": None if passage_id is None else numbers[passage_id],
            "tokens": segment.num_tokens,
            "cached_tokens": segment.hit_tokens,
            "repaired_tokens": segment.num_tokens - segment.hit_tokens if is_repaired else 0,
            "outcome": segment.outcome,
            "tier": segment.tier,
        }
    )
