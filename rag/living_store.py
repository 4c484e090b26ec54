"""A KV store whose records live and die with the passages that they were computed from.

Every record has a row in the library that says whose it is. The row comes first, so that a crash leaves no record that
nobody names; a row without its record is only a miss. It is written when the KV is put, which the engine does behind
its answers, so that none waits for the database. Keys that have died wait in the library's queue until `clean` has
removed their records: done twice, it does no harm.
"""

import logging
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from threading import Lock
from typing import TYPE_CHECKING

from rag.errors import PurgeError
from rag.schemas import KVStoreInfo
from retriever.derived import Claim
from retriever.errors import StoreError

if TYPE_CHECKING:
    from engine.kv_identity import KVIdentity
    from engine.kv_protocol import KVStore
    from engine.kv_report import PurgeReport, StoreStats
    from engine.prompt import Segment
    from retriever.derived import DerivedKeys

__all__ = ["LivingStore", "claims_of", "namespace_of"]

logger = logging.getLogger(__name__)

EXPECTED_CLAIMS = 4096  # remembered until their KV is written; a lost one costs only that it is not kept this time


def namespace_of(collection_id: int) -> str:
    """Return the name of a collection's tree of cached KV; ids are never used again."""
    return str(collection_id)


def claims_of(
    identity: "KVIdentity", collection_id: int, head: "Segment", passages: "Sequence[Segment]"
) -> list[Claim]:
    """Say whose KV is whose: that of the template belongs to the collection, the others to passages.

    Args:
        identity: of the engine.
        collection_id: whose passages they are.
        head: the template.
        passages: segments that are named by the passages' ids.
    """
    namespace, template = namespace_of(collection_id), head.tokens
    own = Claim(identity.key(namespace, template, ()), collection_id, None)
    keys = (identity.key(namespace, template, segment.tokens) for segment in passages)
    return [own, *(Claim(key, collection_id, int(s.name)) for key, s in zip(keys, passages, strict=True))]


class LivingStore:
    """A `KVStore` around another one; every method may be called from any thread.

    Args:
        store: holds the records.
        keys: says which keys live.
    """

    def __init__(self, store: "KVStore", keys: "DerivedKeys") -> None:
        self._store = store
        self._keys = keys
        self._changing = Lock()  # no key dies unnoticed between the look at its row and the write of its record
        self._expected: OrderedDict[bytes, Claim] = OrderedDict()
        self._expecting = Lock()

    def expect(self, claims: Iterable[Claim]) -> None:
        """Remember whose keys these are, so that they can be claimed when their KV is put."""
        with self._expecting:
            for claim in claims:
                self._expected[claim.key] = claim
                self._expected.move_to_end(claim.key)
            while len(self._expected) > EXPECTED_CLAIMS:
                self._expected.popitem(last=False)

    def __contains__(self, key: object) -> bool:
        return key in self._store

    def get(self, key: bytes, tokens: Sequence[int], into: Sequence[memoryview]) -> bool:
        """See `KVStore.get`."""
        return self._store.get(key, tokens, into)

    def put(self, key: bytes, tokens: Sequence[int], payload: memoryview, dtype: str) -> bool:
        """See `KVStore.put`; what nothing that lives needs is declined."""
        with self._changing:
            try:
                return self._is_needed(key) and self._store.put(key, tokens, payload, dtype)
            except StoreError as error:
                logger.warning("KV is not stored, since it could not be written down whose it is: %s", error)
                return False

    def delete(self, *keys: bytes) -> int:
        """See `KVStore.delete`."""
        return self._store.delete(*keys)

    def purge(self, keys: Iterable[bytes]) -> "PurgeReport":
        """See `KVStore.purge`."""
        return self._store.purge(keys)

    def prefetch(self, keys: Iterable[bytes]) -> None:
        """See `KVStore.prefetch`."""
        self._store.prefetch(keys)

    def keys(self) -> list[bytes]:
        """See `KVStore.keys`."""
        return self._store.keys()

    def compact(self) -> int:
        """See `KVStore.compact`."""
        return self._store.compact()

    def stats(self) -> "StoreStats":
        """See `KVStore.stats`."""
        return self._store.stats()

    def info(self) -> KVStoreInfo:
        """Return what there is and what happened, for people."""
        stats = self._store.stats()
        return KVStoreInfo(
            records=stats.records,
            bytes_stored=stats.nbytes,
            bytes_budget=stats.capacity_bytes,
            hits=stats.hits,
            bad_records=stats.bad_records,
            damages=stats.damages,
            written=stats.written,
            declined=stats.declined,
            evicted=stats.evicted,
        )

    def flush(self) -> None:
        """See `KVStore.flush`."""
        self._store.flush()

    def close(self) -> None:
        """See `KVStore.close`."""
        self._store.close()

    def sweep(self) -> None:
        """Remove the records that no row names: of a library that was restored from a backup, or made anew.

        Those of keys that have died are left to `clean`, which knows how they are to be removed.
        """
        orphans = set(self._store.keys()) - self._keys.all()  # in this order, since rows come first
        orphans -= {item.key for item in self._keys.dead()}
        if orphans:
            logger.info("%d records of the KV store belong to no passage and are removed", len(orphans))
            self._remove(orphans, [])

    def clean(self) -> None:
        """Remove the records of keys that have died; what fails stays in the queue, and is tried again."""
        try:
            with self._changing:
                dead = self._keys.dead()
                gone = self._remove(
                    [item.key for item in dead if not item.erase], [item.key for item in dead if item.erase]
                )
                if gone:
                    self._keys.forget(gone)
        except StoreError as error:
            logger.warning("the library cannot write down which KV is gone: %s; it is tried again", error)

    def _remove(self, deleted: Collection[bytes], erased: Collection[bytes]) -> list[bytes]:
        """Delete records, and erase others; nothing reaches those that a failing disk does not let go.

        Returns:
            Keys of which nothing is to be done any more.
        """
        try:
            self._store.delete(*deleted)
            report = self._store.purge(erased) if erased else None
        except OSError as error:
            logger.warning("KV of deleted passages could not be removed (%s); it is tried again later", error)
            return []
        if report and not report.absent:
            unreadable = ", ".join(report.unreadable) or "a record"
            logger.warning("KV to be purged may be in %s, which cannot be read; it is tried again later", unreadable)
            return list(deleted)
        return [*deleted, *erased]

    def erase(self, keys: Iterable[bytes]) -> "PurgeReport":
        """Remove the records of dead keys so that no copy is left; those that may not be absent stay in the queue.

        Raises:
            PurgeError: the disk does not let them be erased; `clean` tries again.
        """
        with self._changing:
            try:
                report = self._store.purge(keys)
            except OSError as error:
                raise PurgeError(
                    f"it could not be erased ({error}); that is tried again with every delete, ingestion and start: "
                    "mend the disk and run one of them"
                ) from error
            if report.absent:
                self._keys.forget(keys)
            return report

    def _is_needed(self, key: bytes) -> bool:
        if self._keys.living([key]):
            return True
        with self._expecting:
            claim = self._expected.pop(key, None)
        return claim is not None and key in self._keys.claim([claim])
