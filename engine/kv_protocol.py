"""What a store of passage KV can do, wherever it keeps it."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from engine.kv_report import PurgeReport, StoreStats

__all__ = ["KVStore"]


class KVStore(Protocol):
    """KV by key. A passage that is not there, or is not what it should be, is a miss, never an error.

    Every method may be called by any thread.
    """

    def __contains__(self, key: object) -> bool: ...

    def get(self, key: bytes, tokens: Sequence[int], into: Sequence[memoryview]) -> bool:
        """Fill buffers, one after the other, with the KV of a key; False is a miss, their content is then undefined.

        Args:
            key: see `KVIdentity.key`.
            tokens: of which the KV must be.
            into: writable bytes, together as many as were put.
        """

    def put(self, key: bytes, tokens: Sequence[int], payload: memoryview, dtype: str) -> bool:
        """Write KV, durable after `flush`; False when it is declined: no room, or the disk refuses.

        Args:
            key: see `KVIdentity.key`; what is there already stays.
            tokens: of which the KV is.
            payload: contiguous bytes.
            dtype: of the numbers in it, at most 8 letters.
        """

    def delete(self, *keys: bytes) -> int:
        """Delete durably and return how many of the keys there were.

        Raises:
            OSError: the disk fails; the keys are still there.
        """

    def purge(self, keys: Iterable[bytes]) -> PurgeReport:
        """Delete, overwrite, and walk through everything stored to see that nothing of the keys is left.

        Raises:
            OSError: the disk fails.
        """

    def prefetch(self, keys: Iterable[bytes]) -> None:
        """Begin to read ahead what is likely to be asked for soon."""

    def keys(self) -> list[bytes]:
        """Return every key there is."""

    def flush(self) -> None:
        """Return when everything that was put is durable.

        Raises:
            OSError: the disk fails.
        """

    def compact(self) -> int:
        """Gather scattered records; return how many were moved."""

    def stats(self) -> StoreStats:
        """Return a snapshot of sizes and counters."""

    def close(self) -> None:
        """Make everything durable; from then on everything is a miss, and puts are declined."""
