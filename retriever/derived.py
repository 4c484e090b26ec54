"""Keys of data that others derive from passages and keep elsewhere: which live, and which have died.

A key dies in the commit that removes or changes its last passage; it then waits in a queue until whoever keeps the data
has removed it. What the data is, nobody here knows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from retriever.document import Document, Passage
from retriever.store import Store

__all__ = ["Claim", "DeadKey", "Deletion", "DerivedKeys"]


@dataclass(frozen=True, slots=True)
class Claim:
    """That a passage needs the data of a key; without passage, that the collection itself does."""

    key: bytes
    collection_id: int
    passage_id: int | None


@dataclass(frozen=True, slots=True)
class DeadKey:
    """A key that nothing needs any more; `erase` asks that its data is overwritten where it lies, not only freed."""

    key: bytes
    erase: bool


@dataclass(frozen=True, slots=True)
class Deletion:
    """What there was of a document when it was deleted.

    Attributes:
        collection_id: where it was.
        generation: of the collection without it.
        document: the document.
        passages: its passages, in order.
        keys: of derived data that nothing needs any more.
        twins: by passage id, a passage of another document that lives on with the same tokens: what was derived from
            one is the other's too.
    """

    collection_id: int
    generation: int
    document: Document
    passages: tuple[Passage, ...]
    keys: frozenset[bytes]
    twins: dict[int, Passage]


class DerivedKeys:
    """The keys of one library; every method may be called from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def claim(self, claims: Sequence[Claim]) -> set[bytes]:
        """Write down whose data these keys are, as far as passage and collection live; return the keys that do.

        A key that has died and is needed again leaves the queue.
        """
        with self._store.write() as writer:
            writer.claim_keys((claim.key, claim.collection_id, claim.passage_id) for claim in claims)
            return writer.live_keys([claim.key for claim in claims])

    def living(self, keys: Iterable[bytes]) -> set[bytes]:
        """Return those of the keys that live."""
        with self._store.read() as reader:
            return reader.live_keys(keys)

    def all(self) -> set[bytes]:
        """Return every key that lives."""
        with self._store.read() as reader:
            return reader.all_live_keys()

    def dead(self) -> list[DeadKey]:
        """Return the keys that wait for their data to be removed."""
        with self._store.read() as reader:
            return [DeadKey(key, erase) for key, erase in reader.dead_keys()]

    def forget(self, keys: Iterable[bytes]) -> None:
        """Take keys out of the queue: their data is gone."""
        with self._store.write() as writer:
            writer.forget_dead_keys(keys)
