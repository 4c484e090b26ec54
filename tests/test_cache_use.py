"""What an answer tells of the cache: the prompt part by part."""

from engine.ladder import Outcome
from engine.prompt import SegmentKind
from engine.stats import CacheReport, SegmentReport
from rag.cache_use import cache_use
from rag.schemas import PromptSegment, Source

SOURCE = {"document_id": "d", "title": "", "uri": "", "page": None, "start": 0, "end": 1, "score": 1.0, "text": "."}


def source(n: int, passage_id: int) -> Source:
    return Source(n=n, label=f"k{n}", passage_id=passage_id, **SOURCE)


def test_the_prompt_is_told_in_its_order_with_the_numbers_of_the_sources() -> None:
    """Here the second-best passage stands first, as where the order is the cache's."""
    report = CacheReport(
        (
            SegmentReport(SegmentKind.TEMPLATE, "", 40, 40, Outcome.PATH, "device"),
            SegmentReport(SegmentKind.PASSAGE, "-8", 100, 100, Outcome.CANONICAL, "device"),
            SegmentReport(SegmentKind.PASSAGE, "7", 120, 104, Outcome.SHIFTED, "disk"),
            SegmentReport(SegmentKind.PASSAGE, "9", 90, 16, Outcome.COMPUTED, "device"),
            SegmentReport(SegmentKind.TAIL, "", 20, 0, Outcome.COMPUTED, None),
        ),
        {"device": 156, "disk": 104},
    )

    cache = cache_use(report, [source(1, 7), source(2, -8), source(3, 9)])

    told = [
        (part.kind, part.source, part.tokens, part.cached_tokens, part.repaired_tokens, part.outcome, part.tier)
        for part in cache.segments
    ]
    assert told == [
        ("template", None, 40, 40, 0, "path", "device"),
        ("passage", 2, 100, 100, 0, "canonical", "device"),
        ("passage", 1, 120, 104, 16, "shifted", "disk"),
        ("passage", 3, 90, 16, 0, "computed", "device"),
        ("tail", None, 20, 0, 0, "computed", None),
    ]
    assert [passage.passage_id for passage in cache.passages] == [-8, 7, 9]
    assert (cache.hit_tokens.device, cache.hit_tokens.disk) == (156, 104)


def test_a_passage_id_keeps_every_digit_in_json() -> None:
    part = PromptSegment(
        kind="passage", passage_id=2**63 - 1, source=1, tokens=3, cached_tokens=3, repaired_tokens=0, outcome="path",
        tier="device",
    )  # fmt: skip
    assert part.model_dump(mode="json")["passage_id"] == "9223372036854775807"


def test_a_request_that_never_ran_has_no_parts() -> None:
    assert cache_use(CacheReport(), []).segments == []
