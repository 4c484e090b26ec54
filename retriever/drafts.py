"""Passages on their way into the store: ids and labels from the content, headers for embedding, tokens."""

import json
from base64 import b32encode
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from retriever.changes import Writer
from retriever.document import ExtractedText, PassageDraft, PassageEncoder, digest
from retriever.errors import PassageEncoderError
from retriever.records import Collection
from retriever.splitter import Span

__all__ = ["Draft", "Pending", "drafts_of", "encode", "free_label", "header_of", "vector_id_of"]

MIN_LABEL = 4  # base32 characters; a label grows where a shorter one is taken


@dataclass(frozen=True, slots=True)
class Draft:
    """A passage that has no label, tokens or vectors yet."""

    id: int
    span: Span
    text: str
    heading_path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pending:
    """A document that is read and waits for its batch."""

    id: str
    uri: str
    title: str
    content_hash: bytes
    text: ExtractedText
    metadata: str


def encode(encoder: PassageEncoder, drafts: Sequence[PassageDraft]) -> list[list[int]]:
    """Return the token ids of each passage.

    Raises:
        PassageEncoderError: the encoder returned none for a passage.
    """
    tokens = encoder.encode(drafts) if drafts else []
    if len(tokens) != len(drafts) or not all(len(ids) for ids in tokens):
        encoded = sum(1 for ids in tokens if len(ids))
        raise PassageEncoderError(
            f"the passage encoder returned tokens for {encoded} of {len(drafts)} passages; it must return some for each"
        )
    return tokens


def header_of(title: str, draft: Draft) -> str:
    """Return what goes before a passage when it is embedded, so that its place in the document can be found."""
    return " > ".join((title, *draft.heading_path)) + "\n"


def drafts_of(collection: Collection, item: Pending, spans: Sequence[Span]) -> list[Draft]:
    """Return the passages of a document with ids from their content; equal ones are told apart by their order."""
    seen: Counter[tuple[tuple[str, ...], str]] = Counter()
    drafts = []
    for span in spans:
        text = item.text.text[span.start : span.end]
        path = span.heading_path[1:] if span.heading_path[:1] == (item.title,) else span.heading_path
        fields = (collection.name, item.id, item.title, json.dumps(path), text, str(seen[path, text]))
        seen[path, text] += 1
        hashed = digest(*(value.encode("utf-8", "replace") for value in fields))
        drafts.append(Draft(_int63(hashed), span, text, path))
    return drafts


def _int63(hashed: bytes) -> int:
    return int.from_bytes(hashed[:8], "little") >> 1


def vector_id_of(passage_id: int, window: int) -> int:
    """Return the id of a passage's vector of a window; the same passage has the same vectors."""
    return _int63(digest(passage_id.to_bytes(8, "little"), window.to_bytes(8, "little")))


def free_label(writer: Writer, collection: Collection, passage_id: int, taken: set[str]) -> str:
    """Return the shortest label from the passage's id that no other passage of the collection has."""
    letters = b32encode(digest(b"label", passage_id.to_bytes(8, "little"))).decode().lower().rstrip("=")
    candidates = accumulate(letters[MIN_LABEL:], initial=letters[:MIN_LABEL])
    return next(label for label in candidates if label not in taken and writer.label_is_free(collection, label))
