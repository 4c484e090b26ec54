"""What is in the cache, and what may be asked of it."""

from typing import Literal

from pydantic import Field

from rag.schemas.base import CollectionName, Request, Result
from rag.schemas.passage_kv import KVStoreInfo

__all__ = ["CacheSelection", "CacheStats", "CachedCollection", "FlushRequest", "Flushed", "Pinned", "Unpinned"]


class CachedCollection(Result):
    """What the engine's memory holds of a collection.

    Attributes:
        collection: its name.
        blocks: of KV.
        bytes: that they take.
        pinned_passages: passages that are not evicted.
    """

    collection: str
    blocks: int
    bytes: int
    pinned_passages: int


class CacheStats(Result):
    """What the cache holds.

    Attributes:
        block_tokens: tokens in a block at most.
        block_bytes: memory of a block.
        blocks: in all.
        free_blocks: that hold nothing.
        cached_blocks: that hold KV for those who ask next, pinned ones included.
        pinned_blocks: that are not evicted.
        evicted_blocks: that had to make room since the start.
        prompt_tokens: of all prompts since the start.
        cached_tokens: those of them whose KV was not computed.
        collections: those that have something in memory, by name.
        kv_store: what is on disk; null where no KV is stored.
    """

    block_tokens: int
    block_bytes: int
    blocks: int
    free_blocks: int
    cached_blocks: int
    pinned_blocks: int
    evicted_blocks: int
    prompt_tokens: int
    cached_tokens: int
    collections: list[CachedCollection]
    kv_store: KVStoreInfo | None


class CacheSelection(Request):
    """Passages: of a collection, or of one document of it."""

    collection: CollectionName
    document_id: str | None = Field(default=None, max_length=200)


class FlushRequest(CacheSelection):
    """What to forget.

    Attributes:
        tier: `device` is the engine's memory, `all` the KV store on disk too: the passages are then computed anew.
    """

    tier: Literal["device", "all"] = "device"


class Pinned(Result):
    """What was pinned.

    Attributes:
        passages: that are not evicted from now on.
        left_out: those for which there is no room: half of the blocks may be pinned at most.
    """

    passages: int
    left_out: int


class Unpinned(Result):
    """How many passages may be evicted again."""

    passages: int


class Flushed(Result):
    """What was forgotten.

    Attributes:
        blocks: freed in the engine's memory; those that an answer still reads are freed when it has ended.
        records: removed from the KV store.
    """

    blocks: int
    records: int
