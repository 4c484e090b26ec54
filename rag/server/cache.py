"""The cache: what it holds, and passages that are read ahead, kept, or forgotten."""

import asyncio
from functools import partial

from anyio import to_thread
from fastapi import APIRouter, Depends, Request

from rag.schemas.cache import CacheSelection, CacheStats, Flushed, FlushRequest, Pinned, Unpinned
from rag.schemas.jobs import Job
from rag.server.access import AccessDep
from rag.server.answers import require_json
from rag.server.feed import until_gone
from rag.server.problems import problem_responses
from rag.server.state import ReadyState

__all__ = ["router"]

router = APIRouter(prefix="/v1/cache", tags=["cache"])

JSON_BODY = [Depends(require_json)]
PROBLEMS = problem_responses(400, 404, 415)


@router.get("", responses=problem_responses())
def get_cache(state: ReadyState, access: AccessDep) -> CacheStats:
    """Return what the cache holds.

    Everybody's questions move these figures, so that where keys are on an administrator's is needed.
    """
    access.require("admin")
    return state.service.cache.stats()


@router.post("/warm", status_code=202, dependencies=JSON_BODY, responses=PROBLEMS | problem_responses(429))
async def warm(body: CacheSelection, state: ReadyState, access: AccessDep) -> Job:
    """Begin a job that brings passages into memory, from the disk or by computing them: those found often first.

    Questions go first, and it ends where half of the memory is full.
    """
    access.require("write", body.collection)
    await asyncio.to_thread(_check, state, body)
    content = body.model_dump_json().encode()
    return await state.jobs.submit("warm", body.collection, access.caller.principal, content)


@router.post("/pin", dependencies=JSON_BODY, responses=PROBLEMS)
async def pin(body: CacheSelection, request: Request, state: ReadyState, access: AccessDep) -> Pinned:
    """Read passages and keep them in memory until they are let go or deleted, or the server stops.

    At most half of the memory can be kept so. Pins give way to a question that could not be answered beside them.
    Whoever closes the connection ends the reading; what is kept by then stays.
    """
    access.require("write", body.collection)

    async def work() -> Pinned:
        async with state.pinning:
            return await state.service.cache.pin(body.collection, body.document_id)

    return await until_gone(request.receive, work())


@router.post("/unpin", dependencies=JSON_BODY, responses=PROBLEMS)
def unpin(body: CacheSelection, state: ReadyState, access: AccessDep) -> Unpinned:
    """Let passages go from memory when room is needed."""
    access.require("write", body.collection)
    return Unpinned(passages=state.service.cache.unpin(body.collection, body.document_id))


@router.post("/flush", dependencies=JSON_BODY, responses=PROBLEMS)
async def flush(body: FlushRequest, state: ReadyState, access: AccessDep) -> Flushed:
    """Forget the KV of passages, in memory or everywhere; they are read again when somebody asks. Unpins them too."""
    access.require("write", body.collection)
    forget = partial(state.service.cache.flush, body.collection, body.document_id, from_disk=body.tier == "all")
    return await to_thread.run_sync(forget, limiter=state.upkeep)


def _check(state: ReadyState, body: CacheSelection) -> None:
    """Tell at once what is not there."""
    state.service.collection(body.collection)
    if body.document_id is not None:
        state.service.document(body.collection, body.document_id)
