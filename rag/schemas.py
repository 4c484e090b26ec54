"""What goes over HTTP and out of `--json`: requests, answers, and the events of a streamed answer.

`Answer` is a stable format. Offsets count Unicode code points. Passage ids have 64 bits and are strings in JSON, so
that clients whose numbers are doubles keep every digit. Unknown fields of a request are refused.
"""

import base64
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    EncodedBytes,
    EncoderProtocol,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
)
from pydantic import model_validator as check_model

__all__ = [
    "Answer",
    "AnswerEvent",
    "AnswerRequest",
    "Cache",
    "Citation",
    "CitationEvent",
    "CollectionInfo",
    "CollectionList",
    "DeletedDocument",
    "DeltaEvent",
    "DocumentInfo",
    "DocumentInput",
    "DocumentList",
    "DocumentWithPassages",
    "DoneEvent",
    "HitTokens",
    "IngestReport",
    "IngestRequest",
    "KVStoreInfo",
    "KeptPassage",
    "PassageCache",
    "PassageId",
    "PassageInfo",
    "PrecomputePlan",
    "PrecomputeProgress",
    "Purge",
    "RetrievalEvent",
    "SearchRequest",
    "SearchResult",
    "SearchTimings",
    "SkippedDocument",
    "Source",
    "Timings",
    "Usage",
]

PassageId = Annotated[
    int,
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^-?\d+$", "description": "64-bit integer"}),
]


class _StrictBase64(EncoderProtocol):
    """Base64 that refuses what is not of its alphabet, where pydantic's own drops it."""

    @classmethod
    def decode(cls, data: bytes) -> bytes:
        try:
            return base64.b64decode(data, validate=True)
        except ValueError as error:
            raise ValueError(f"this is not base64: {error}") from error

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return base64.b64encode(value)

    @classmethod
    def get_json_format(cls) -> Literal["base64"]:
        return "base64"


Base64 = Annotated[bytes, EncodedBytes(encoder=_StrictBase64)]
Question = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
CollectionName = Annotated[str, StringConstraints(min_length=1, max_length=200)]

MAX_PASSAGES = 100


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SearchRequest(_Request):
    """A search for passages; `k` defaults to the server's setting."""

    query: Question
    collection: CollectionName = "default"
    k: int | None = Field(default=None, ge=1, le=MAX_PASSAGES)


class AnswerRequest(_Request):
    """A question; what is left out defaults to the server's settings.

    Attributes:
        question: what to answer.
        collection: where to look.
        k: passages to retrieve.
        max_tokens: length of the generated answer at most.
        temperature: 0 is greedy.
        top_k: sample among the k most likely tokens; 0 is all.
        top_p: sample among the fewest tokens whose probability reaches this sum.
        seed: makes sampling repeatable.
        extractive: quote the best sentence when the model's answer cites nothing.
        reuse: which cached KV of passages may serve: `exact`, `chunk` (in any order; refused without a certificate) or
            `auto`.
        order: of the passages in the prompt: `score`, or `cache` for what hits the cache best.
        stream: server-sent events instead of one JSON answer.
    """

    question: Question
    collection: CollectionName = "default"
    k: int | None = Field(default=None, ge=1, le=MAX_PASSAGES)
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    temperature: float = Field(default=0.0, ge=0, le=100)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    extractive: bool | None = None
    reuse: Literal["auto", "exact", "chunk"] | None = None
    order: Literal["score", "cache"] | None = None
    stream: bool = False


class Citation(_Result):
    """A marker in the answer: `answer[start:end] == marker`, and it stands for source number `source`."""

    marker: str
    source: int
    start: int
    end: int


class Source(_Result):
    """A passage that was found; `start` and `end` are its characters in the document's text.

    `n` is its rank, counted from 1; `page` counts from 1 and is null where a format has no pages.
    """

    n: int
    label: str
    document_id: str
    title: str
    uri: str
    passage_id: PassageId
    page: int | None
    start: int
    end: int
    score: float
    text: str


class Usage(_Result):
    """Tokens; `cached_tokens` are those prompt tokens whose KV was not computed for this answer."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class PassageCache(_Result):
    """How one passage got its KV: `path`, `canonical`, `shifted` or `computed`, and from which tier."""

    passage_id: PassageId
    tokens: int
    outcome: Literal["path", "canonical", "shifted", "computed"]
    tier: Literal["device", "disk"] | None


class HitTokens(_Result):
    """Prompt tokens whose KV was not computed, by the tier that it came from."""

    device: int
    disk: int


class Cache(_Result):
    """The use of the cache: passages in prompt order, and hit tokens of the whole prompt."""

    passages: list[PassageCache]
    hit_tokens: HitTokens


class Timings(_Result):
    """Milliseconds: `ttft` and `total` count from the question's arrival; loading models is in none of them."""

    embed: float
    search: float
    queue: float
    prefill: float
    ttft: float
    total: float


class Answer(_Result):
    """An answer with its evidence. The format is stable."""

    answer: str
    citations: list[Citation]
    sources: list[Source]
    usage: Usage
    cache: Cache
    timings_ms: Timings
    model: str
    finish_reason: Literal["stop", "length", "cancelled"]


class RetrievalEvent(_Result):
    """First event of an answer: what was found. `warnings` tell what could not be used, and why."""

    type: Literal["retrieval"] = "retrieval"
    sources: list[Source]
    warnings: list[str] = []


class DeltaEvent(_Result):
    """More text of the answer; the texts joined are `Answer.answer`."""

    type: Literal["delta"] = "delta"
    text: str


class CitationEvent(_Result):
    """A citation whose marker was in the text so far."""

    type: Literal["citation"] = "citation"
    citation: Citation


class DoneEvent(_Result):
    """Last event of an answer."""

    type: Literal["done"] = "done"
    answer: Answer


AnswerEvent = Annotated[RetrievalEvent | DeltaEvent | CitationEvent | DoneEvent, Field(discriminator="type")]


class SearchTimings(_Result):
    """Milliseconds of a search."""

    embed: float
    search: float
    total: float


class SearchResult(_Result):
    """Passages by falling score."""

    query: str
    collection: str
    results: list[Source]
    timings_ms: SearchTimings


class CollectionInfo(_Result):
    """A collection; the embedder is null until something was ingested."""

    name: str
    id: int
    documents: int
    passages: int
    embedder: str | None
    passage_tokens: int
    overlap_tokens: int
    index_factory: str
    created_at: str


class DocumentInfo(_Result):
    """A document as it is stored."""

    id: str
    uri: str
    title: str
    content_hash: str
    passages: int
    characters: int
    tokens: int
    ingested_at: str


class PassageInfo(_Result):
    """A passage of a document, in reading order."""

    passage_id: PassageId
    label: str
    page: int | None
    start: int
    end: int
    heading_path: list[str]
    tokens: int
    text: str


class DocumentWithPassages(DocumentInfo):
    """A document and what it was cut into."""

    passage_list: list[PassageInfo]


class KeptPassage(_Result):
    """A passage whose KV was not removed, since another passage, which lives, has the same tokens."""

    passage_id: PassageId
    same_as: PassageId
    same_as_uri: str


class Purge(_Result):
    """What was removed from the cache and the KV store so that nothing of it is left.

    Attributes:
        passages: passages whose KV was removed from the memory of the engine, where it was.
        records: records removed from the KV store.
        scanned_bytes: bytes of the store that were then searched for each key, without finding one.
        kept: passages that share their KV with one that lives.
    """

    passages: int
    records: int
    scanned_bytes: int
    kept: list[KeptPassage]


class DeletedDocument(DocumentInfo):
    """A document that was deleted; `purge` is there where that was asked for."""

    purge: Purge | None = None


class PrecomputePlan(_Result):
    """What it takes to store the KV of a collection's passages.

    Attributes:
        collection: its name.
        passages: passages in it.
        stored: those whose KV is stored already.
        to_compute: those that would be computed now, best ones first: as many as there is room for.
        tokens: their tokens.
        bytes_needed: disk space that they take.
        bytes_stored: disk space in use, by all collections.
        bytes_budget: disk space that may be used; 0 where no KV is stored.
    """

    collection: str
    passages: int
    stored: int
    to_compute: int
    tokens: int
    bytes_needed: int
    bytes_stored: int
    bytes_budget: int


class PrecomputeProgress(_Result):
    """How far it is; in the end, `finished` tells whether everything is on disk."""

    type: Literal["progress"] = "progress"
    passages: int
    total: int
    tokens: int
    seconds: float
    finished: bool = False


class KVStoreInfo(_Result):
    """The KV store: what it holds, and what has happened since it was opened.

    Attributes:
        records: passages and templates whose KV can be read.
        bytes_stored: disk space that they take.
        bytes_budget: disk space that they may take.
        hits: loads that were served.
        bad_records: records that did not verify when they were loaded; their KV was computed again.
        damages: damaged places found when it was opened.
        written: records written.
        declined: records that were not written: no room, nobody needs them, or the disk refuses.
        evicted: records that had to make room.
    """

    records: int
    bytes_stored: int
    bytes_budget: int
    hits: int
    bad_records: int
    damages: int
    written: int
    declined: int
    evicted: int


class CollectionList(_Result):
    """Every collection, by name."""

    collections: list[CollectionInfo]


class DocumentList(_Result):
    """Every document of a collection, by uri."""

    documents: list[DocumentInfo]


class DocumentInput(_Request):
    """A document to ingest: either `text`, or the bytes of a file as base64 in `data`.

    Attributes:
        uri: what identifies it in its collection; the same uri again replaces it.
        text: plain text or markup, as `media_type` says.
        data: a file's bytes; its `name` and content tell the format.
        name: file name of `data`.
        title: for people; taken from the document where it is left out.
        media_type: of `text` or `data`; it goes before the ending of the name.
    """

    uri: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    text: str | None = None
    data: Base64 | None = None
    name: str | None = None
    title: str | None = None
    media_type: str | None = None

    @check_model(mode="after")
    def _one_content(self) -> "DocumentInput":
        if (self.text is None) == (self.data is None):
            raise ValueError("give either text or data (base64)")
        return self


class IngestRequest(_Request):
    """Documents to add or to replace in a collection."""

    documents: Annotated[list[DocumentInput], Field(min_length=1)]


class SkippedDocument(_Result):
    """A document that could not be read, and why."""

    uri: str
    reason: str


class IngestReport(_Result):
    """What an ingestion did; every list and number counts documents, `passages` counts what was written."""

    collection: str
    added: int
    updated: int
    unchanged: int
    removed: int
    skipped: list[SkippedDocument]
    passages: int
    seconds: float
