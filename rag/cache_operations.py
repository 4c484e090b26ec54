"""The cache of a running server, over HTTP."""

from collections.abc import Callable
from typing import Literal

import httpx

from rag.job_operations import RemoteJobs
from rag.schemas.cache import CacheSelection, CacheStats, Flushed, FlushRequest, Pinned, Unpinned
from rag.schemas.jobs import Job

__all__ = ["RemoteCache"]


class RemoteCache:
    """What can be asked of a server's cache.

    Args:
        call: sends a request to a method and path, and raises what goes wrong.
        jobs: of the same server.
    """

    def __init__(self, call: Callable[..., httpx.Response], jobs: RemoteJobs) -> None:
        self._call = call
        self._jobs = jobs

    def stats(self) -> CacheStats:
        """Return what the cache holds."""
        return CacheStats.model_validate(self._call("GET", "/v1/cache").json())

    def warm(self, collection: str, document_id: str | None = None) -> Job:
        """Bring passages into memory, and return the job that has done it."""
        job = Job.model_validate(self._post("warm", CacheSelection(collection=collection, document_id=document_id)))
        *_, job = self._jobs.follow(job.id)
        return job

    def pin(self, collection: str, document_id: str | None = None) -> Pinned:
        """Keep passages in memory."""
        return Pinned.model_validate(self._post("pin", CacheSelection(collection=collection, document_id=document_id)))

    def unpin(self, collection: str, document_id: str | None = None) -> Unpinned:
        """Let passages be evicted again."""
        selection = CacheSelection(collection=collection, document_id=document_id)
        return Unpinned.model_validate(self._post("unpin", selection))

    def flush(self, collection: str, document_id: str | None = None, *, from_disk: bool = False) -> Flushed:
        """Forget the KV of passages."""
        tiers: Literal["device", "all"] = "all" if from_disk else "device"
        wanted = FlushRequest(collection=collection, document_id=document_id, tier=tiers)
        return Flushed.model_validate(self._post("flush", wanted))

    def _post(self, verb: str, body: CacheSelection) -> object:
        answer: object = self._call("POST", f"/v1/cache/{verb}", json=body.model_dump(mode="json")).json()
        return answer
