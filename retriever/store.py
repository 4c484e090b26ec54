"""The SQLite database: connections, transactions and migrations.

What is in the tables, `records.py` (reads) and `changes.py` (writes) know.
Write-ahead logging lets any number of threads read a snapshot each while one writes. A transaction commits as a
whole or, after an exception or a crash, not at all.
"""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from time import monotonic

from retriever.changes import Writer
from retriever.errors import DamagedStoreError, DiskFullError, StoreError, StoreVersionError
from retriever.records import Reader

__all__ = ["Store", "migrate", "migrations"]

BUSY_SECONDS = 30.0
CHECKPOINT_SECONDS = 0.2  # writers wait for so long, again and again, while reads are under way
ZEROED_SINCE = 6  # version from which on deleted rows were overwritten
MAX_IDLE_READERS = 8


def migrations() -> list[str]:
    """Return the SQL of every migration; the first takes an empty database to version 1."""
    folder = files("retriever.migrations")
    found = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda entry: entry.name)
    numbers = [int(entry.name[:4]) for entry in found]
    assert numbers == list(range(1, len(found) + 1)), f"migrations are not numbered without gaps: {numbers}"
    return [entry.read_text("utf-8") for entry in found]


def migrate(connection: sqlite3.Connection, steps: Sequence[str]) -> int:
    """Bring a database to version `len(steps)`, one transaction a step, and return the version it had.

    Raises:
        StoreVersionError: the database is newer than the steps.
    """
    before: int | None = None
    while True:
        connection.execute("BEGIN IMMEDIATE")  # two processes may open a new library at once
        try:
            version: int = connection.execute("PRAGMA user_version").fetchone()[0]
            before = version if before is None else before
            if version > len(steps):
                raise StoreVersionError(
                    f"the library has version {version}, this program knows up to {len(steps)}; upgrade the program"
                )
            if version == len(steps):
                return before
            for statement in _statements(steps[version]):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {version + 1}")
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")


def _statements(script: str) -> Iterator[str]:
    """Yield the statements of a script; `executescript` would commit the transaction around it."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


class Store:
    """One database file, shared by threads.

    Args:
        path: the file; made when it is missing.

    Raises:
        StoreError: it cannot be opened or is no database.
        StoreVersionError: it was written by a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle: list[sqlite3.Connection] = []
        self._open: set[sqlite3.Connection] = set()
        self._pool_lock = threading.Lock()
        self._write_lock = threading.RLock()
        self._closed = False
        try:
            self._writer = self._connect()
            self._writer.execute("PRAGMA journal_mode = WAL")
            if 0 < migrate(self._writer, migrations()) < ZEROED_SINCE:
                self._writer.execute("VACUUM")
        except sqlite3.Error as error:
            raise _told(
                error, f"{path} cannot be opened ({error}); restore it from a backup, or choose another folder"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        with self._pool_lock:
            self._open.add(connection)
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten with zeros
        connection.execute("PRAGMA synchronous = FULL")  # a commit that was reported survives a power failure
        return connection

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """Read one snapshot: nothing that is committed meanwhile is seen.

        Raises:
            StoreError: the database is damaged, or the disk fails.
        """
        connection = self._take()
        try:
            connection.execute("BEGIN")
            yield Reader(connection)
        except sqlite3.DatabaseError as error:
            raise _told(error, f"{self.path} could not be read ({error})") from error
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._give_back(connection)

    @contextmanager
    def write(self) -> Iterator[Writer]:
        """Change the database in one transaction; one thread at a time.

        Raises:
            DiskFullError: the disk is full; nothing was changed.
            StoreError: the database is damaged; nothing was changed.
        """
        with self._write_lock:
            self._check_open()
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                yield Writer(self._writer)
                self._writer.execute("COMMIT")
            except sqlite3.Error as error:
                raise _told(error, f"{self.path} could not be written ({error}); nothing was changed") from error
            finally:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")

    def erase_deleted(self, patience: float = 60.0) -> None:
        """Return when nothing of what was deleted is left in the database's files.

        The database has zeros in its place; the write-ahead log, which may have older pages, is emptied.

        Args:
            patience: seconds to wait for reads that began before, which may need those pages.

        Raises:
            StoreError: they have not ended, or the disk fails.
        """
        deadline = monotonic() + patience
        connection = sqlite3.connect(self.path, timeout=CHECKPOINT_SECONDS, isolation_level=None)
        try:
            while connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                if monotonic() >= deadline:
                    raise StoreError(f"{self.path}-wal is still read, so that it cannot be emptied; try again later")
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}-wal could not be emptied ({error}); mend the disk") from error
        finally:
            connection.close()

    def _take(self) -> sqlite3.Connection:
        with self._pool_lock:
            self._check_open()
            if self._idle:
                return self._idle.pop()
        return self._connect()

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._pool_lock:
            if not self._closed and len(self._idle) < MAX_IDLE_READERS:
                self._idle.append(connection)
                return
            self._open.discard(connection)
        connection.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self.path} is closed; open the library again")

    def close(self) -> None:
        """Close the database once the running write has ended; reads that are under way finish."""
        with self._write_lock, self._pool_lock:
            self._closed = True
            closing = [*self._idle, self._writer]
            self._idle.clear()
            self._open.difference_update(closing)
        for connection in closing:
            connection.close()


def _told(error: sqlite3.Error, message: str) -> StoreError:
    """Return the error that says what is wrong and what to do about it."""
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_FULL:
        return DiskFullError(f"{message}: free some space on its disk and do it again")
    if code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return DamagedStoreError(
            f"{message}: restore it from a backup, or make a new one and ingest the documents again"
        )
    return StoreError(message)
