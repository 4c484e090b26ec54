"""The process that reads documents nobody vouches for; started by `sandbox`, which says why.

It has no secrets of its parent in its environment, writes no files, starts no processes, and dies with what it reads
rather than with the server. It speaks JSON, since its parent must not believe what it says.
"""

import json
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from importlib import import_module
from math import ceil
from pathlib import Path
from typing import Any

from retriever.document import ExtractedText, RawDocument
from retriever.errors import ExtractError
from retriever.extract.extract import EXTRACTORS, extract
from retriever.extract.frames import Channel, ChannelError

__all__ = ["main"]

READERS = ("docx", "lxml.etree", "pypdf", "selectolax.lexbor", "encodings.idna")
MAX_MESSAGE_BYTES = 2**40  # the parent is trusted
MAX_BLOCKS = 500_000
OPEN_FILES = 32


def main(descriptor: int, limits: Mapping[str, Any]) -> None:
    """Read one document after the other, until the parent has gone.

    Args:
        descriptor: of the socket that leads to the parent.
        limits: `memory_bytes` on top of what the process has at its start, `seconds` of computing for one document,
            `text_bytes` of its text.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the socket
    channel = Channel(socket.socket(fileno=descriptor))
    for name in (*READERS, *(f"retriever.extract.{reader}" for reader in set(EXTRACTORS.values()))):
        import_module(name)
    _confine(limits["memory_bytes"])
    channel.send(b"ready")
    try:
        while True:
            header = json.loads(channel.receive(MAX_MESSAGE_BYTES))
            data = channel.receive(MAX_MESSAGE_BYTES)
            _allow_seconds(limits["seconds"])
            for message in _answer(RawDocument(data=data, **header), limits["text_bytes"]):
                channel.send(message)
    except ChannelError:
        return


def _answer(raw: RawDocument, text_bytes: int) -> tuple[bytes, bytes]:
    """Return structure and text of a document; without text, the reason why there is none."""
    try:
        found = extract(raw)
        text = found.text.encode("utf-8", "replace")
        if len(text) > text_bytes:
            raise ExtractError(f"{raw.uri} holds {len(text)} bytes of text, above {text_bytes}; split it")
        if len(found.blocks) > MAX_BLOCKS:
            raise ExtractError(f"{raw.uri} falls into {len(found.blocks)} paragraphs, above {MAX_BLOCKS}; split it")
        return json.dumps(_structure(found), ensure_ascii=False).encode("utf-8", "replace"), text
    except ExtractError as error:
        return json.dumps({"error": str(error)}).encode(), b""
    except MemoryError:
        return b'{"memory": true}', b""


def _structure(found: ExtractedText) -> dict[str, Any]:
    paths: dict[tuple[str, ...], int] = {}
    blocks = [
        (block.start, block.end, block.kind.value, paths.setdefault(block.heading_path, len(paths)))
        for block in found.blocks
    ]
    return {"title": found.title, "pages": found.pages, "paths": list(paths), "blocks": blocks}


def _confine(memory_bytes: int) -> None:
    """Take from this process what reading a document does not need."""
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_NPROC: 0,
    }
    if sys.platform == "linux":  # elsewhere it cannot be told how much there is already
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        limits[resource.RLIMIT_AS] = pages * resource.getpagesize() + memory_bytes
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (limit, limit))


def _allow_seconds(seconds: float) -> None:
    """End this process when it computes for longer from now on, even if its parent has gone."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft, hard = ceil(used.ru_utime + used.ru_stime + seconds), resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
