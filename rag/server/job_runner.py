"""Runs jobs on the server's event loop: in their order, a few at once, until they end or are cancelled."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Iterable
from math import ceil

from engine.errors import EngineStoppedError
from rag.components import Once
from rag.jobs import Also, JobStore
from rag.schemas import IngestReport
from rag.schemas.jobs import Job, JobEvent, JobKind, JobState, is_over
from rag.server.ingestions import Ingestions
from rag.server.job_work import JobCancelledError, JobRun, JobWork
from rag.server.problems import ProblemError, describe
from rag.service import Service

__all__ = ["JobRunner"]

logger = logging.getLogger(__name__)

JOBS_NAME = "jobs"  # folder in the data directory
WATCH_SECONDS = 0.1  # between two events of one job at least
STOP_SECONDS = 10.0
MAX_REASONS = 5
SHARES = 4  # so many keys at least can have jobs at once


class JobRunner:
    """The jobs of one server; its methods are called on the event loop.

    Args:
        service: does the work.
        ingestions: the slots that jobs share with requests that wait.
        max_jobs: so many may wait and run at once; of those of one key a quarter.
    """

    def __init__(self, service: Service, ingestions: Ingestions, max_jobs: int) -> None:
        self._max_jobs = max_jobs
        self._store = Once(lambda: JobStore(service.components.library().store, service.config.data_dir / JOBS_NAME))
        self._work = JobWork(service, ingestions, self._store)
        self._runs: dict[str, JobRun] = {}
        self._held: Counter[str] = Counter()  # places for jobs, by owner
        self._resuming = asyncio.Lock()
        self._resumed = self._stopping = False

    async def submit(
        self, kind: JobKind, collection: str, owner: str, content: bytes = b"", also: Also | None = None
    ) -> Job:
        """Accept a job and let it begin when it is its turn; once this returns, a crash does not lose it.

        Args:
            kind: what it does.
            collection: with what.
            owner: a principal.
            content: what it works on.
            also: see `JobStore.add`.

        Raises:
            ProblemError: as many wait as may.
        """
        await self.resume()
        self._take_place(owner)
        adding = asyncio.to_thread(lambda: self._store().add(kind, collection, owner, content, also))
        accepting = asyncio.ensure_future(self._accept(adding, owner))
        try:
            return await asyncio.shield(accepting)
        except asyncio.CancelledError:  # what is accepted is begun, too, even where nobody is told any more
            await asyncio.wait({accepting})
            raise

    def _take_place(self, owner: str) -> None:
        """Hold a place before anything is waited for, so that requests that come together do not get the same one."""
        share = ceil(self._max_jobs / SHARES) if owner else self._max_jobs
        held, wait = self._held.total(), {"Retry-After": "30"}
        if held >= self._max_jobs:
            detail = f"{held} jobs wait or run already; send this one again when some of them have ended"
            raise ProblemError(503, "queue-full", detail, headers=wait)
        if self._held[owner] >= share:
            detail = f"{share} jobs of yours wait or run already; send this one again when some of them have ended"
            raise ProblemError(429, "queue-full", detail, headers=wait)
        self._held[owner] += 1

    async def _accept(self, adding: Awaitable[Job], owner: str) -> Job:
        try:
            job = await adding
        except BaseException:
            self._leave_place(owner)
            raise
        self._start(job, owner)
        return job

    def _leave_place(self, owner: str) -> None:
        self._held[owner] -= 1
        self._held = +self._held  # without those who hold none

    async def resume(self) -> None:
        """Begin, or begin again, what the last stop or crash has left: once, before anything new is accepted."""
        async with self._resuming:
            if self._resumed:
                return
            jobs = await asyncio.to_thread(lambda: self._store().unfinished())
            owners = await asyncio.to_thread(lambda: self._store().owners())
            for job in jobs:
                logger.info("job %s (%s %s) goes on", job.id, job.kind, job.collection)
                self._held[owners[job.id]] += 1
                self._start(job, owners[job.id])
            self._resumed = True

    async def get(self, job_id: str) -> Job:
        """Return a job as it is now.

        Raises:
            UnknownJobError: there is none of this id.
        """
        if run := self._runs.get(job_id):
            return run.job
        return await asyncio.to_thread(lambda: self._store().get(job_id))

    async def latest(self, collections: Iterable[str] | None = None) -> list[Job]:
        """Return jobs of these collections, or of every one, the latest first."""
        stored = await asyncio.to_thread(lambda: self._store().latest(collections))
        return [run.job if (run := self._runs.get(job.id)) else job for job in stored]

    async def cancel(self, job_id: str) -> Job:
        """End a job soon, or leave it as it has ended; what it has stored stays. Return it as it is now."""
        run = self._runs.get(job_id)
        if run is None:
            return await self.get(job_id)
        if not run.cancelled.is_set():
            run.cancelled.set()
            self._interrupt(run)
        await asyncio.wait({run.task} if run.task else set(), timeout=WATCH_SECONDS)
        return run.job

    async def watch(self, job_id: str) -> AsyncGenerator[JobEvent, None]:
        """Yield a job as it is now, as it moves on, and as it has ended.

        Raises:
            UnknownJobError: there is none of this id.
            ProblemError: it is to be begun again later, since the server stops or its end could not be written down.
        """
        run = self._runs.get(job_id) or JobRun(await self.get(job_id), has_ended=True)
        while True:
            job, changed = run.job, run.changed
            if run.has_ended and not is_over(job):
                job = await self.get(job_id)
            yield JobEvent(type="done" if is_over(job) else "progress", job=job)
            if is_over(job):
                return
            if run.has_ended or self._stopping:
                raise ProblemError(
                    503, "stopping", f"job {job_id} is not worked on now; watch it again when the server has restarted"
                )
            await changed.wait()
            is_last = is_over(run.job) or run.has_ended or self._stopping
            await asyncio.sleep(0 if is_last else WATCH_SECONDS)

    def begin_stop(self) -> None:
        """Begin nothing more; end what runs, which goes on with the next start, and who watches it."""
        self._stopping = True
        for run in self._runs.values():
            run.stopped.set()
            self._interrupt(run)
            run.wake()

    async def stop(self) -> None:
        """Wait, for a while, until what ran has ended."""
        if tasks := [run.task for run in self._runs.values() if run.task]:
            await asyncio.wait(tasks, timeout=STOP_SECONDS)

    def _interrupt(self, run: JobRun) -> None:
        """End a run that is not in a thread, where it would look for the wish itself."""
        if run.task is not None and not (run.in_thread or run.is_ending):
            run.task.cancel()

    def _start(self, job: Job, owner: str) -> None:
        """Let a job begin when it is its turn; while the server stops, with the next start."""
        if self._stopping:
            return
        run = self._runs[job.id] = JobRun(job, owner)
        run.task = asyncio.create_task(self._run(run))

    async def _run(self, run: JobRun) -> None:
        try:
            report = await self._work(run)
        except (JobCancelledError, asyncio.CancelledError):
            await self._end(run, "cancelled")
        except Exception as error:  # noqa: BLE001 - it is told with the job
            await self._end(run, "failed", error=error)
        else:
            unusable = report is not None and report.skipped and not report.added + report.updated + report.unchanged
            reasons = "; ".join(item.reason for item in report.skipped[:MAX_REASONS]) if report and unusable else ""
            await self._end(run, "failed" if unusable else "succeeded", report, reasons)
        finally:
            del self._runs[run.job.id]
            self._leave_place(run.owner)
            run.has_ended = True
            run.wake()

    async def _end(
        self, run: JobRun, state: JobState, report: IngestReport | None = None, error: Exception | str = ""
    ) -> None:
        """Write down how a job has ended; where the server stops or the engine has ended, that it has not."""
        run.is_ending = True
        store, job = self._store(), run.job
        is_stop = self._stopping and state != "succeeded"
        cut_short = (is_stop or isinstance(error, EngineStoppedError)) and not run.cancelled.is_set()
        reason = error if isinstance(error, str) or cut_short else describe(error, job.id).detail

        def write() -> Job:
            if cut_short:
                return store.put_back(job.id, counts=not is_stop)
            result = report.model_dump_json() if report is not None else ""
            return store.end(job.id, state, job.progress, result=result, error=str(reason))

        try:
            run.show(await asyncio.shield(asyncio.to_thread(write)))
        except Exception:
            logger.exception("how job %s has ended could not be written down; it is begun again", job.id)
