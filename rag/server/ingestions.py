"""The ingestions that run, whether a request waits for them or a job does them."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from threading import Event
from weakref import WeakValueDictionary

import anyio.to_thread
from anyio import CapacityLimiter, Lock, Semaphore

from rag.operations import Progress
from rag.schemas import IngestReport
from rag.server.problems import ProblemError
from retriever.ingest import IngestEvent, Stage

__all__ = ["MAX_LARGE_BODIES", "SMALL_BODY_BYTES", "Ingestions"]

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

    async def run(self, collection: str, work: Callable[[Progress], IngestReport]) -> IngestReport:
        """Ingest when it is this collection's turn.

        Args:
            collection: its name.
            work: ingests, in a thread, and calls what it is given after every step; that raises a `ProblemError` once
                the server stops.
        """
        lock = self._locks.setdefault(collection, Lock())
        async with lock:
            return await anyio.to_thread.run_sync(partial(work, self._check), limiter=self._slots)

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
