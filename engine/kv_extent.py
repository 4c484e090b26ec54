"""One file of stored records. They are appended and erased; whatever is not a record is zero.

Read by position and not through a mapping: of a file that is cut short, or of a disk that fails, a read says so, while
a mapping would end the process. Knows no threads.
"""

import ctypes
import errno
import os
import sys
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from xxhash import xxh3_64

from engine.kv_record import ALIGNMENT, BadRecordError, RecordHeader

__all__ = ["Damage", "Extent", "StoredRecord"]

MIB = 1 << 20
KEEP_SIZE_AND_PUNCH_HOLE = 1 | 2  # linux/falloc.h


@dataclass(frozen=True, eq=False, slots=True)
class StoredRecord:
    """A record and where it lies."""

    extent: "Extent"
    offset: int
    header: RecordHeader

    def read(self, tokens: bytes, into: Sequence[memoryview]) -> None:
        """Fill buffers with the KV, one after the other, and verify what then is in them.

        Raises:
            BadRecordError: the file does not hold this KV of these tokens; the buffers' content is undefined.
            OSError: the file cannot be read.
        """
        if sum(view.nbytes for view in into) != self.header.payload_bytes:
            raise BadRecordError(f"it has {self.header.payload_bytes} bytes of KV, other than was asked for")
        head = memoryview(bytearray(self.header.payload_offset))
        self.extent.read(self.offset, head)
        if head != self.header.pack() + tokens:
            raise BadRecordError("its header or its tokens are not what they were")
        offset, checksum = self.offset + len(head), xxh3_64()
        for view in into:  # hashed piece by piece, while the piece is in the processor's cache
            self.extent.read(offset, view)
            checksum.update(view)
            offset += view.nbytes
        if checksum.intdigest() != self.header.checksum:
            raise BadRecordError("its KV does not have its checksum")


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of an extent that are neither a record nor zero."""

    extent: "Extent"
    start: int
    end: int
    reason: str


class Extent:
    """A file of records, opened for reading and writing; created if it is not there.

    Attributes:
        size: the end of the last record.
        live_bytes: bytes taken by its records.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        weakref.finalize(self, os.close, self._fd)  # not before the last reader of a removed extent has gone
        self.size = os.fstat(self._fd).st_size
        self.live_bytes = 0
        self._keeps_erased = False

    @property
    def nbytes(self) -> int:
        """Bytes of the disk that it takes; erased records take none where the file system makes holes of them."""
        return self.size if self._keeps_erased else self.live_bytes

    def scan(self) -> tuple[list[StoredRecord], list[Damage]]:
        """Walk from header to header; nothing is changed and no KV is read.

        Raises:
            OSError: the file cannot be read.
        """
        records: list[StoredRecord] = []
        damages: list[Damage] = []
        offset, size = 0, os.fstat(self._fd).st_size
        while (offset := self._next_data(offset, size)) < size:
            page = os.pread(self._fd, ALIGNMENT, offset)
            try:
                record = StoredRecord(self, offset, RecordHeader.parse(page))
                if offset + record.header.nbytes > size:
                    raise BadRecordError("the record is cut short")
                records.append(record)
                offset += record.header.extent_bytes
            except BadRecordError as error:
                if page.strip(b"\0"):
                    damages.append(Damage(self, offset, min(offset + ALIGNMENT, size), str(error)))
                offset += ALIGNMENT
        return records, list(_join(damages))

    def recover(self) -> tuple[list[StoredRecord], list[Damage]]:
        """Take stock after opening: erase what is no record, cut off what follows the last one.

        Raises:
            OSError: the file cannot be read or written.
        """
        records, damages = self.scan()
        self.live_bytes = sum(record.header.extent_bytes for record in records)
        for damage in damages:
            self.clear(damage.start, damage.end)
        self.size = records[-1].offset + records[-1].header.nbytes if records else 0
        os.ftruncate(self._fd, self.size)
        return records, damages

    def append(self, header: RecordHeader, tokens: bytes, payload: memoryview) -> StoredRecord:
        """Write a record behind the last one; durable after `sync`.

        Raises:
            OSError: the disk is full or fails; the extent is as it was.
        """
        offset = -(-self.size // ALIGNMENT) * ALIGNMENT
        try:
            self._write(offset, memoryview(header.pack() + tokens))
            self._write(offset + header.payload_offset, payload)
        except OSError:
            os.ftruncate(self._fd, self.size)
            raise
        self.size = offset + header.nbytes
        self.live_bytes += header.extent_bytes
        return StoredRecord(self, offset, header)

    def erase(self, record: StoredRecord) -> None:
        """Make a record's bytes zero and give their space back; durable after `sync`.

        Raises:
            OSError: the disk fails.
        """
        self.clear(record.offset, record.offset + record.header.extent_bytes)
        self.live_bytes -= record.header.extent_bytes

    def clear(self, start: int, end: int) -> None:
        """Make bytes zero, as a hole where the file system can; durable after `sync`.

        Raises:
            OSError: the disk fails.
        """
        if not _punch_hole(self._fd, start, end):
            self._keeps_erased = True
            self.overwrite(start, end)

    def overwrite(self, start: int, end: int) -> None:
        """Write zeros where the bytes lie, so that after `sync` the old ones are not on the disk either.

        Raises:
            OSError: the disk fails.
        """
        end = min(end, self.size)
        for offset in range(start, end, MIB):
            self._write(offset, memoryview(bytes(min(MIB, end - offset))))

    def read(self, offset: int, into: memoryview) -> None:
        """Fill a buffer from a position.

        Raises:
            BadRecordError: the file ends before.
            OSError: the disk fails.
        """
        filled = 0
        while filled < into.nbytes:
            count = os.preadv(self._fd, [into[filled:]], offset + filled)
            if count == 0:
                raise BadRecordError("its file is cut short")
            filled += count

    def prefetch(self, record: StoredRecord) -> None:
        """Ask the system to read a record ahead."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, record.offset, record.header.nbytes, os.POSIX_FADV_WILLNEED)

    def sync(self) -> None:
        """Return when everything is on the disk.

        Raises:
            OSError: the disk fails.
        """
        os.fsync(self._fd)

    def _next_data(self, offset: int, size: int) -> int:
        """The next aligned position that may hold data, `size` when there is none."""
        try:
            return max(offset, os.lseek(self._fd, offset, os.SEEK_DATA) // ALIGNMENT * ALIGNMENT)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return size

    def _write(self, offset: int, content: memoryview) -> None:
        written = 0
        while written < content.nbytes:
            written += os.pwrite(self._fd, content[written:], offset + written)


def _join(damages: Sequence[Damage]) -> Iterator[Damage]:
    """Make one of damages that touch; it has the reason of the first."""
    current: Damage | None = None
    for damage in damages:
        if current is not None and current.end == damage.start:
            current = Damage(current.extent, current.start, damage.end, current.reason)
        else:
            if current is not None:
                yield current
            current = damage
    if current is not None:
        yield current


def _punch_hole(fd: int, start: int, end: int) -> bool:
    """Turn bytes into a hole, which reads as zeros and takes no space; False where the system makes no holes."""
    if not sys.platform.startswith("linux"):
        return False
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return bool(fallocate(fd, KEEP_SIZE_AND_PUNCH_HOLE, start, end - start) == 0)
