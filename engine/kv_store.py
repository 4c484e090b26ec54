"""The durable store of passage KV (DESIGN section 5): records by key, in extents that are appended to.

Knows keys and bytes: neither what a key stands for nor how KV lies in a pool.
"""

import logging
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from time import monotonic

from engine.errors import ConfigError
from engine.kv_extent import Extent, StoredRecord
from engine.kv_folder import ExtentFolder
from engine.kv_identity import pack_tokens
from engine.kv_index import RecordIndex
from engine.kv_record import ALIGNMENT, BadRecordError, RecordHeader
from engine.kv_report import PurgeReport, StoreStats

__all__ = ["ExtentStore"]

logger = logging.getLogger(__name__)

MIB = 1 << 20
EXTENT_BYTES = 64 * MIB
MAX_EXTENTS = 256  # of those that are full
RETRY_SECONDS = 30.0  # how long puts are declined after the disk has refused one
MAX_SPARSE = 8  # sparse extents are files held open; more of them are compacted
MAX_PREFETCHING = 64  # records that wait to be read ahead
EVICTED_SHARE = 32  # at least one part in so many is evicted at once, so that records are seldom sorted


class ExtentStore:
    """A `KVStore` in a folder of extents, see `ExtentFolder`. One process at a time may have it open.

    What the capacity has no room for is evicted by value.

    Args:
        folder: created if it is not there.
        capacity_bytes: bytes of the disk that records may take (half an extent more while records are moved).

    Raises:
        ConfigError: the folder cannot be used, or the capacity is not a positive number.
    """

    def __init__(self, folder: str | Path, *, capacity_bytes: int) -> None:
        if capacity_bytes <= 0:
            raise ConfigError(f"a KV store of {capacity_bytes} bytes holds nothing; give it more, or have none")
        self._stats = StoreStats(capacity_bytes=capacity_bytes)
        self._index = RecordIndex()
        self._state = threading.Lock()  # guards index and stats
        self._disk = threading.RLock()  # held while extents change; taken before `_state`
        self._prefetching = ThreadPoolExecutor(1, "kv-prefetch")
        self._num_prefetching = 0
        self._retry_at = 0.0
        self._closed = False
        try:
            self._folder = ExtentFolder(Path(folder), _extent_bytes(capacity_bytes))
            self._recover()
        except OSError as error:
            raise ConfigError(f"{folder} cannot be used as a KV store ({error}); choose another folder") from error

    def __contains__(self, key: object) -> bool:
        return key in self._index

    def get(self, key: bytes, tokens: Sequence[int], into: Sequence[memoryview]) -> bool:
        """See `KVStore.get`."""
        packed = pack_tokens(tokens)
        while (record := self._index.get(key)) is not None:
            try:
                record.read(packed, into)
                return self._count_load(key, hit=True)
            except (BadRecordError, OSError) as error:
                self._drop_bad(record, error)  # unless it has just been moved or deleted: then it is looked up again
        return self._count_load(key, hit=False)

    def put(self, key: bytes, tokens: Sequence[int], payload: memoryview, dtype: str) -> bool:
        """See `KVStore.put`."""
        packed, payload = pack_tokens(tokens), payload.cast("B")
        header = RecordHeader.describe(key, packed, payload, dtype)
        with self._disk:
            if key in self._index:
                return True
            record = self._append(header, packed, payload)
            with self._state:
                if record is None:
                    self._stats.declined += 1
                    return False
                self._index.add(record)
                self._stats.written += 1
            is_scattered = len(self._folder.sparse()) > MAX_SPARSE
        if is_scattered:
            self.compact()
        return True

    def delete(self, *keys: bytes) -> int:
        """See `KVStore.delete`."""
        with self._disk:
            records = self._take(keys)
            self._erase(records)
            self._folder.sync({record.extent for record in records})
        return len(records)

    def purge(self, keys: Iterable[bytes]) -> PurgeReport:
        """See `KVStore.purge`."""
        wanted = set(keys)
        with self._disk:
            records = self._take(wanted)
            self._erase(records, overwrite=True)
            self._folder.erase_strays(wanted)
            self._folder.sync()
            unreadable = tuple(map(str, self._folder.unreadable))
            absent = not any(self._folder.find(wanted)) and not unreadable
            return PurgeReport(len(records), self._folder.size, absent, unreadable)

    def prefetch(self, keys: Iterable[bytes]) -> None:
        """See `KVStore.prefetch`."""
        with self._state:
            records = [record for key in keys if (record := self._index.get(key)) is not None]
            for record in records:  # they count as used, since what is still on the device will not be loaded
                self._index.note_use(record.header.key)
                if self._num_prefetching < MAX_PREFETCHING:  # a disk that falls behind would read what nobody waits for
                    self._num_prefetching += 1
                    self._prefetching.submit(self._prefetch, record)  # takes milliseconds of a cold record

    def keys(self) -> list[bytes]:
        """See `KVStore.keys`."""
        with self._state:
            return self._index.keys()

    def flush(self) -> None:
        """See `KVStore.flush`."""
        with self._disk:
            self._folder.sync()

    def compact(self) -> int:
        """See `KVStore.compact`."""
        moved, tried = 0, set[Extent]()
        while (step := self._compact_next(tried)) is not None:
            moved += step
        return moved

    def stats(self) -> StoreStats:
        """See `KVStore.stats`."""
        with self._state:
            return replace(self._stats, records=len(self._index), nbytes=self._folder.nbytes)

    def close(self) -> None:
        """See `KVStore.close`."""
        with self._disk:
            with self._state:
                self._closed = True
                self._index = RecordIndex()
            self._prefetching.shutdown(cancel_futures=True)
            try:
                self._folder.sync()
            except OSError as error:
                logger.warning("the latest KV may not be on the disk: %s", error)

    def _prefetch(self, record: StoredRecord) -> None:
        try:
            record.extent.prefetch(record)
        finally:
            with self._state:
                self._num_prefetching -= 1

    def _recover(self) -> None:
        """Index what the folder holds; of what a compaction was about to move, keep the copy."""
        records = self._folder.open()
        stale = [known for record in records if (known := self._index.add(record)) is not None]
        if stale:
            self._folder.discard(stale)
            self._folder.sync()
        self._stats.damages = len(self._folder.damages) + len(self._folder.unreadable)
        self._make_room(0)

    def _count_load(self, key: bytes, *, hit: bool) -> bool:
        with self._state:
            if hit:
                self._stats.hits += 1
                self._index.note_use(key)
            else:
                self._stats.misses += 1
        return hit

    def _drop_bad(self, record: StoredRecord, error: Exception) -> None:
        """Erase a record that is not what it should be, if it is still the one of its key."""
        key = record.header.key
        with self._state:
            if self._index.get(key) is not record:
                return  # moved or evicted since it was looked up: no reason to wait for the disk
        with self._disk:
            with self._state:
                if self._index.get(key) is not record:
                    return
                self._index.pop(key)
                self._stats.bad_records += 1
            path = record.extent.path
            logger.warning("KV at byte %d of %s is bad (%s); it is computed again", record.offset, path, error)
            self._folder.discard([record])

    def _take(self, keys: Iterable[bytes]) -> list[StoredRecord]:
        """Forget keys, so that nobody loads them any more, and return their records."""
        with self._state:
            if self._closed:
                raise OSError("the KV store is closed")
            return [record for key in keys if (record := self._index.pop(key)) is not None]

    def _erase(self, records: Sequence[StoredRecord], *, overwrite: bool = False) -> None:
        """Erase records that were taken; when that fails, those that are left are known again."""
        left = list(records)
        try:
            if overwrite:
                self._folder.overwrite(left)
            while left:
                self._folder.erase(left[-1])
                left.pop()
        except OSError:
            with self._state:
                for record in left:
                    self._index.add(record)
            raise
        finally:
            self._stats.deleted += len(records) - len(left)

    def _append(self, header: RecordHeader, tokens: bytes, payload: memoryview) -> StoredRecord | None:
        """Write a record; None when it is declined."""
        if self._closed or monotonic() < self._retry_at:
            return None
        try:
            fits = self._make_room(header.extent_bytes)
            return self._folder.append(header, tokens, payload) if fits else None
        except OSError as error:
            logger.warning("KV cannot be stored (%s); tried again after %d seconds", error, RETRY_SECONDS)
            self._retry_at = monotonic() + RETRY_SECONDS
            return None

    def _make_room(self, nbytes: int) -> bool:
        """Evict until so many bytes fit."""
        capacity = self._stats.capacity_bytes
        if nbytes > capacity:
            return False
        while (excess := self._folder.nbytes + nbytes - capacity) > 0:
            with self._state:
                victims = self._index.pop_least_valuable(max(excess, capacity // EVICTED_SHARE))
                self._stats.evicted += len(victims)
            if not victims:
                return False
            self._folder.discard(victims)
            tried = set[Extent]()  # erased bytes may go on taking space until they are compacted
            while self._folder.nbytes + nbytes > capacity and self._compact_next(tried) is not None:
                pass
        return True

    def _compact_next(self, tried: set[Extent]) -> int | None:
        """Move the records of a sparse extent not tried yet, None when there is none; others may come in between."""
        with self._disk:
            extent = next((extent for extent in self._folder.sparse() if extent not in tried), None)
            if extent is None:
                return None
            tried.add(extent)
            return self._move_records(extent)

    def _move_records(self, extent: Extent) -> int:
        """Copy an extent's records to the youngest one, and erase them here when the copies are on the disk."""
        records = [record for record in self._index.records() if record.extent is extent]
        copies = self._folder.copy(records)
        with self._state:
            for copy in copies:
                self._index.add(copy)
            self._stats.moved += len(copies)
        if copies:
            self._folder.discard(records)
        return len(copies)


def _extent_bytes(capacity_bytes: int) -> int:
    """Choose the size of an extent: a small store has several, a large one not more than files may be open."""
    return max(min(EXTENT_BYTES, capacity_bytes // 16), capacity_bytes // MAX_EXTENTS, ALIGNMENT)
