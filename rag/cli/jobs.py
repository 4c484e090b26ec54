"""`rag jobs`: what a running server works on in the background; watch it, or end it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from rag.cli.failures import FAILED
from rag.cli.options import AsJson, config_of
from rag.cli.output import job_progress, number, print_json, print_table, printable

if TYPE_CHECKING:
    from rag.job_operations import RemoteJobs
    from rag.schemas.jobs import Job, JobProgress

__all__ = ["app"]

app = typer.Typer(
    help="List, follow and end jobs of the running server: ingestions, and passages that are read ahead.",
    no_args_is_help=True,
)

JobId = Annotated[str, typer.Argument(metavar="ID", help="Its id, as `rag jobs list` shows it.")]


@app.callback()
def _group() -> None:
    """List, follow and end jobs of the running server."""


@app.command("list")
def list_jobs(context: typer.Context, as_json: AsJson = False) -> None:
    """List the latest jobs, the latest first."""
    with _jobs(context) as jobs:
        found = jobs.list()
    if as_json:
        print_json(found)
        return
    columns = ("id", "kind", "collection", "state", "done", "created")
    rows = [(job.id, job.kind, job.collection, job.state, _done(job.progress), job.created_at) for job in found.jobs]
    print_table(columns, rows)


@app.command("show")
def show(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Show a job as it is now, with what it did and why it failed."""
    with _jobs(context) as jobs:
        job = jobs.get(job_id)
    if as_json:
        print_json(job)
        return
    facts = job.model_dump(exclude={"progress", "result"}, exclude_none=True)
    rows = [*facts.items(), ("done", _done(job.progress))]
    if job.result is not None:
        counts = job.result.model_dump(include={"added", "updated", "unchanged", "passages"})
        rows.append(("result", ", ".join(f"{number(count)} {name}" for name, count in counts.items())))
        rows += [("skipped", f"{item.uri}: {item.reason}") for item in job.result.skipped]
    print_table(("", "job"), rows)


@app.command("follow")
def follow(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Watch a job to its end. Whoever stops watching leaves it running."""
    with _jobs(context) as jobs, job_progress() as show_progress:
        for job in jobs.follow(job_id):
            show_progress(job.progress)
    if as_json:
        print_json(job)
    else:
        _tell(job)
    if job.state != "succeeded":
        raise typer.Exit(FAILED)


@app.command("cancel")
def cancel(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """End a job after what it is doing right now; what it has stored stays."""
    with _jobs(context) as jobs:
        job = jobs.cancel(job_id)
    if as_json:
        print_json(job)
    else:
        _tell(job)


def _tell(job: "Job") -> None:
    print(printable(f"{job.kind} {job.collection}: {job.state}, {_done(job.progress)} done"))
    if job.error:
        print(printable(f"WARNING: {job.error}"), file=sys.stderr)


def _done(progress: "JobProgress") -> str:
    return number(progress.done) if progress.total is None else f"{number(progress.done)} of {number(progress.total)}"


@contextmanager
def _jobs(context: typer.Context) -> "Iterator[RemoteJobs]":
    from rag.connect import connect_to_server

    with connect_to_server(config_of(context)) as client:
        yield client.jobs
