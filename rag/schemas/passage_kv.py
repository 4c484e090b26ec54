"""The KV of passages: what is stored, what it takes to store it, and what a purge removed."""

from typing import Literal

from rag.schemas.base import PassageId, Result

__all__ = ["KVStoreInfo", "KeptPassage", "PrecomputePlan", "PrecomputeProgress", "Purge"]


class PrecomputePlan(Result):
    """What it takes to store the KV of a collection's passages.

    Attributes:
        collection: its name.
        passages: passages in it.
        stored: those whose KV is stored already.
        to_compute: those that would be computed now, best ones first: as many as there is room for.
        tokens: their tokens.
        bytes_needed: disk space that they take.
        bytes_stored: disk space in use, by all collections.
        bytes_budget: disk space that may be used; 0 where no KV is stored.
    """

    collection: str
    passages: int
    stored: int
    to_compute: int
    tokens: int
    bytes_needed: int
    bytes_stored: int
    bytes_budget: int


class PrecomputeProgress(Result):
    """How far it is.

    Attributes:
        type: what the event is.
        passages: passages that are read.
        skipped: passages that are left out, since the model or its memory has no room for one of them.
        total: passages that there were to read.
        tokens: of those that are read.
        seconds: since it began.
        finished: told in the end: all but what was skipped is kept.
    """

    type: Literal["progress"] = "progress"
    passages: int
    skipped: int = 0
    total: int
    tokens: int
    seconds: float
    finished: bool = False


class KVStoreInfo(Result):
    """The KV store: what it holds, and what has happened since it was opened.

    Attributes:
        records: passages and templates whose KV can be read.
        bytes_stored: disk space that they take.
        bytes_budget: disk space that they may take.
        hits: loads that were served.
        bad_records: records that did not verify when they were loaded; their KV was computed again.
        damages: damaged places found when it was opened.
        written: records written.
        declined: records that were not written: no room, nobody needs them, or the disk refuses.
        evicted: records that had to make room.
    """

    records: int
    bytes_stored: int
    bytes_budget: int
    hits: int
    bad_records: int
    damages: int
    written: int
    declined: int
    evicted: int


class KeptPassage(Result):
    """A passage whose KV was not removed, since another passage, which lives, has the same tokens."""

    passage_id: PassageId
    same_as: PassageId
    same_as_uri: str


class Purge(Result):
    """What was removed from the cache and the KV store so that nothing of it is left.

    Attributes:
        passages: passages whose KV was removed from the memory of the engine, where it was.
        records: records removed from the KV store.
        scanned_bytes: bytes of the store that were then searched for each key, without finding one.
        kept: passages that share their KV with one that lives.
    """

    passages: int
    records: int
    scanned_bytes: int
    kept: list[KeptPassage]
