"""One process owns a data directory; the others find out who it is and how to reach it.

The operating system drops the lock of a process that dies, however it dies, so that what a killed process wrote about
itself is never believed.
"""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from rag.errors import DataDirBusyError, DataDirError

__all__ = ["OwnedDataDir", "Owner", "find_owner", "open_owned", "owner_token"]

LOCK_NAME = "owner.lock"
OWNER_NAME = "owner.json"
TOKEN_NAME = "owner.token"  # noqa: S105 - a file's name
TOKEN_BYTES = 32
PROBE_SECONDS = 1.0  # `find_owner` of another process holds the lock for a moment


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns a data directory.

    Attributes:
        pid: of the process; 0 where it has not said so yet.
        url: where it serves the HTTP API; None where it does not.
        started: when, in ISO 8601.
    """

    pid: int
    url: str | None
    started: str


class OwnedDataDir:
    """A data directory that this process owns.

    Attributes:
        path: the directory.
        token: proves to this process, which serves the directory, that a client may read it; a new one every time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self.announce(None)

    def announce(self, url: str | None) -> None:
        """Tell other processes where this one serves the HTTP API, such as `http://127.0.0.1:8000`.

        Raises:
            DataDirError: the directory cannot be written to.
        """
        owner = Owner(os.getpid(), url, self._started)
        partial = self.path / f"{OWNER_NAME}.part"
        try:
            if url is not None:
                _write_private(self.path / TOKEN_NAME, self.token)
            partial.write_text(json.dumps(asdict(owner)) + "\n", encoding="utf-8")
            partial.replace(self.path / OWNER_NAME)
        except OSError as error:
            raise DataDirError(
                f"the data directory {self.path} cannot be written to ({error.strerror or error})"
            ) from error

    def withdraw(self) -> None:
        """Tell other processes that this one serves nothing any more; a full disk does not keep it from that."""
        try:
            self.announce(None)
        except DataDirError:
            (self.path / OWNER_NAME).unlink(missing_ok=True)


@contextmanager
def open_owned(path: Path) -> Iterator[OwnedDataDir]:
    """Own a data directory, which is made if it is missing, until the block ends.

    Raises:
        DataDirBusyError: another process owns it; the message has its pid.
        DataDirError: it cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        held = FileLock(path / LOCK_NAME).acquire(timeout=PROBE_SECONDS, poll_interval=0.05)
    except Timeout:
        raise _busy(path, _read_owner(path)) from None
    except OSError as error:
        raise DataDirError(
            f"the data directory {path} cannot be used ({error.strerror or error}); "
            "choose another one with --data-dir or PREREAD_DATA_DIR"
        ) from error
    with held:
        try:
            yield OwnedDataDir(path)
        finally:
            (path / OWNER_NAME).unlink(missing_ok=True)
            (path / TOKEN_NAME).unlink(missing_ok=True)


def owner_token(path: Path) -> str:
    """Return the token of the process that serves a data directory; empty where this user may not read it."""
    try:
        return (path / TOKEN_NAME).read_text("ascii")
    except OSError:
        return ""


def _write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, in place of what is there."""
    path.unlink(missing_ok=True)  # its permissions, and who holds it open, are of no consequence
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)


def find_owner(path: Path) -> Owner | None:
    """Return the living process that owns a data directory, or None; changes nothing."""
    if not (path / LOCK_NAME).exists():
        return None
    try:
        with FileLock(path / LOCK_NAME).acquire(blocking=False):
            return None
    except Timeout:
        return _read_owner(path)
    except OSError:
        return None  # a directory that this user cannot write to is nobody's as far as they can tell


def _read_owner(path: Path) -> Owner:
    try:
        return Owner(**json.loads((path / OWNER_NAME).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return Owner(0, None, "")


def _busy(path: Path, owner: Owner) -> DataDirBusyError:
    who = f"process {owner.pid}" if owner.pid else "another process"
    served = f", which serves it at {owner.url}" if owner.url else ""
    return DataDirBusyError(
        f"the data directory {path} is in use by {who}{served}; wait until it has finished, stop it, or choose another "
        "directory with --data-dir"
    )
