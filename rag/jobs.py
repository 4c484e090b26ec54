"""Jobs as they are kept: a row each in the library's database, and a file with what they work on.

A job is accepted once both are on disk. After a stop or a crash it is begun again, since all that jobs do can be done
twice; one that takes the server down each time is left alone after a few attempts.
"""

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from uuid import uuid4

from rag.errors import UnknownJobError
from rag.schemas.jobs import Job, JobKind, JobProgress, JobState
from retriever.store import Store

__all__ = ["MAX_ATTEMPTS", "Also", "JobStore"]

Also = Callable[[Job, sqlite3.Connection], None]

MAX_ATTEMPTS = 3
KEPT_JOBS = 1000  # that have ended
MAX_LISTED = 200
INTERRUPTED = (
    f"the server stopped {MAX_ATTEMPTS} times while this job ran, which may be its doing; what was stored stays: send "
    "the other documents again, fewer at once, to find out which one it is"
)
COLUMNS = "id, kind, collection, state, attempts, progress, result, error, created_at, started_at, finished_at"


class JobStore:
    """The jobs of one library; every method may be called from any thread.

    Args:
        store: the library's database.
        folder: where inputs are kept; made when it is missing.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, kind: JobKind, collection: str, owner: str, content: bytes = b"", also: Also | None = None) -> Job:
        """Accept a job: when this returns, a crash does not lose it.

        Args:
            kind: what it does.
            collection: with what.
            owner: a principal.
            content: what it works on.
            also: writes what is to be written with the job, in the same transaction.
        """
        job_id = uuid4().hex
        try:
            if content:
                self._write(job_id, content)
            with self._store.write() as writer:
                writer.connection.execute(
                    "INSERT INTO jobs (id, kind, collection, owner, state) VALUES (?, ?, ?, ?, 'queued')",
                    (job_id, kind, collection, owner),
                )
                statement = f"SELECT {COLUMNS} FROM jobs WHERE id = ?"  # noqa: S608 - no outside text
                job = _job(writer.connection.execute(statement, (job_id,)).fetchone())
                if also is not None:
                    also(job, writer.connection)
        except BaseException:
            self._path(job_id).unlink(missing_ok=True)
            raise
        return job

    def get(self, job_id: str) -> Job:
        """Return a job as it was when it was last written down.

        Raises:
            UnknownJobError: there is none of this id.
        """
        with self._store.read() as reader:
            statement = f"SELECT {COLUMNS} FROM jobs WHERE id = ?"  # noqa: S608 - no outside text
            row = reader.connection.execute(statement, (job_id,)).fetchone()
        if row is None:
            raise UnknownJobError(f"there is no job {job_id!r}; list the jobs: those that ended long ago are forgotten")
        return _job(row)

    def latest(self, collections: Iterable[str] | None = None) -> list[Job]:
        """Return jobs of these collections, or of every one, the latest first."""
        named = None if collections is None else json.dumps(list(collections))
        with self._store.read() as reader:
            wanted = "?1 IS NULL OR collection IN (SELECT value FROM json_each(?1))"
            statement = f"SELECT {COLUMNS} FROM jobs WHERE {wanted} ORDER BY number DESC LIMIT ?2"  # noqa: S608
            rows = reader.connection.execute(statement, (named, MAX_LISTED))
            return [_job(row) for row in rows]

    def owners(self) -> dict[str, str]:
        """Return whose the jobs are that have not ended, by id."""
        with self._store.read() as reader:
            return dict(reader.connection.execute("SELECT id, owner FROM jobs WHERE state IN ('queued', 'running')"))

    def content(self, job_id: str) -> bytes:
        """Return what a job works on.

        Raises:
            UnknownJobError: it is gone.
        """
        try:
            return self._path(job_id).read_bytes()
        except FileNotFoundError as error:
            raise UnknownJobError(f"the documents of job {job_id} are gone; send them again") from error

    def begin(self, job_id: str) -> Job:
        """Write down that a job runs."""
        return self._change(
            job_id,
            "UPDATE jobs SET state = 'running', attempts = attempts + 1, "
            "started_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') WHERE id = ? AND state = 'queued'",
        )

    def put_back(self, job_id: str, *, counts: bool = False) -> Job:
        """Write down that a job was cut short; it `counts` as an attempt where that may be the job's doing."""
        statement = "UPDATE jobs SET state = 'queued', attempts = attempts - ? WHERE id = ? AND state = 'running'"
        return self._change(job_id, statement, 0 if counts else 1)

    def end(self, job_id: str, state: JobState, progress: JobProgress, *, result: str = "", error: str = "") -> Job:
        """Write down how a job has ended; what it worked on is removed."""
        values = (state, progress.model_dump_json(), result or None, error or None)
        with self._store.write() as writer:
            writer.connection.execute(
                "UPDATE jobs SET state = ?, progress = ?, result = ?, error = ?, "
                "finished_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') WHERE id = ?",
                (*values, job_id),
            )
            _trim(writer.connection)
        job = self.get(job_id)
        self._path(job_id).unlink(missing_ok=True)
        return job

    def unfinished(self) -> list[Job]:
        """Return the jobs that are to be begun, or begun again, in their order; tidy up after all others."""
        with self._store.write() as writer:
            connection = writer.connection
            connection.execute(
                "UPDATE jobs SET state = 'interrupted', error = ?, "
                "finished_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') "
                "WHERE state IN ('queued', 'running') AND attempts >= ?",
                (INTERRUPTED, MAX_ATTEMPTS),
            )
            connection.execute("UPDATE jobs SET state = 'queued' WHERE state = 'running'")
            _trim(connection)
            statement = f"SELECT {COLUMNS} FROM jobs WHERE state = 'queued' ORDER BY number"  # noqa: S608
            jobs = [_job(row) for row in connection.execute(statement)]
        needed = {self._path(job.id) for job in jobs}
        for path in self._folder.iterdir():
            if path not in needed:
                path.unlink(missing_ok=True)
        return jobs

    def _change(self, job_id: str, statement: str, *values: object) -> Job:
        with self._store.write() as writer:
            writer.connection.execute(statement, (*values, job_id))
        return self.get(job_id)

    def _path(self, job_id: str) -> Path:
        return self._folder / f"{job_id}.json"

    def _write(self, job_id: str, content: bytes) -> None:
        path = self._path(job_id)
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _trim(connection: sqlite3.Connection) -> None:
    """Forget jobs that ended long ago: those that ended last are kept."""
    connection.execute(
        """DELETE FROM jobs WHERE number IN (
               SELECT number FROM jobs WHERE finished_at IS NOT NULL
               ORDER BY finished_at DESC, number DESC LIMIT -1 OFFSET ?)""",
        (KEPT_JOBS,),
    )


def _job(row: sqlite3.Row | tuple[object, ...]) -> Job:
    names = COLUMNS.split(", ")
    return Job.model_validate(dict(_parsed(names, row)))


def _parsed(names: list[str], row: sqlite3.Row | tuple[object, ...]) -> Iterator[tuple[str, object]]:
    for name, value in zip(names, row, strict=True):
        is_json = name in ("progress", "result") and isinstance(value, str)
        yield name, json.loads(str(value)) if is_json else value
