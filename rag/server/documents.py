"""Collections and documents."""

from collections.abc import Sequence
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.responses import Response

from rag.schemas import (
    CollectionInfo,
    CollectionList,
    DeletedDocument,
    DocumentList,
    DocumentWithPassages,
    IngestReport,
    IngestRequest,
    PrecomputePlan,
)
from rag.server.access import AccessDep
from rag.server.feed import EventFeed
from rag.server.problems import ProblemError, problem_responses
from rag.server.sse import EventStream, NamedFrames
from rag.server.state import ReadyState, SharedState
from rag.service import source_from_input
from retriever.document import BytesSource, Source
from retriever.extract import is_told_by_name

__all__ = ["router"]

router = APIRouter(prefix="/v1/collections", tags=["documents"])

Name = Annotated[str, Path(description="The collection's name.")]
DocumentId = Annotated[str, Path(description="The document's id, as the listing has it.")]
Purged = Annotated[bool, Query(description="Leave no copy of its KV, not even in free space.")]

PROGRESS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events `progress`, or `error`, whose data is a problem document.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}

JSON, FORM = "application/json", "multipart/form-data"
FILES = "files"
MAX_REASONS = 5
UNTYPED = "application/octet-stream"


def _ingest_body() -> dict[str, Any]:
    """Return the OpenAPI description of both kinds of body."""
    schema = IngestRequest.model_json_schema()
    schema["properties"]["documents"]["items"] = schema.pop("$defs")["DocumentInput"]
    upload = {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
    form = {"type": "object", "properties": {FILES: upload}, "required": [FILES], "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema}, FORM: {"schema": form}}}}


@router.get("", responses=problem_responses())
def list_collections(state: SharedState, access: AccessDep) -> CollectionList:
    """Return every collection that the key may read, by name."""
    found = state.service.collections()
    return CollectionList(collections=[item for item in found if access.may("read", item.name)])


@router.get("/{collection}", responses=problem_responses(404))
def get_collection(collection: Name, state: SharedState, access: AccessDep) -> CollectionInfo:
    """Return a collection."""
    access.require("read", collection)
    return state.service.collection(collection)


@router.delete("/{collection}", status_code=204, responses=problem_responses(404))
def delete_collection(collection: Name, state: SharedState, access: AccessDep) -> None:
    """Delete a collection with everything in it."""
    access.require("admin", collection)
    state.service.delete_collection(collection)


@router.post("/{collection}/documents", responses=problem_responses(400, 404, 409, 415), openapi_extra=_ingest_body())
async def add_documents(collection: Name, request: Request, state: ReadyState, access: AccessDep) -> IngestReport:
    """Add or replace documents; the collection is made if it is missing. Answers when they can be searched.

    Takes JSON, or files as `multipart/form-data` in parts named `files`; a file's name is its uri. Documents that
    cannot be used are listed in `skipped` with the reason, and the others are stored; where none can be used the answer
    is a 422 problem with the same list.
    """
    access.require("write", collection)
    async with state.ingestions.room_for(request.headers.get("content-length", "")):
        sources = await _sources(request)
        report = await state.ingestions.run(state.service, collection, sources)
    if len(report.skipped) == len(sources):
        reasons = "; ".join(item.reason for item in report.skipped[:MAX_REASONS])
        more = f"; and {len(sources) - MAX_REASONS} more" if len(sources) > MAX_REASONS else ""
        raise ProblemError(422, "unusable-documents", f"{reasons}{more}", skipped=report.skipped)
    return report


@router.get("/{collection}/precompute", responses=problem_responses(404, 409))
def plan_precompute(collection: Name, state: ReadyState, access: AccessDep) -> PrecomputePlan:
    """Tell what it takes to store the KV of the collection's passages."""
    access.require("read", collection)
    return state.service.precompute_plan(collection)


@router.post("/{collection}/precompute", response_model=None, responses=PROGRESS | problem_responses(404, 409))
async def precompute(collection: Name, request: Request, state: ReadyState, access: AccessDep) -> Response:
    """Compute and store the KV of the collection's passages, best ones first, as far as the budget goes.

    Sends an event `progress` after each passage; the last one has `finished`. Questions go first. What is stored is
    skipped, and stays when the connection is closed, which ends the work.
    """
    access.require("write", collection)
    feed = EventFeed(state.service.precompute_async(collection))
    return await EventStream.begin(feed, request, NamedFrames(), ping_seconds=state.settings.ping_seconds)


@router.get("/{collection}/documents", responses=problem_responses(404))
def list_documents(collection: Name, state: SharedState, access: AccessDep) -> DocumentList:
    """Return every document of a collection, by uri."""
    access.require("read", collection)
    return DocumentList(documents=state.service.documents(collection))


@router.get("/{collection}/documents/{document_id}", responses=problem_responses(404))
def get_document(
    collection: Name, document_id: DocumentId, state: SharedState, access: AccessDep
) -> DocumentWithPassages:
    """Return a document with its passages."""
    access.require("read", collection)
    return state.service.document(collection, document_id)


@router.delete("/{collection}/documents/{document_id}", responses=problem_responses(404))
def delete_document(
    collection: Name, document_id: DocumentId, state: SharedState, access: AccessDep, *, purge: Purged = False
) -> DeletedDocument:
    """Delete a document with its passages, and return it.

    With `purge=true` the answer comes when no copy of its passages' KV is left in memory and on disk.
    """
    access.require("write", collection)
    return state.service.delete_document(collection, document_id, purge=purge)


async def _sources(request: Request) -> Sequence[Source]:
    """Return the documents of a body of either kind."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == FORM:
        return await _uploads(request)
    if media_type != JSON:
        raise ProblemError(
            415,
            "unsupported-media-type",
            f"the body's Content-Type is {media_type!r}; send documents as {JSON}, or files as {FORM}",
            headers={"Accept-Post": f"{JSON}, {FORM}"},
        )
    return await to_thread.run_sync(_parse, await request.body())


def _parse(body: bytes) -> Sequence[Source]:
    try:
        documents = IngestRequest.model_validate_json(body).documents
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise RequestValidationError([{**item, "loc": ("body", *item["loc"])} for item in found]) from error
    return [source_from_input(document) for document in documents]


async def _uploads(request: Request) -> Sequence[Source]:
    sources = []
    async with request.form() as form:
        for name, part in form.multi_items():
            if name != FILES or not isinstance(part, UploadFile) or not part.filename:
                raise ProblemError(
                    422, "invalid-request", f"the part {name!r} is not a file named {FILES!r}; send files in such parts"
                )
            is_guess = part.content_type == UNTYPED or is_told_by_name(part.filename)  # clients guess by the name too
            media_type = None if is_guess else part.content_type
            sources.append(BytesSource(part.filename, await part.read(), media_type=media_type))
    if not sources:
        raise ProblemError(422, "invalid-request", f"the form has no files; send them in parts named {FILES!r}")
    return sources
