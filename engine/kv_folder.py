"""The extents of a folder: records go to the youngest, are erased in any, and an empty one is removed.

Knows no threads and not which records are wanted.
"""

import logging
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from engine.kv_extent import Damage, Extent, StoredRecord
from engine.kv_record import HEADER_BYTES, OTHER_VERSION, BadRecordError, RecordHeader

__all__ = ["ExtentFolder"]

logger = logging.getLogger(__name__)

_NAME = re.compile(r"extent-(\d{8})\.kv")


class ExtentFolder:
    """Extents by age, the youngest last.

    Args:
        folder: created if it is not there; files in it that are no extents are left alone.
        extent_bytes: size at which an extent is closed and the next one begun.

    Attributes:
        damages: stretches that were no records and have been erased when the folder was opened.
        unreadable: extents that could not be opened.

    Raises:
        OSError: the folder cannot be made or listed.
    """

    def __init__(self, folder: Path, extent_bytes: int) -> None:
        self._folder = folder
        self._extent_bytes = extent_bytes
        self._extents: list[Extent] = []
        self._next_number = 1
        self.damages: list[Damage] = []
        self.unreadable: list[Path] = []
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def nbytes(self) -> int:
        """Bytes of the disk that the extents take."""
        return sum(extent.nbytes for extent in self._extents)

    @property
    def size(self) -> int:
        """Bytes of the extents, erased ones included."""
        return sum(extent.size for extent in self._extents)

    def open(self) -> list[StoredRecord]:
        """Open every extent and return the records, the oldest first."""
        records: list[StoredRecord] = []
        num_foreign = 0
        for path in sorted(self._folder.iterdir()):
            name = _NAME.fullmatch(path.name)
            if name is None:
                logger.warning("%s is no extent of the KV store and is left alone", path)
                continue
            self._next_number = int(name[1]) + 1
            try:
                found, is_foreign = self._open_extent(path)
            except OSError as error:
                logger.warning("%s cannot be used (%s); its KV is computed again", path, error)
                self.unreadable.append(path)
            else:
                records += found
                num_foreign += is_foreign
        if num_foreign:
            logger.warning(
                "%d extents in %s are of another version of the program: their KV is removed and computed again",
                num_foreign, self._folder,
            )  # fmt: skip
        return records

    def _open_extent(self, path: Path) -> tuple[list[StoredRecord], bool]:
        """Open an extent and return its records; and whether it is all of another version, of which one line tells."""
        extent = Extent(path)
        records, damages = extent.recover()
        is_foreign = not records and any(damage.reason == OTHER_VERSION for damage in damages)
        for damage in [] if is_foreign else damages:
            logger.warning("%s: bytes %d to %d are removed: %s", path, damage.start, damage.end, damage.reason)
        self.damages += damages
        self._extents.append(extent)
        self._remove_if_empty(extent)
        return records, is_foreign

    def append(self, header: RecordHeader, tokens: bytes, payload: memoryview) -> StoredRecord:
        """Write a record; durable after `sync`.

        Raises:
            OSError: the disk is full or fails; nothing is changed then.
        """
        if not self._extents or self._extents[-1].size >= self._extent_bytes:
            self._extents.append(Extent(self._folder / f"extent-{self._next_number:08}.kv"))
            self._next_number += 1
        return self._extents[-1].append(header, tokens, payload)

    def overwrite(self, records: Sequence[StoredRecord]) -> None:
        """Write zeros over records on the disk; they still have to be erased.

        Raises:
            OSError: the disk fails.
        """
        for record in records:
            record.extent.overwrite(record.offset, record.offset + record.header.extent_bytes)
        for extent in {record.extent for record in records}:
            extent.sync()

    def erase(self, record: StoredRecord) -> None:
        """Erase a record; durable after `sync`.

        Raises:
            OSError: the disk fails; the record still counts as one.
        """
        record.extent.erase(record)
        self._remove_if_empty(record.extent)

    def discard(self, records: Sequence[StoredRecord]) -> None:
        """Overwrite and erase records that nobody looks up; one that cannot be erased is logged, and does no harm.

        Whoever purges a key later could not find these copies of it any more.
        """
        for extent in {record.extent for record in records}:
            try:
                self.overwrite([record for record in records if record.extent is extent])
            except OSError as error:
                logger.warning("KV in %s cannot be overwritten: %s", extent.path, error)
        for record in records:
            try:
                self.erase(record)
            except OSError as error:
                logger.warning("KV in %s cannot be erased: %s", record.extent.path, error)

    def copy(self, records: Sequence[StoredRecord]) -> list[StoredRecord]:
        """Write records once more, into the youngest extent, durably; none of them when that fails."""
        copies: list[StoredRecord] = []
        try:
            copies.extend(map(self._copy, records))  # those before a failure are in it, too
            self.sync({copy.extent for copy in copies})
        except (BadRecordError, OSError) as error:
            logger.warning("KV in %s cannot be moved: %s", self._folder, error)
            self.discard(copies)
            return []
        return copies

    def sparse(self) -> list[Extent]:
        """Return the extents of which less than half is records, without the one that is written to."""
        return [extent for extent in self._extents[:-1] if extent.live_bytes < extent.size // 2]

    def find(self, keys: Collection[bytes]) -> tuple[list[StoredRecord], list[Damage]]:
        """Walk through every extent for records of these keys, and for bytes that are of no record.

        Raises:
            OSError: an extent cannot be read.
        """
        found = [extent.scan() for extent in self._extents]
        records = [record for records, _ in found for record in records if record.header.key in keys]
        return records, [damage for _, damages in found for damage in damages]

    def erase_strays(self, keys: Collection[bytes]) -> None:
        """Erase all that `find` finds, with zeros written to the disk; durable after `sync`.

        Raises:
            OSError: the disk fails.
        """
        records, damages = self.find(keys)
        self.overwrite(records)
        for record in records:
            self.erase(record)
        for damage in damages:
            damage.extent.overwrite(damage.start, damage.end)

    def sync(self, extents: Collection[Extent] | None = None) -> None:
        """Return when these extents (all by default) and the list of files are on the disk.

        Raises:
            OSError: the disk fails.
        """
        for extent in self._extents if extents is None else extents:
            extent.sync()
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _copy(self, record: StoredRecord) -> StoredRecord:
        content = memoryview(bytearray(record.header.nbytes))
        record.extent.read(record.offset, content)
        head = record.header.payload_offset
        return self.append(record.header, bytes(content[HEADER_BYTES:head]), content[head:])

    def _remove_if_empty(self, extent: Extent) -> None:
        if not extent.live_bytes:
            self._extents.remove(extent)
            try:
                extent.path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("%s is empty and cannot be removed: %s", extent.path, error)
