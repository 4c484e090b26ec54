"""Requests that a client may send twice: the second one gets the answer of the first, and does nothing.

Who asks chooses a key for what he wants done once, and sends it with every attempt. It is remembered for a day, with a
hash of what was asked for, so that a key that is used for something else by mistake is noticed.
"""

from dataclasses import dataclass

from rag.errors import KeyInUseError, KeyReusedError
from retriever.document import digest
from retriever.store import Store

__all__ = ["KEPT_HOURS", "IdempotentRequests", "Remembered", "fingerprint_of"]

KEPT_HOURS = 24


@dataclass(frozen=True, slots=True)
class Remembered:
    """The answer to a request that was done before."""

    status: int
    body: str


def fingerprint_of(*parts: str | bytes) -> bytes:
    """Return a hash of what a request asks for."""
    return digest(*(part.encode() if isinstance(part, str) else part for part in parts))


class IdempotentRequests:
    """The keys of one library; every method may be called from any thread.

    Args:
        store: the library's database. What was begun when it was open last, and not finished, is forgotten.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        with store.write() as writer:
            writer.connection.execute("DELETE FROM idempotent_requests WHERE status IS NULL")

    def begin(self, owner: str, key: str, fingerprint: bytes) -> Remembered | None:
        """Take a key, or return the answer of the request that had it.

        Raises:
            KeyReusedError: that request asked for something else.
            KeyInUseError: it is still worked on.
        """
        with self._store.write() as writer:
            connection = writer.connection
            age = f"-{KEPT_HOURS} hours"
            connection.execute(
                """DELETE FROM idempotent_requests
                   WHERE status IS NOT NULL AND created_at < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ?)""",
                (age,),
            )
            statement = "SELECT fingerprint, status, body FROM idempotent_requests WHERE owner = ? AND key = ?"
            found = connection.execute(statement, (owner, key)).fetchone()
            if found is None:
                values = (owner, key, fingerprint)
                connection.execute("INSERT INTO idempotent_requests (owner, key, fingerprint) VALUES (?, ?, ?)", values)
                return None
        if found[0] != fingerprint:
            raise KeyReusedError(f"the idempotency key {key!r} was used for another request; choose a new one for this")
        if found[1] is None:
            raise KeyInUseError(
                f"the request with the idempotency key {key!r} is being worked on; ask again in a while"
            )
        return Remembered(found[1], found[2])

    def finish(self, owner: str, key: str, answer: Remembered) -> None:
        """Remember the answer to a request."""
        with self._store.write() as writer:
            writer.connection.execute(
                "UPDATE idempotent_requests SET status = ?, body = ? WHERE owner = ? AND key = ?",
                (answer.status, answer.body, owner, key),
            )

    def forget(self, owner: str, key: str) -> None:
        """Let a key be used again: its request has failed and changed nothing for good."""
        with self._store.write() as writer:
            statement = "DELETE FROM idempotent_requests WHERE owner = ? AND key = ? AND status IS NULL"
            writer.connection.execute(statement, (owner, key))
