"""The ingestions that run, whether a request waits for them or a job does them."""

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from threading import Event
from weakref import WeakValueDictionary

import anyio.to_thread
from anyio import CapacityLimiter, Lock, Semaphore

from rag.config import ServerSettings
from rag.operations import Progress
from rag.schemas import IngestReport, IngestRequest
from rag.server.problems import ProblemError
from retriever.ingest import IngestEvent, Stage

__all__ = ["MAX_LARGE_BODIES", "MAX_OWN_BODIES", "SMALL_BODY_BYTES", "Ingestions", "require_fetch"]

logger = logging.getLogger(__name__)

MAX_INGESTIONS = 2  # at once, each into its own collection; embedding uses every core anyway
MAX_LARGE_BODIES = 2 * MAX_INGESTIONS  # in memory at once: some are worked on while others arrive
MAX_OWN_BODIES = MAX_LARGE_BODIES // 2  # of one principal
SMALL_BODY_BYTES = 2**20


def require_fetch(wanted: IngestRequest, settings: ServerSettings) -> None:
    """Go on only where nothing is to be fetched, or that is allowed.

    Raises:
        ProblemError: it is not.
    """
    if wanted.urls and not settings.allow_url_fetch:
        raise ProblemError(
            403,
            "no-url-fetch",
            "this server fetches nothing from the web; send the documents themselves, or have its operator set "
            "PREREAD_SERVER__ALLOW_URL_FETCH",
        )


class Ingestions:
    """Runs ingestions in threads of their own, one at a time for each collection."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, Lock] = WeakValueDictionary()
        self._slots = CapacityLimiter(MAX_INGESTIONS)
        self._bodies = Semaphore(MAX_LARGE_BODIES)
        self._own_bodies: WeakValueDictionary[str, Semaphore] = WeakValueDictionary()
        self._stopping = Event()

    def room_for(
        self, headers: Mapping[str, str], principal: str = ""
    ) -> AbstractAsyncContextManager[None] | Semaphore:
        """Wait until the body that these headers announce may be in memory, and hold its place; a small one does not.

        Who sends slowly holds a place for bodies, not one for ingestions; and nobody holds more than half of them.

        Args:
            headers: of the request.
            principal: who sends it; without keys everybody is nobody, who may have every place.
        """
        length = "" if "transfer-encoding" in headers else headers.get("content-length", "")  # the first one counts
        if length.isdecimal() and int(length) <= SMALL_BODY_BYTES:
            return nullcontext()
        return self._own_place(principal) if principal else self._bodies

    @asynccontextmanager
    async def _own_place(self, principal: str) -> AsyncIterator[None]:
        async with self._own_bodies.setdefault(principal, Semaphore(MAX_OWN_BODIES)), self._bodies:
            yield

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
