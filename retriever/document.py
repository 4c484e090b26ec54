"""Documents, passages and where they come from. Knows nothing of files' formats, vectors or SQL."""

import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import blake3

from retriever.errors import SourceError
from retriever.metadata import Metadata

__all__ = [
    "Block",
    "BlockKind",
    "BytesSource",
    "Document",
    "ExtractedText",
    "FileSource",
    "Hit",
    "Passage",
    "PassageDraft",
    "PassageEncoder",
    "RawDocument",
    "Source",
    "TextSource",
    "digest",
    "document_id",
]


class BlockKind(StrEnum):
    """What a block of extracted text is; it decides where a passage may be cut."""

    HEADING = "heading"
    PARAGRAPH = "paragraph"
    CODE = "code"


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch of extracted text: characters `start` to `end`, below the headings of `heading_path`."""

    start: int
    end: int
    kind: BlockKind
    heading_path: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExtractedText:
    """The text of a document, with its structure.

    Attributes:
        text: what offsets refer to, in Unicode code points; it is stored, so `text[start:end]` is a passage's text.
        blocks: ascending and disjoint; text between blocks is white space or left out on purpose.
        title: from the document itself, or None.
        pages: offset at which each page starts, for formats that have pages.
    """

    text: str
    blocks: tuple[Block, ...]
    title: str | None = None
    pages: tuple[int, ...] = ()

    def page_at(self, offset: int) -> int | None:
        """Return the page, counted from 1, that holds the character at `offset`."""
        return bisect_right(self.pages, offset) if self.pages else None


@dataclass(frozen=True, slots=True)
class RawDocument:
    """Bytes of a document before extraction, and what is known about them.

    Without `metadata`, a document that is stored already keeps what it has.
    """

    uri: str
    data: bytes
    name: str
    title: str | None = None
    media_type: str | None = None
    metadata: Metadata | None = None

    @property
    def content_hash(self) -> bytes:
        """Return the hash of everything that extraction depends on."""
        return digest(self.data, self.name.encode(), (self.title or "").encode(), (self.media_type or "").encode())


class Source(Protocol):
    """Something that can be ingested; reading is put off until it is its turn."""

    @property
    def uri(self) -> str:
        """Return the address that identifies the document in its collection."""

    def read(self, max_bytes: int) -> RawDocument:
        """Return the bytes.

        Raises:
            SourceError: it cannot be read or is larger than `max_bytes`.
        """


def _check_size(uri: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise SourceError(
            f"{uri} has {size} bytes, above max_document_bytes ({max_bytes}); split it or raise the limit"
        )


def _as_text(path: Path) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file; its uri is the absolute path unless another `address` is given.

    Bytes of a path that are not UTF-8 are escaped in uri and name: neither SQLite nor JSON could hold them.
    """

    path: Path
    address: str | None = None
    title: str | None = None
    media_type: str | None = None
    metadata: Metadata | None = None

    @property
    def uri(self) -> str:
        """Return the given address, or the absolute path."""
        return self.address or _as_text(Path(self.path).resolve())

    def read(self, max_bytes: int) -> RawDocument:
        """Return the file's bytes.

        Raises:
            SourceError: the file is missing, not readable, not a regular file or too large.
        """
        path = Path(self.path)
        try:
            if not path.is_file():
                found = "not a regular file" if path.exists() else "missing"
                raise SourceError(f"{_as_text(path)} is {found}; check the path")
            _check_size(_as_text(path), path.stat().st_size, max_bytes)
            data = path.read_bytes()
        except OSError as error:
            raise SourceError(f"{_as_text(path)} cannot be read: {error.strerror or error}") from error
        return RawDocument(self.uri, data, _as_text(Path(path.name)), self.title, self.media_type, self.metadata)


@dataclass(frozen=True, slots=True)
class TextSource:
    """Text that is already in memory: a record, a page of a wiki, a topic.

    It is read as its `media_type`; without one, as the ending of its uri or its beginning says, or as plain text.
    """

    uri: str
    text: str
    title: str | None = None
    media_type: str | None = None
    metadata: Metadata | None = None

    def read(self, max_bytes: int) -> RawDocument:
        """Return the text as UTF-8.

        Raises:
            SourceError: it is larger than `max_bytes`.
        """
        data = self.text.encode("utf-8", "replace")
        _check_size(self.uri, len(data), max_bytes)
        return RawDocument(self.uri, data, self.uri.rsplit("/", 1)[-1], self.title, self.media_type, self.metadata)


@dataclass(frozen=True, slots=True)
class BytesSource:
    """A file that was uploaded; `name` tells its format, and is its uri unless another `address` is given."""

    name: str
    data: bytes
    address: str | None = None
    title: str | None = None
    media_type: str | None = None
    metadata: Metadata | None = None

    @property
    def uri(self) -> str:
        """Return the given address, or the name."""
        return self.address or self.name

    def read(self, max_bytes: int) -> RawDocument:
        """Return the bytes.

        Raises:
            SourceError: there are more than `max_bytes`.
        """
        _check_size(self.uri, len(self.data), max_bytes)
        return RawDocument(
            self.uri, self.data, self.name.rsplit("/", 1)[-1], self.title, self.media_type, self.metadata
        )


@dataclass(frozen=True, slots=True)
class Document:
    """A document as it is stored; its version is `content_hash`, and `encoder_fingerprint` is what it was split for."""

    id: str
    uri: str
    title: str
    content_hash: str
    num_passages: int
    num_characters: int
    num_tokens: int
    encoder_fingerprint: str
    ingested_at: str
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class PassageDraft:
    """What a passage's tokens are made of; nothing in it depends on a question or on other passages."""

    label: str
    title: str
    heading_path: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage as it is stored: `text` is characters `start` to `end` of its document's extracted text."""

    id: int
    document_id: str
    label: str
    text: str
    token_ids: tuple[int, ...]
    encoder_fingerprint: str
    start: int
    end: int
    page: int | None
    heading_path: tuple[str, ...]
    title: str
    uri: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found, and its score: the best inner product over its vectors."""

    passage: Passage
    score: float


class PassageEncoder(Protocol):
    """Turns passages into the language model's tokens; given by the caller, who knows the model."""

    @property
    def fingerprint(self) -> str:
        """Return what tokens depend on: tokenizer and passage layout."""

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text."""

    def encode(self, passages: Sequence[PassageDraft]) -> list[list[int]]:
        """Return the token ids of each passage."""


def digest(*fields: bytes) -> bytes:
    """Return the 32-byte BLAKE3 hash of length-prefixed fields, so that no two lists of fields collide."""
    hasher = blake3.blake3()
    for item in fields:
        hasher.update(len(item).to_bytes(8, "little"))
        hasher.update(item)
    return hasher.digest()


def document_id(uri: str) -> str:
    """Return the stable id of the document at `uri`: 16 hexadecimal digits."""
    return digest(uri.encode("utf-8", "replace")).hex()[:16]
