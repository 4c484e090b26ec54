"""What a KV store tells of itself."""

from dataclasses import dataclass

__all__ = ["PurgeReport", "StoreStats"]


@dataclass(slots=True)
class StoreStats:
    """What a store holds and what has happened since it was opened.

    Attributes:
        records: records that can be read.
        nbytes: bytes of the disk that they take.
        capacity_bytes: bytes that they may take.
        hits: loads that were served.
        misses: loads of what is not there.
        bad_records: records that did not verify when they were loaded, and were erased.
        damages: stretches that were no records when the store was opened, and were erased; files that cannot be read.
        written: records written.
        declined: records that were not written: no room, or the disk refuses.
        evicted: records that had to make room.
        deleted: records deleted or purged.
        moved: records that compaction has written once more.
    """

    records: int = 0
    nbytes: int = 0
    capacity_bytes: int = 0
    hits: int = 0
    misses: int = 0
    bad_records: int = 0
    damages: int = 0
    written: int = 0
    declined: int = 0
    evicted: int = 0
    deleted: int = 0
    moved: int = 0


@dataclass(frozen=True, slots=True)
class PurgeReport:
    """What a purge has found.

    Attributes:
        erased: how many records of the keys there were.
        scanned_bytes: bytes of the extents that were walked through afterwards.
        absent: whether none of the keys, and nothing else that is not a live record, was found there.
        unreadable: extents that cannot be opened, about which nothing can be said.
    """

    erased: int
    scanned_bytes: int
    absent: bool
    unreadable: tuple[str, ...] = ()
