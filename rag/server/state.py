"""What routes share: the service, the server's settings, and the work that goes on."""

from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request

from rag.components import Once
from rag.config import ServerSettings
from rag.errors import NotReadyError
from rag.idempotency import IdempotentRequests
from rag.openai.stored import ResponseStore
from rag.server.ingestions import Ingestions
from rag.server.job_runner import JobRunner
from rag.server.quotas import Quotas
from rag.service import Service

__all__ = ["ReadyState", "ServerState", "SharedState"]

MAX_UPKEEP = 4
MAX_PINNING = 4


class ServerState:
    """What an app holds.

    Args:
        service: does the work.
        settings: of the server.

    Attributes:
        owner_token: who presents it may read the data directory, and so may do everything; empty is nobody.
        upkeep: threads for what goes through a collection, or waits for answers to end: purges, flushes, plans. They
            are few, and none of those that searches and listings need.
        pinning: the same of what reads passages to keep them, which waits for all questions.
    """

    def __init__(self, service: Service, settings: ServerSettings) -> None:
        self.service = service
        self.settings = settings
        self.owner_token = ""
        self.ingestions = Ingestions()
        self.jobs = JobRunner(service, self.ingestions, settings.max_jobs)
        self.idempotent_requests = Once(lambda: IdempotentRequests(service.components.library().store))
        self.quotas = Quotas(service, settings)
        self.responses = ResponseStore()
        self.embedding = CapacityLimiter(1)  # of what clients want embedded; it uses every core anyway
        self.upkeep = CapacityLimiter(MAX_UPKEEP)
        self.pinning = CapacityLimiter(MAX_PINNING)
        self._stopping = False

    @property
    def is_ready(self) -> bool:
        """Whether the models are loaded and the engine takes requests and does well."""
        return not self.obstacle

    @property
    def obstacle(self) -> str:
        """Why no requests are taken now; empty where they are."""
        worker = self.service.components.worker.if_made
        if self._stopping:
            return "the server stops; ask again when it is back, or another one"
        if not self.service.is_loaded or worker is None:
            return "the server loads its models; wait until GET /readyz answers 200 and ask again"
        if not worker.is_alive:
            return "the engine has stopped; wait until GET /readyz answers 200, or restart the server"
        if self.is_stalled:
            return "the engine hangs in a step; wait until GET /readyz answers 200, or restart the server"
        if not worker.is_well:
            return "the engine fails at every step and is tried again; wait until GET /readyz answers 200 and ask again"
        return ""

    @property
    def is_stalled(self) -> bool:
        """Whether the engine is at one step for longer than any takes."""
        worker = self.service.components.worker.if_made
        return worker is not None and worker.is_alive and worker.busy_seconds > self.settings.stall_seconds

    @property
    def is_broken(self) -> bool:
        """Whether a restart is all that helps: the engine hangs, or has ended although nobody stops the server."""
        worker = self.service.components.worker.if_made
        return self.is_stalled or (worker is not None and not worker.is_alive and not self._stopping)

    def stop(self) -> None:
        """Take no more requests; jobs go on with the next start, and ingestions end after their current batch."""
        self._stopping = True
        self.jobs.begin_stop()  # first: it tells jobs that a stop ends them, not their own failure
        self.ingestions.stop()


async def _shared(request: Request) -> ServerState:
    state: ServerState = request.app.state.preread
    return state


async def _ready(state: Annotated[ServerState, Depends(_shared)]) -> ServerState:
    if obstacle := state.obstacle:
        raise NotReadyError(obstacle)
    return state


SharedState = Annotated[ServerState, Depends(_shared)]
ReadyState = Annotated[ServerState, Depends(_ready)]
