"""Passages on their way into the store: ids and labels from the content, headers for embedding, tokens."""

import json
from base64 import b32encode
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from retriever.changes import DocumentRow, PassageRow, Writer
from retriever.document import ExtractedText, PassageDraft, PassageEncoder, digest
from retriever.embedder import Vectors
from retriever.errors import PassageEncoderError
from retriever.records import Collection
from retriever.splitter import Span

__all__ = ["Draft", "Pending", "drafts_of", "header_of", "put_document"]

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


def put_document(
    writer: Writer,
    collection: Collection,
    item: Pending,
    drafts: Sequence[Draft],
    vectors: Mapping[int, Vectors],
    encoder: PassageEncoder,
) -> list[PassageRow]:
    """Store one document; passages that it had already keep their label and vectors.

    Args:
        writer: of the transaction.
        collection: where it goes.
        item: the document.
        drafts: its passages.
        vectors: of those that it does not have yet, by id [windows, dimension].
        encoder: gives passages their tokens.

    Raises:
        PassageEncoderError: the encoder breaks its contract.
    """
    row = DocumentRow(
        item.id, item.uri, item.title, item.content_hash, item.text.text, encoder.fingerprint, item.metadata
    )
    key = writer.put_document(collection, row)
    labels = writer.keep_passages(key, [draft.id for draft in drafts])
    kept = labels.keys()
    labels = {draft.id: labels.get(draft.id, "") for draft in drafts}
    taken: set[str] = set()
    for passage_id, label in labels.items():
        labels[passage_id] = label or _free_label(writer, collection, passage_id, taken)
        taken.add(labels[passage_id])
    tokens = _encode(encoder, [PassageDraft(labels[d.id], item.title, d.heading_path, d.text) for d in drafts])
    rows = []
    for draft, token_ids in zip(drafts, tokens, strict=True):
        windows = [] if draft.id in kept else list(vectors[draft.id])
        named = {_vector_id_of(draft.id, window): vector for window, vector in enumerate(windows)}
        span = draft.span
        place = (draft.text, span.start, span.end, span.page, draft.heading_path)
        rows.append(PassageRow(draft.id, labels[draft.id], *place, token_ids, named))
    writer.put_passages(collection, key, encoder.fingerprint, rows)
    return rows


def _encode(encoder: PassageEncoder, drafts: Sequence[PassageDraft]) -> list[list[int]]:
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


def _int63(hashed: bytes) -> int:
    return int.from_bytes(hashed[:8], "little") >> 1


def _vector_id_of(passage_id: int, window: int) -> int:
    """Return the id of a passage's vector of a window; the same passage has the same vectors."""
    return _int63(digest(passage_id.to_bytes(8, "little"), window.to_bytes(8, "little")))


def _free_label(writer: Writer, collection: Collection, passage_id: int, taken: set[str]) -> str:
    """Return the shortest label from the passage's id that no other passage of the collection has."""
    letters = b32encode(digest(b"label", passage_id.to_bytes(8, "little"))).decode().lower().rstrip("=")
    candidates = accumulate(letters[MIN_LABEL:], initial=letters[:MIN_LABEL])
    return next(label for label in candidates if label not in taken and writer.label_is_free(collection, label))
