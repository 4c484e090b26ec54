"""What routes share: the service, the server's settings, and the ingestions that run."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from threading import Event
from typing import Annotated
from weakref import WeakValueDictionary

import anyio.to_thread
from anyio import CapacityLimiter, Lock, Semaphore
from fastapi import Depends, Request

from rag.config import ServerSettings
from rag.errors import NotReadyError
from rag.schemas import IngestReport
from rag.server.problems import ProblemError
from rag.service import Service
from retriever.document import Source
from retriever.ingest import IngestEvent, Stage

__all__ = ["Ingestions", "ReadyState", "ServerState", "SharedState"]

logger = logging.getLogger(__name__)

MAX_INGESTIONS = 2  # at once, each into its own collection; embedding uses every core anyway
MAX_LARGE_BODIES = 2 * MAX_INGESTIONS  # in memory at once: some are worked on while others arrive
SMALL_BODY_BYTES = 2**20


class Ingestions:
    """Runs ingestions in threads of their own, one at a time for each collection."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, Lock] = WeakValueDictionary()
        self._slots = CapacityLimiter(MAX_INGESTIONS)
        self._bodies = Semaphore(MAX_LARGE_BODIES)
        self._stopping = Event()

    def room_for(self, length: str) -> Semaphore | nullcontext[None]:
        """Wait until a body of this Content-Length may be in memory, and hold its place; a small one does not wait.

        Who sends slowly holds a place for bodies, not one for ingestions.
        """
        is_small = length.isdecimal() and int(length) <= SMALL_BODY_BYTES
        return nullcontext() if is_small else self._bodies

    async def run(self, service: Service, collection: str, sources: Sequence[Source]) -> IngestReport:
        """Ingest; errors are those of `Service.ingest`, and a `ProblemError` once the server stops."""
        lock = self._locks.setdefault(collection, Lock())
        async with lock:
            work = partial(service.ingest, collection, sources, progress=self._check)
            return await anyio.to_thread.run_sync(work, limiter=self._slots)

    def stop(self) -> None:
        """End what runs after its current batch; what is committed stays."""
        self._stopping.set()

    def _check(self, event: IngestEvent) -> None:
        if event.stage is Stage.NOTICE:
            logger.warning("%s", event.message)
        if self._stopping.is_set():
            raise ProblemError(
                503,
                "stopping",
                "the server is stopping; documents that are stored already stay, send the others again when it is back",
                headers={"Retry-After": "10"},
            )


class ServerState:
    """What an app holds.

    Args:
        service: does the work.
        settings: of the server.

    Attributes:
        owner_token: who presents it may read the data directory, and so may do everything; empty is nobody.
    """

    def __init__(self, service: Service, settings: ServerSettings) -> None:
        self.service = service
        self.settings = settings
        self.owner_token = ""
        self.ingestions = Ingestions()
        self.embedding = CapacityLimiter(1)  # of what clients want embedded; it uses every core anyway
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
        """Take no more requests; ingestions end after their current batch."""
        self._stopping = True
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
