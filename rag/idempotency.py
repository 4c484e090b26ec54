"""Requests that a client may send twice: the second one gets the answer of the first, and does nothing.

Who asks chooses a key for what he wants done once, and sends it with every attempt. It is remembered for a day, with a
hash of what was asked for, so that a key that is used for something else by mistake is noticed.
"""

import sqlite3
from dataclasses import dataclass
from threading import Lock

from rag.errors import KeyInUseError, KeyReusedError
from retriever.document import digest
from retriever.store import Store

__all__ = ["KEPT_HOURS", "Claim", "IdempotentRequests", "Remembered", "fingerprint_of"]

KEPT_HOURS = 24
OLDEST = f"strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-{KEPT_HOURS} hours')"


@dataclass(frozen=True, slots=True)
class Remembered:
    """The answer to a request that was done before."""

    status: int
    body: str


def fingerprint_of(*parts: str | bytes) -> bytes:
    """Return a hash of what a request asks for."""
    return digest(*(part.encode() if isinstance(part, str) else part for part in parts))


@dataclass(frozen=True, slots=True)
class Claim:
    """A key for what is asked for; `fingerprint` is a hash of that."""

    owner: str
    key: str
    fingerprint: bytes


class IdempotentRequests:
    """The keys of one library; every method may be called from any thread.

    Answers are in the database, requests that are worked on in memory alone: nothing is left of one that fails, even
    where the disk is full.

    Args:
        store: the library's database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = Lock()
        self._working: dict[tuple[str, str], Claim] = {}

    def begin(self, claim: Claim) -> None:
        """Take a key until it is released.

        Raises:
            KeyInUseError: another request has it.
            KeyReusedError: that one asks for something else.
        """
        with self._lock:
            first = self._working.setdefault((claim.owner, claim.key), claim)
        if first is claim:
            return
        _require_same(claim, first.fingerprint)
        raise KeyInUseError(
            f"the request with the idempotency key {claim.key!r} is being worked on; ask again in a while"
        )

    def find(self, claim: Claim) -> Remembered | None:
        """Return the answer of the request that had the key before.

        Raises:
            KeyReusedError: that request asked for something else.
        """
        with self._store.read() as reader:
            statement = f"""SELECT fingerprint, status, body FROM idempotent_requests
                            WHERE owner = ? AND key = ? AND status IS NOT NULL AND created_at >= {OLDEST}"""  # noqa: S608
            row = reader.connection.execute(statement, (claim.owner, claim.key)).fetchone()
        if row is None:
            return None
        _require_same(claim, row[0])
        return Remembered(row[1], row[2])

    def finish(self, claim: Claim, answer: Remembered) -> None:
        """Remember the answer to a request."""
        with self._store.write() as writer:
            self.keep(claim, answer, writer.connection)

    def keep(self, claim: Claim, answer: Remembered, connection: sqlite3.Connection) -> None:
        """Remember the answer to a request with what else a transaction writes: both or neither."""
        statement = f"DELETE FROM idempotent_requests WHERE created_at < {OLDEST}"  # noqa: S608 - no outside text
        connection.execute(statement)
        connection.execute(
            "INSERT OR REPLACE INTO idempotent_requests (owner, key, fingerprint, status, body) VALUES (?, ?, ?, ?, ?)",
            (claim.owner, claim.key, claim.fingerprint, answer.status, answer.body),
        )

    def release(self, claim: Claim) -> None:
        """End the work on a request; its key may be used again where no answer was kept."""
        with self._lock:
            del self._working[claim.owner, claim.key]


def _require_same(claim: Claim, fingerprint: bytes) -> None:
    if fingerprint != claim.fingerprint:
        raise KeyReusedError(
            f"the idempotency key {claim.key!r} was used for another request; choose a new one for this"
        )
