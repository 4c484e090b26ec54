"""Work that goes on after its request was answered."""

from typing import Literal

from pydantic import Field

from rag.schemas.base import Result
from rag.schemas.ingest import IngestReport

__all__ = ["Job", "JobEvent", "JobKind", "JobList", "JobProgress", "JobState", "is_over"]

JobKind = Literal["ingest", "precompute", "warm"]
JobState = Literal["queued", "running", "succeeded", "failed", "cancelled", "interrupted"]


class JobProgress(Result):
    """How far a job is.

    Attributes:
        done: documents of an ingestion, or passages of other jobs, that are finished.
        total: how many there are; null while that is not known.
        passages: passages stored, or computed.
        message: what is going on.
    """

    done: int = 0
    total: int | None = None
    passages: int = 0
    message: str = ""


class Job(Result):
    """A job as it is now; one that a stop of the server has cut short goes on when it is back.

    Attributes:
        id: names it.
        kind: what it does.
        collection: with what.
        state: `interrupted` is one that was begun again and again and never came to its end.
        attempts: how often it was begun.
        progress: how far it is.
        result: what an ingestion did.
        error: why it failed, or was interrupted, and what to do.
        created_at: when it came.
        started_at: when it was begun last.
        finished_at: when it ended.
    """

    id: str
    kind: JobKind
    collection: str
    state: JobState
    attempts: int
    progress: JobProgress = Field(default_factory=JobProgress)
    result: IngestReport | None = None
    error: str | None = None
    created_at: str
    started_at: str | None = None
    finished_at: str | None = None


class JobList(Result):
    """Jobs, the latest first."""

    jobs: list[Job]


class JobEvent(Result):
    """That a job has moved on; `done` is the last one."""

    type: Literal["progress", "done"]
    job: Job


def is_over(job: Job) -> bool:
    """Return whether a job has come to its end, whatever that was."""
    return job.state not in ("queued", "running")
