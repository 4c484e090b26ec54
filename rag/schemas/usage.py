"""What was used and what it cost, and how passages are used over and over."""

from datetime import date
from typing import Annotated, Literal, get_args

from pydantic import Field

from rag.schemas.base import CollectionName, Request, Result

__all__ = [
    "COLUMNS",
    "CacheForecast",
    "PassageUse",
    "PatternsRequest",
    "PopularityPoint",
    "ReusePoint",
    "UsageColumn",
    "UsagePatterns",
    "UsageReport",
    "UsageRequest",
    "UsageRow",
    "UsageTotal",
]

UsageColumn = Literal["day", "key", "collection", "pipeline", "model"]
COLUMNS: tuple[UsageColumn, ...] = get_args(UsageColumn)
Day = Annotated[date, Field(ge=date(1970, 1, 1), lt=date(9999, 1, 1))]


class UsageRequest(Request):
    """Which part of the ledger to show; days are those of UTC.

    Attributes:
        since: first day; 30 days before the last one where it is left out.
        until: last day; today where it is left out.
        by: what to tell apart; the rest is summed.
        key: of this API key only, by its id.
        collection: of this collection only.
    """

    since: Day | None = None
    until: Day | None = None
    by: list[UsageColumn] = Field(fail_fast=True, default=list(COLUMNS), max_length=len(COLUMNS))
    key: str | None = Field(default=None, max_length=100)
    collection: CollectionName | None = None


class UsageTotal(Result):
    """What was used.

    Attributes:
        answers: how many were begun; one whose client left is among them, with what it had cost.
        prompt_tokens: of their prompts.
        cached_tokens: those of the prompt tokens whose KV was not computed.
        output_tokens: generated.
        cost: in the price book's currency; null where there is no price.
        saved: what the same would have cost more without the cache; null where there is no price.
        unpriced_tokens: prompt and output tokens of models without a price, which are in neither.
    """

    answers: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    cost: float | None
    saved: float | None
    unpriced_tokens: int


class UsageRow(UsageTotal):
    """What was used for one thing; what was not asked to be told apart is null.

    Attributes:
        day: in UTC.
        key_id: of the API key; empty where there was none.
        key_name: what it is called.
        collection: its name; empty where none was asked.
        pipeline: what answered, such as `rag`.
        model: what computed it.
    """

    day: date | None
    key_id: str | None
    key_name: str | None
    collection: str | None
    pipeline: str | None
    model: str | None


class UsageReport(Result):
    """What was used from one day to another, both included."""

    since: date
    until: date
    currency: str | None
    rows: list[UsageRow]
    total: UsageTotal


class PatternsRequest(Request):
    """Which answers to look at.

    Attributes:
        collection: of this collection only.
        answers: so many of the latest at most.
    """

    collection: CollectionName | None = None
    answers: int = Field(default=20_000, ge=1, le=1_000_000)


class PassageUse(Result):
    """How often a document's passages were read; its uri is null where it is deleted."""

    uri: str | None
    collection: str | None
    reads: int


class PopularityPoint(Result):
    """The `documents` most read documents have this share of all reads."""

    documents: int
    share: float


class ReusePoint(Result):
    """This share of the reads of passages that were read before came after at most so many tokens of other ones."""

    tokens: int
    share: float


class CacheForecast(Result):
    """What a cache of so many tokens would find.

    Attributes:
        cache_tokens: room for the KV of so many tokens of passages.
        hit_rate: share of the passages' tokens that it finds.
        is_current: whether it is as large as the memory for KV that the engine has.
    """

    cache_tokens: int
    hit_rate: float
    is_current: bool


class UsagePatterns(Result):
    """How the latest answers have read passages.

    Attributes:
        answers: that were looked at.
        since: when the first of them ended, in ISO 8601; null where there are none.
        until: when the last one did.
        reads: of passages, in all.
        passages: different ones among them.
        tokens: of all different passages: a cache for more never has to evict.
        popularity: from the most read document to all.
        top: the most read documents.
        reuse_distance: tokens of other passages between two reads of the same.
        forecast: by size of the cache. Computed exactly for one that evicts what was read least recently.
        best_hit_rate: of a cache that forgets nothing.
    """

    answers: int
    since: str | None
    until: str | None
    reads: int
    passages: int
    tokens: int
    popularity: list[PopularityPoint]
    top: list[PassageUse]
    reuse_distance: list[ReusePoint]
    forecast: list[CacheForecast]
    best_hit_rate: float
