"""Which passages the latest answers read: what tells how a larger or smaller cache would do. It has no text.

Like the ledger it is kept in memory and written by `flush`; a crash loses what was noted since.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from time import time

import numpy as np

from retriever.errors import StoreError
from retriever.store import Store

__all__ = ["Read", "RetrievalLog"]

logger = logging.getLogger(__name__)

ADD = """
INSERT INTO retrieval_log (collection_id, at, passages) SELECT ?1, ?2, ?3
WHERE EXISTS (SELECT 1 FROM collections WHERE id = ?1)
"""
FORGET = "DELETE FROM retrieval_log WHERE number <= (SELECT max(number) FROM retrieval_log) - ?"
LATEST = """
SELECT collection_id, at, passages FROM retrieval_log WHERE ?1 IS NULL OR collection_id = ?1
ORDER BY number DESC LIMIT ?2
"""


@dataclass(frozen=True, slots=True)
class Read:
    """One answer's passages, in prompt order.

    Attributes:
        collection_id: where they are from.
        at: when it ended, in seconds since 1970.
        passages: of each its id and its tokens.
    """

    collection_id: int
    at: int
    passages: tuple[tuple[int, int], ...]


class RetrievalLog:
    """Notes the passages of answers; every method may be called from any thread.

    Args:
        store: keeps them.
        capacity: of how many answers; 0 keeps nothing.
    """

    def __init__(self, store: Store, capacity: int) -> None:
        self._store = store
        self._capacity = capacity
        self._lock = Lock()
        self._pending: list[Read] = []

    def note(self, collection_id: int, passages: Sequence[tuple[int, int]]) -> None:
        """Note an answer's passages, of each its id and its tokens; returns at once."""
        if self._capacity and passages:
            read = Read(collection_id, int(time()), tuple(passages))
            with self._lock:
                self._pending.append(read)

    def latest(self, answers: int, collection_id: int | None = None) -> list[Read]:
        """Return the latest answers, of a collection or of all, the oldest of them first."""
        self.flush()
        with self._store.read() as reader:
            found = reader.connection.execute(LATEST, (collection_id, answers)).fetchall()
        return [Read(collection, at, _passages(data)) for collection, at, data in reversed(found)]

    def flush(self) -> None:
        """Write down what was noted; what the disk does not take is lost, and only figures suffer."""
        with self._lock:
            pending, self._pending = self._pending, []
        if not pending:
            return
        try:
            with self._store.write() as writer:
                rows = [(read.collection_id, read.at, _data(read)) for read in pending]
                writer.connection.executemany(ADD, rows)
                writer.connection.execute(FORGET, (self._capacity,))
        except StoreError as error:
            logger.warning("the passages of %d answers are not logged: %s", len(pending), error)


def _data(read: Read) -> bytes:
    return np.array(read.passages, "<i8").tobytes()


def _passages(data: bytes) -> tuple[tuple[int, int], ...]:
    return tuple((passage, tokens) for passage, tokens in np.frombuffer(data, "<i8").reshape(-1, 2).tolist())
