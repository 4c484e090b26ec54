"""What becomes of jobs, and of those who watch them, when something comes between: stops, full disks, impatience."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from rag_helpers import make_chat_model
from server_helpers import make_config

from engine.errors import EngineStoppedError
from rag.jobs import JobStore
from rag.schemas.jobs import Job, JobEvent
from rag.server.ingestions import Ingestions
from rag.server.job_runner import JobRunner
from rag.server.problems import ProblemError
from rag.service import Service
from retriever.document import TextSource
from retriever.errors import StoreError
from retriever.hash_embedder import HashEmbedder

DOCUMENT = b'{"documents": [{"uri": "u", "text": "Owls hunt."}]}'


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    model = make_chat_model(tmp_path / "tiny")
    with Service(make_config(tmp_path / "data", model), embedder=HashEmbedder()) as made:
        yield made


def runner_of(service: Service, max_jobs: int = 10) -> JobRunner:
    return JobRunner(service, Ingestions(), max_jobs)


def store_of(service: Service) -> JobStore:
    return JobStore(service.components.library().store, service.config.data_dir / "jobs")


async def watched(runner: JobRunner, job_id: str) -> tuple[list[JobEvent], ProblemError | None]:
    """Return the events of a job, and what they ended with where that was no end of the job."""
    events: list[JobEvent] = []
    try:
        async with asyncio.timeout(20):
            async for event in runner.watch(job_id):
                events.append(event)  # noqa: PERF401 - those before an error are wanted
    except ProblemError as problem:
        return events, problem
    return events, None


def test_a_job_whose_engine_ends_is_begun_again_and_counts_as_an_attempt(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ended(_collection: str) -> AsyncIterator[Any]:
        raise EngineStoppedError("the engine has stopped")
        yield

    monkeypatch.setattr(service, "precompute_async", ended)

    async def scenario() -> None:
        runner = runner_of(service)
        job = await runner.submit("precompute", "c", "")
        events, problem = await watched(runner, job.id)
        assert problem is not None
        assert events[-1].job.state == "queued"

    asyncio.run(scenario())
    assert [(job.state, job.attempts, job.error) for job in store_of(service).unfinished()] == [("queued", 1, None)]


def test_a_stop_ends_what_waits_and_runs_and_nothing_begins_meanwhile(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def endless(_collection: str) -> AsyncIterator[Any]:
        await asyncio.sleep(60)
        yield

    monkeypatch.setattr(service, "precompute_async", endless)

    async def scenario() -> None:
        runner = runner_of(service)
        job = await runner.submit("precompute", "c", "")
        watching = asyncio.create_task(watched(runner, job.id))
        while (await runner.get(job.id)).state != "running":
            await asyncio.sleep(0.01)
        runner.begin_stop()
        late = await runner.submit("ingest", "c", "", DOCUMENT)
        await runner.stop()
        events, problem = await watching
        assert problem is not None
        assert problem.status_code == 503
        assert events[-1].job.state in ("running", "queued")
        assert (await runner.get(late.id)).state == "queued"

    asyncio.run(scenario())
    assert [(job.kind, job.attempts) for job in store_of(service).unfinished()] == [("precompute", 0), ("ingest", 0)]


def test_who_watches_a_job_whose_end_cannot_be_written_is_told_so(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(JobStore, "end", full)

    async def scenario() -> None:
        runner = runner_of(service)
        job = await runner.submit("ingest", "c", "", DOCUMENT)
        for _ in range(2):  # while it runs, and afterwards
            _, problem = await watched(runner, job.id)
            assert problem is not None
            assert "watch it again" in problem.detail

    asyncio.run(scenario())
    assert "could not be written down" in caplog.text


def test_a_job_that_is_cancelled_twice_ends_once_and_is_seen_to_end(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, end = threading.Event(), JobStore.end

    def slow(*args: Any, **more: Any) -> Any:
        assert written.wait(20)
        return end(*args, **more)

    monkeypatch.setattr(JobStore, "end", slow)

    async def endless(_collection: str) -> AsyncIterator[Any]:
        await asyncio.sleep(60)
        yield

    monkeypatch.setattr(service, "precompute_async", endless)

    async def scenario() -> None:
        runner = runner_of(service)
        job = await runner.submit("precompute", "c", "")
        watching = asyncio.create_task(watched(runner, job.id))
        while (await runner.get(job.id)).state != "running":
            await asyncio.sleep(0.01)
        for _ in range(2):
            await runner.cancel(job.id)
        written.set()
        events, problem = await watching
        assert problem is None
        assert (events[-1].type, events[-1].job.state) == ("done", "cancelled")

    asyncio.run(scenario())


def test_jobs_that_come_together_do_not_get_the_same_place_and_one_key_does_not_get_all(service: Service) -> None:
    async def scenario() -> list[int | str]:
        runner = runner_of(service, max_jobs=8)
        runner.begin_stop()  # so that none ends
        sent = [("one", 6), ("", 5), ("two", 3)]
        owners = [owner for owner, times in sent for _ in range(times)]
        wanted = [runner.submit("ingest", "c", owner, DOCUMENT) for owner in owners]
        outcomes = await asyncio.gather(*wanted, return_exceptions=True)
        return [item.status_code if isinstance(item, ProblemError) else "accepted" for item in outcomes]

    assert asyncio.run(scenario()) == [
        *["accepted"] * 2,
        *[429] * 4,
        *["accepted"] * 5,
        *["accepted", 503, 503],
    ]

    async def after_a_restart() -> None:
        runner = runner_of(service, max_jobs=8)
        with pytest.raises(ProblemError) as full:
            await runner.submit("ingest", "c", "one", DOCUMENT)
        assert full.value.status_code == 503
        for job in store_of(service).latest():
            await watched(runner, job.id)
        for owner in ("one", "one", "two", "two"):
            await runner.submit("ingest", "c", owner, DOCUMENT)
        runner.begin_stop()
        await runner.stop()

    asyncio.run(after_a_restart())


def test_jobs_of_others_do_not_hide_ones_own(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag.jobs.MAX_LISTED", 3)
    store = store_of(service)
    mine = store.add("ingest", "mine", "me", DOCUMENT)
    for _ in range(4):
        store.add("ingest", "other", "somebody", DOCUMENT)
    assert [job.id for job in asyncio.run(runner_of(service).latest({"mine", "none"}))] == [mine.id]
    assert [job.collection for job in asyncio.run(runner_of(service).latest())] == ["other"] * 3
    assert asyncio.run(runner_of(service).latest(frozenset())) == []


def test_a_job_does_not_tell_of_the_collections_of_others(service: Service) -> None:
    service.ingest("secret", [TextSource("u", "Owls hunt.")])

    async def scenario() -> str | None:
        runner = runner_of(service)
        job = await runner.submit("precompute", "gone", "one")
        events, _ = await watched(runner, job.id)
        return events[-1].job.error

    error = asyncio.run(scenario())
    assert error is not None
    assert "gone" in error
    assert "secret" not in error


def test_urls_of_a_job_are_fetched_where_that_is_still_allowed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[object] = []
    monkeypatch.setattr("rag.fetch._get", lambda *given: fetched.append(given) or (b"<p>Salt.</p>", "text/html"))

    async def scenario() -> Job:
        runner = runner_of(service)
        job = await runner.submit("ingest", "c", "", b'{"urls": ["https://example.org/salt"]}')
        events, _ = await watched(runner, job.id)
        return events[-1].job

    job = asyncio.run(scenario())
    assert (job.state, "fetches nothing" in str(job.error), fetched) == ("failed", True, [])


def test_jobs_that_ended_long_ago_are_forgotten_while_the_server_runs(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rag.jobs.KEPT_JOBS", 2)
    store = store_of(service)
    first, *others = (store.add("ingest", "c", "", DOCUMENT) for _ in range(5))
    for job in others:
        store.begin(job.id)
        store.end(job.id, "succeeded", job.progress)
    assert store.end(first.id, "succeeded", first.progress).state == "succeeded", "the last to end is kept"
    assert {job.id for job in store.latest()} == {first.id, others[-1].id}
