"""What jobs do: documents are ingested, KV is stored, passages are brought into memory."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from threading import Event

from rag.components import Once
from rag.jobs import JobStore
from rag.schemas import IngestReport, IngestRequest, PrecomputeProgress
from rag.schemas.cache import CacheSelection
from rag.schemas.jobs import Job, JobKind, JobProgress
from rag.server.ingestions import Ingestions, require_fetch
from rag.service import Service
from rag.sources import sources_of
from retriever.ingest import IngestEvent

__all__ = ["JobCancelledError", "JobRun", "JobWork"]


class JobCancelledError(Exception):
    """Ends a job in the thread that runs it."""


@dataclass(eq=False, slots=True)
class JobRun:
    """A job that waits or runs. What it is now is read and replaced on the event loop alone."""

    job: Job
    owner: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: Event = field(default_factory=Event)
    stopped: Event = field(default_factory=Event)  # with the server: it goes on with the next start
    in_thread: bool = False
    is_ending: bool = False  # nothing may cut short the writing down
    has_ended: bool = False  # from then on the store alone knows how
    task: "asyncio.Task[None] | None" = None

    def show(self, job: Job) -> None:
        """Replace what the job is now, and tell those who watch it."""
        self.job = job
        self.wake()

    def show_progress(self, progress: JobProgress) -> None:
        """Tell how far it is."""
        self.show(self.job.model_copy(update={"progress": progress}))

    def wake(self) -> None:
        """Have those who watch it look again."""
        self.changed.set()
        self.changed = asyncio.Event()


class JobWork:
    """Does the work of jobs.

    Args:
        service: does the work itself.
        ingestions: the slots that jobs share with requests that wait.
        store: has what they work on.
    """

    def __init__(self, service: Service, ingestions: Ingestions, store: Once[JobStore]) -> None:
        self._service = service
        self._ingestions = ingestions
        self._store = store

    async def __call__(self, run: JobRun) -> IngestReport | None:
        """Do what a job is for; return what an ingestion did.

        Raises:
            JobCancelledError: it was to end while it ran in a thread; elsewhere its task is cancelled.
        """
        kinds: dict[JobKind, Callable[[JobRun], Awaitable[IngestReport | None]]] = {
            "ingest": self._ingest,
            "precompute": self._precompute,
            "warm": self._warm,
        }
        return await kinds[run.job.kind](run)

    async def _ingest(self, run: JobRun) -> IngestReport:
        """Ingest documents in a thread, where it looks for the wish to end it after every step."""
        loop, store = asyncio.get_running_loop(), self._store()

        def note(event: IngestEvent) -> None:
            progress = JobProgress(
                done=event.documents, total=event.total, passages=event.passages, message=event.message
            )
            loop.call_soon_threadsafe(run.show_progress, progress)
            if run.cancelled.is_set():
                raise JobCancelledError

        def work(check: Callable[[IngestEvent], None]) -> IngestReport:
            run.in_thread = True
            if run.cancelled.is_set() or run.stopped.is_set():
                raise JobCancelledError
            begun = store.begin(run.job.id)
            loop.call_soon_threadsafe(run.show, begun)
            request = IngestRequest.model_validate_json(store.content(begun.id))
            settings = self._service.config.server
            require_fetch(request, settings)  # which may have been allowed when the job came
            sources = sources_of(request, settings.url_seconds)

            def progress(event: IngestEvent) -> None:
                check(event)
                note(event)

            return self._service.ingest(begun.collection, sources, progress=progress)

        return await self._ingestions.run(run.job.collection, work)

    async def _precompute(self, run: JobRun) -> None:
        """Store the KV of a collection's passages."""
        await self._begin(run)
        await _show_all(run, self._service.precompute_async(run.job.collection))

    async def _warm(self, run: JobRun) -> None:
        """Bring a collection's KV into memory."""
        await self._begin(run)
        selection = CacheSelection.model_validate_json(await asyncio.to_thread(self._store().content, run.job.id))
        await _show_all(run, self._service.cache.warm(selection.collection, selection.document_id))

    async def _begin(self, run: JobRun) -> None:
        run.show(await asyncio.to_thread(self._store().begin, run.job.id))


async def _show_all(run: JobRun, events: AsyncGenerator[PrecomputeProgress, None]) -> None:
    """Do work that goes through passages to its end."""
    async with aclosing(events):
        async for event in events:
            run.show_progress(JobProgress(done=event.passages, total=event.total, passages=event.passages))
