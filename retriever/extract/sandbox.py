"""Extraction in a process of its own, with limits of time and memory: a hostile file ends that process, not this one.

A few kilobytes can unpack to gigabytes, or keep a parser busy for hours with Python's lock in its hands. So documents
are read in a child process, one after the other, that is started for the first one and again after a death or once it
has kept much memory. A document is blamed only for what it does in a process that has read no other. What is kept as it
is (plain text, source code, reStructuredText) and small, and Markdown of a few pages, is read in this process: one pass
over so little costs less than sending it.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from retriever.document import Block, BlockKind, ExtractedText, RawDocument
from retriever.errors import ExtractError
from retriever.extract.extract import CODE, MARKDOWN, PLAIN, RST, extract, media_type_of
from retriever.extract.frames import Channel, ChannelError

__all__ = ["ExtractLimits", "Extractor", "is_light"]

LIGHT_BYTES = {PLAIN: 2**18, RST: 2**18, CODE: 2**18, MARKDOWN: 2**14}  # read here up to this size
CONTAINERS = (b"PK\x03\x04", b"%PDF-")
MAX_STRUCTURE_BYTES = 2**26
START_SECONDS = 120.0  # of a busy machine
END_SECONDS = 0.5
KEPT_FRACTION = 0.25  # of the memory for one document, that a process may keep of those before
KEPT_VARIABLES = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TMPDIR")
START = """
import sys
sys.path[:] = {path!r}
from retriever.extract.sandbox_child import main
main({descriptor}, {limits!r})
"""


@dataclass(frozen=True, slots=True)
class ExtractLimits:
    """What reading one document may take.

    Attributes:
        seconds: on the wall, and of computing.
        memory_bytes: on top of what the process has at its start.
        text_bytes: of the document's text, in UTF-8.
    """

    seconds: float = 60.0
    memory_bytes: int = 2**30
    text_bytes: int = 64 * 2**20


def is_light(raw: RawDocument) -> bool:
    """Return whether a document is read in this process.

    Raises:
        ExtractError: it is a format that no extractor reads.
    """
    if raw.data[:1024].lstrip().startswith(CONTAINERS):
        return False
    return len(raw.data) <= LIGHT_BYTES.get(media_type_of(raw), 0)


class Extractor:
    """Reads documents; any number of threads take turns.

    Args:
        limits: of each document.
    """

    def __init__(self, limits: ExtractLimits) -> None:
        self._limits = limits
        self._lock = Lock()
        self._child: _Child | None = None

    def extract(self, raw: RawDocument) -> ExtractedText:
        """Return the text and structure of a document; its title is always set.

        Raises:
            ExtractError: it is empty, binary, encrypted or broken, or reading it takes more than it may.
        """
        if os.name != "posix" or is_light(raw):  # elsewhere no process can be given a socket
            return extract(raw)
        with self._lock:
            is_fresh = self._child is None
            try:
                found = self._read(raw)
            except _LostError:
                if is_fresh:
                    raise
                found = self._read(raw)
        if isinstance(found, ExtractError):
            raise found
        return found

    def _read(self, raw: RawDocument) -> "ExtractedText | ExtractError":
        child, self._child = self._child or _Child(self._limits), None
        try:
            found = child.extract(raw)
        except BaseException:
            child.end()
            raise
        if child.kept_bytes() <= KEPT_FRACTION * self._limits.memory_bytes:
            self._child = child
        else:
            child.end()
        return found

    def close(self) -> None:
        """End the process."""
        with self._lock:
            if self._child is not None:
                self._child.end()
                self._child = None


class _LostError(ExtractError):
    """Report that a process ended or had too little memory, for which documents before may be to blame."""


class _Child:
    """A running process; it is of no use any more after an error that it did not tell of itself.

    Raises:
        ExtractError: it cannot be started.
    """

    def __init__(self, limits: ExtractLimits) -> None:
        self._limits = limits
        try:
            self._process, self._channel = _start(limits)
        except OSError as error:
            raise ExtractError(
                f"the process that reads documents cannot be started ({error.strerror or error}); let it have more "
                "memory, processes or open files (`ulimit`), and ingest again"
            ) from error
        self.end = weakref.finalize(self, _end, self._process, self._channel)
        self._channel.allow(START_SECONDS)
        try:
            self._channel.receive(MAX_STRUCTURE_BYTES)
        except (TimeoutError, ChannelError) as error:
            self.end()
            raise ExtractError(
                f"the process that reads documents did not start (exit code {self._process.returncode}); "
                "install the package again"
            ) from error
        self._bytes_at_start = self._bytes()

    def extract(self, raw: RawDocument) -> "ExtractedText | ExtractError":
        """Read a document; an error that is returned is the document's, one that is raised has ended the process.

        Raises:
            ExtractError: reading it took too much.
        """
        limits = self._limits
        header = {"uri": raw.uri, "name": raw.name, "title": raw.title, "media_type": raw.media_type}
        self._channel.allow(limits.seconds)
        try:
            self._channel.send(json.dumps(header).encode())
            self._channel.send(raw.data)
            structure, text = self._channel.receive(MAX_STRUCTURE_BYTES), self._channel.receive(limits.text_bytes)
        except TimeoutError as error:
            raise ExtractError(f"{raw.uri} took more than {limits.seconds:g} s to read; split or convert it") from error
        except ChannelError as error:
            self.end()
            raise self._death(raw) from error
        try:
            return _understood(json.loads(structure), text)
        except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise ExtractError(
                f"{raw.uri} was read to nonsense ({error}); it is made to do harm, convert it"
            ) from error
        except MemoryError:
            mebibytes = limits.memory_bytes // 2**20
            message = f"{raw.uri} took more than {mebibytes} MiB of memory to read; split or convert it"
            raise _LostError(message) from None

    def kept_bytes(self) -> int:
        """Return how much address space the process has beyond that of its start; 0 where it cannot be told."""
        return max(0, self._bytes() - self._bytes_at_start)

    def _bytes(self) -> int:
        try:
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text("ascii").split()[0])
        except (OSError, ValueError, IndexError):  # no Linux, or it has just ended
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def _death(self, raw: RawDocument) -> ExtractError:
        code = self._process.returncode
        if code == -signal.SIGXCPU:
            return ExtractError(f"{raw.uri}: reading it took more than {self._limits.seconds:g} s; split or convert it")
        ended = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
        return _LostError(
            f"{raw.uri}: the process that read it ended ({ended}); it is broken or made to do harm, convert it"
        )


def _start(limits: ExtractLimits) -> "tuple[subprocess.Popen[bytes], Channel]":
    """Start a process, and return it with the channel to it.

    Raises:
        OSError: the system has no room for it.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.set_inheritable(True)
        path = [*(entry for entry in sys.path if entry), str(Path(__file__).parents[2])]
        code = START.format(path=path, descriptor=theirs.fileno(), limits=asdict(limits))
        try:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter with our own code
                [sys.executable, "-I", "-W", "ignore", "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ},
            )
        except BaseException:
            ours.close()
            raise
    return process, Channel(ours)


def _understood(structure: dict[str, Any], data: bytes) -> "ExtractedText | ExtractError":
    """Make extracted text, or the error of a document, of what the process says; nonsense raises what it may.

    Raises:
        MemoryError: the process had not enough.
    """
    if structure.get("memory"):
        raise MemoryError
    if "error" in structure:
        return ExtractError(str(structure["error"]))
    text = data.decode("utf-8")
    paths = [tuple(map(str, path)) for path in structure["paths"]]
    blocks, position = [], 0
    for start, end, kind, path in structure["blocks"]:
        if not position <= start < end <= len(text):
            raise ValueError(f"a block from {start} to {end}")
        blocks.append(Block(int(start), int(end), BlockKind(kind), paths[path]))
        position = end
    return ExtractedText(text, tuple(blocks), str(structure["title"]), tuple(map(int, structure["pages"])))


def _end(process: "subprocess.Popen[bytes]", channel: Channel) -> None:
    """End a process: one that waits goes when the channel closes, one that is busy is killed."""
    channel.close()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
