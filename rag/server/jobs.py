"""Jobs: listed, watched, cancelled."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from rag.errors import UnknownJobError
from rag.schemas.jobs import Job, JobList
from rag.server.access import Access, AccessDep
from rag.server.feed import EventFeed
from rag.server.problems import problem_responses
from rag.server.sse import EventStream, NamedFrames, event_content
from rag.server.state import ServerState, SharedState

__all__ = ["router"]

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

JobId = Annotated[str, Path(description="The job's id.")]

EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events `progress`, then `done`; the data of each has the `job`. Or `error`, whose data is a "
        "problem document, where the server stops before the job ends, or the key may not watch it any more.",
        "content": event_content("JobEvent"),
    }
}


@router.get("", responses=problem_responses())
async def list_jobs(state: SharedState, access: AccessDep) -> JobList:
    """Return the latest jobs of the collections that the key may read, the latest first."""
    return JobList(jobs=await state.jobs.latest(access.grants.collections))


@router.get("/{job_id}", responses=problem_responses(404))
async def get_job(job_id: JobId, state: SharedState, access: AccessDep) -> Job:
    """Return a job as it is now."""
    return await _visible(job_id, state, access)


@router.get("/{job_id}/events", response_model=None, responses=EVENTS | problem_responses(404))
async def watch_job(job_id: JobId, request: Request, state: SharedState, access: AccessDep) -> Response:
    """Send a job as it is now, as it moves on, and as it has ended. Whoever closes the connection leaves it running."""
    job = await _visible(job_id, state, access)
    feed = EventFeed(state.jobs.watch(job_id))
    return await EventStream.begin(feed, request, NamedFrames(), scope="read", collection=job.collection)


@router.delete("/{job_id}", responses=problem_responses(404))
async def cancel_job(job_id: JobId, state: SharedState, access: AccessDep) -> Job:
    """End a job after what it is doing right now, and return it as it is; one that has ended is left as it is.

    What it has stored stays.
    """
    job = await _visible(job_id, state, access)
    access.require("write", job.collection)
    return await state.jobs.cancel(job_id)


async def _visible(job_id: str, state: ServerState, access: Access) -> Job:
    """Return a job of a collection that the key may read; what it may not know of is not there."""
    job = await state.jobs.get(job_id)
    if not access.may("read", job.collection):
        raise UnknownJobError(f"there is no job {job_id!r}; list the jobs that the key may see")
    return job
