"""The jobs of a running server, over HTTP."""

from collections.abc import Generator
from urllib.parse import quote

from pydantic import TypeAdapter

from rag.remote import Remote
from rag.schemas.jobs import Job, JobEvent, JobList

__all__ = ["RemoteJobs"]

_EVENTS = TypeAdapter(JobEvent)


class RemoteJobs:
    """What can be asked about a server's jobs.

    Args:
        remote: the server.
    """

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    def list(self) -> JobList:
        """Return the latest jobs of the collections that the key may read, the latest first."""
        return JobList.model_validate(self._remote.call("GET", "/v1/jobs").json())

    def get(self, job_id: str) -> Job:
        """Return a job as it is now."""
        return Job.model_validate(self._remote.call("GET", _path(job_id)).json())

    def follow(self, job_id: str) -> Generator[Job, None, None]:
        """Yield a job as it is now, as it moves on, and as it has ended. Leaving early leaves it running."""
        for event in self._remote.events("GET", f"{_path(job_id)}/events", _EVENTS):
            yield event.job

    def cancel(self, job_id: str) -> Job:
        """End a job after what it is doing right now, and return it as it is; what it has stored stays."""
        return Job.model_validate(self._remote.call("DELETE", _path(job_id)).json())


def _path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"
