"""Which records a store has, and what each is worth."""

from dataclasses import dataclass

from engine.kv_extent import StoredRecord

__all__ = ["RecordIndex"]


@dataclass(eq=False, slots=True)
class _Entry:
    record: StoredRecord
    uses: int
    value: float


class RecordIndex:
    """Records by key, valued by greedy dual size with frequency (Cherkasova, 1998).

    A record is worth its uses times the tokens that would have to be computed again, for each byte, above a clock that
    rises to the value of what was evicted last. So what is used stays, and nothing stays for ever.
    """

    def __init__(self) -> None:
        self._entries: dict[bytes, _Entry] = {}
        self._clock = 0.0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def keys(self) -> list[bytes]:
        """Return the keys there are now."""
        return list(self._entries)

    def get(self, key: bytes) -> StoredRecord | None:
        """Return the record of a key."""
        entry = self._entries.get(key)
        return None if entry is None else entry.record

    def records(self) -> list[StoredRecord]:
        """Return the records there are now."""
        return [entry.record for entry in self._entries.values()]

    def add(self, record: StoredRecord) -> StoredRecord | None:
        """Add a record, or move a key to where its record is now; return the one it had before."""
        known = self._entries.get(record.header.key)
        if known is None:
            self._entries[record.header.key] = _Entry(record, 1, self._value(record, 1))
            return None
        before, known.record = known.record, record
        return before

    def pop(self, key: bytes) -> StoredRecord | None:
        """Forget a key and return its record."""
        entry = self._entries.pop(key, None)
        return None if entry is None else entry.record

    def note_use(self, key: bytes) -> None:
        """Count one more use of a key, if it is still there."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.uses += 1
            entry.value = self._value(entry.record, entry.uses)

    def pop_least_valuable(self, nbytes: int) -> list[StoredRecord]:
        """Forget the records of the lowest value, the oldest first among equals, until they have so many bytes."""
        popped: list[StoredRecord] = []
        for entry in sorted(self._entries.values(), key=lambda entry: entry.value):
            if nbytes <= 0:
                break
            self._clock = entry.value
            nbytes -= entry.record.header.extent_bytes
            del self._entries[entry.record.header.key]
            popped.append(entry.record)
        return popped

    def _value(self, record: StoredRecord, uses: int) -> float:
        return self._clock + uses * record.header.num_tokens / record.header.extent_bytes
