"""Documents: added, listed, changed, deleted, and their passages read ahead."""

import json
from functools import partial
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from rag.idempotency import fingerprint_of
from rag.schemas import (
    DeletedDocument,
    DocumentInfo,
    DocumentList,
    DocumentPatch,
    DocumentWithPassages,
    IngestReport,
    IngestRequest,
    PrecomputePlan,
)
from rag.schemas.jobs import Job
from rag.server.access import AccessDep
from rag.server.answers import require_json
from rag.server.collections import CollectionPath
from rag.server.document_bodies import FILES, FORM, JSON, METADATA, URLS, read_documents
from rag.server.feed import EventFeed
from rag.server.idempotent import IdempotencyKey, Keep, once
from rag.server.ingestions import require_fetch
from rag.server.problems import ProblemError, problem_responses
from rag.server.sse import EventStream, NamedFrames, event_content
from rag.server.state import ReadyState, ServerState, SharedState
from rag.sources import sources_of

__all__ = ["router"]

router = APIRouter(prefix="/v1/collections", tags=["documents"])

DocumentId = Annotated[str, Path(description="The document's id, as the listing has it.")]
Wait = Annotated[bool, Query(description="Answer when it is done; otherwise at once, with a job.")]
Purged = Annotated[bool, Query(description="Overwrite its KV, text and vectors, and see that no KV of it is left.")]

Responses = dict[int | str, dict[str, Any]]

JOB: Responses = {202: {"description": "A job that does it.", "model": Job}}
ACCEPTED: Responses = {200: {"description": "What was done."}, **JOB}
PROGRESS: Responses = {
    200: {
        "description": "Events `progress`, or `error`, whose data is a problem document.",
        "content": event_content("PrecomputeProgress"),
    },
    **JOB,
}

MAX_REASONS = 5


def _ingest_body() -> dict[str, Any]:
    """Return the OpenAPI description of both kinds of body."""
    schema = IngestRequest.model_json_schema()
    schema["properties"]["documents"]["items"] = schema.pop("$defs")["DocumentInput"]
    upload = {"type": "array", "items": {"type": "string", "format": "binary"}}
    urls = {"type": "string", "description": "URLs, one a line; or a file of them."}
    metadata = {"type": "string", "contentMediaType": "application/json", "description": "Of all of them, as JSON."}
    form = {
        "type": "object",
        "properties": {FILES: upload, URLS: urls, METADATA: metadata},
        "additionalProperties": False,
    }
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema}, FORM: {"schema": form}}}}


@router.post(
    "/{collection}/documents",
    response_model=IngestReport,
    responses=ACCEPTED | problem_responses(400, 404, 409, 415, 429),
    openapi_extra=_ingest_body(),
)
async def add_documents(
    collection: CollectionPath,
    request: Request,
    state: ReadyState,
    access: AccessDep,
    *,
    wait: Wait = True,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Add or replace documents; the collection is made if it is missing. Answers when they can be searched.

    Takes JSON, or a form: files in parts named `files`, whose names are their uris; URLs, one a line, in `urls`; and
    `metadata` of all of them. Documents that cannot be used are listed in `skipped` with the reason, and the others are
    stored; where none can be used the answer is a 422 problem with the same list.

    With `wait=false` the answer comes as soon as the documents are received and cannot be lost any more: a job, which
    can be watched and cancelled.
    """
    access.require("write", collection)
    async with state.ingestions.room_for(request.headers, access.caller.principal):
        wanted = await read_documents(request, state.settings.max_files)
        require_fetch(wanted, state.settings)

        async def ingest(keep: Keep) -> tuple[int, BaseModel]:
            if wait:
                return 200, await _ingest_now(collection, wanted, state)
            content = await to_thread.run_sync(lambda: wanted.model_dump_json(exclude_none=True).encode())
            principal = access.caller.principal
            return 202, await state.jobs.submit("ingest", collection, principal, content, partial(keep, 202))

        def fingerprint() -> bytes:
            return fingerprint_of("documents", collection, str(wait), wanted.model_dump_json())

        response = await once(state, access, idempotency_key, fingerprint, ingest)
    if response.status_code == 202:
        response.headers["Location"] = f"/v1/jobs/{json.loads(bytes(response.body))['id']}"
    return response


async def _ingest_now(collection: str, wanted: IngestRequest, state: ServerState) -> IngestReport:
    sources = sources_of(wanted, state.settings.url_seconds)
    report = await state.ingestions.run(
        collection, lambda progress: state.service.ingest(collection, sources, progress=progress)
    )
    if len(report.skipped) == len(sources):
        reasons = "; ".join(item.reason for item in report.skipped[:MAX_REASONS])
        more = f"; and {len(sources) - MAX_REASONS} more" if len(sources) > MAX_REASONS else ""
        raise ProblemError(422, "unusable-documents", f"{reasons}{more}", skipped=report.skipped)
    return report


@router.get("/{collection}/precompute", responses=problem_responses(404, 409))
async def plan_precompute(collection: CollectionPath, state: ReadyState, access: AccessDep) -> PrecomputePlan:
    """Tell what it takes to store the KV of the collection's passages."""
    access.require("read", collection)
    return await to_thread.run_sync(state.service.precompute_plan, collection, limiter=state.upkeep)


@router.post("/{collection}/precompute", response_model=None, responses=PROGRESS | problem_responses(404, 409, 429))
async def precompute(
    collection: CollectionPath, request: Request, state: ReadyState, access: AccessDep, *, wait: Wait = True
) -> Response:
    """Compute and store the KV of the collection's passages, best ones first, as far as the budget goes.

    Sends an event `progress` after each passage; the last one has `finished`. Questions go first. What is stored is
    skipped, and stays when the connection is closed, which ends the work. With `wait=false` it is a job, which does not
    need a connection.
    """
    access.require("write", collection)
    if not wait:
        await to_thread.run_sync(state.service.precompute_plan, collection, limiter=state.upkeep)
        job = await state.jobs.submit("precompute", collection, access.caller.principal)
        headers = {"Location": f"/v1/jobs/{job.id}"}
        return Response(job.model_dump_json(), 202, headers, media_type=JSON)
    feed = EventFeed(state.service.precompute_async(collection))
    return await EventStream.begin(feed, request, NamedFrames(), scope="write", collection=collection)


@router.get("/{collection}/documents", responses=problem_responses(404))
def list_documents(collection: CollectionPath, state: SharedState, access: AccessDep) -> DocumentList:
    """Return every document of a collection, by uri."""
    access.require("read", collection)
    return DocumentList(documents=state.service.documents(collection))


@router.get("/{collection}/documents/{document_id}", responses=problem_responses(404))
def get_document(
    collection: CollectionPath, document_id: DocumentId, state: SharedState, access: AccessDep
) -> DocumentWithPassages:
    """Return a document with its passages."""
    access.require("read", collection)
    return state.service.document(collection, document_id)


@router.patch(
    "/{collection}/documents/{document_id}",
    dependencies=[Depends(require_json)],
    responses=problem_responses(400, 404, 415),
)
def update_document(
    collection: CollectionPath, document_id: DocumentId, body: DocumentPatch, state: SharedState, access: AccessDep
) -> DocumentInfo:
    """Replace a document's metadata, and return the document; its passages stay as they are."""
    access.require("write", collection)
    return state.service.update_document(collection, document_id, body)


@router.delete("/{collection}/documents/{document_id}", responses=problem_responses(404))
async def delete_document(
    collection: CollectionPath, document_id: DocumentId, state: SharedState, access: AccessDep, *, purge: Purged = False
) -> DeletedDocument:
    """Delete a document with its passages, and return it.

    With `purge=true` the answer comes when no copy of its KV, its text and its vectors is left in memory and on disk.
    """
    access.require("write", collection)
    delete = partial(state.service.delete_document, collection, document_id, purge=purge)
    return await to_thread.run_sync(delete, limiter=state.upkeep if purge else None)
