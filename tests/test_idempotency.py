"""Idempotency keys when the disk is full, and after a crash: no key is lost, and nothing is done twice."""

import asyncio
import json
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel
from starlette.responses import Response

from rag.components import Once
from rag.errors import KeyInUseError, KeyReusedError
from rag.idempotency import Claim, IdempotentRequests
from rag.jobs import JobStore
from rag.schemas.jobs import Job
from rag.server.idempotent import REPLAYED, Keep, once
from retriever.errors import StoreError
from retriever.store import Store


class Done(BaseModel):
    number: int


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "library.sqlite3")
    yield opened
    opened.close()


class Requests:
    """Sends the same request under one key, to a server whose disk may be full."""

    def __init__(self, store: Store) -> None:
        self.state: Any = SimpleNamespace(idempotent_requests=Once(lambda: IdempotentRequests(store)))
        self.access: Any = SimpleNamespace(caller=SimpleNamespace(principal="me"))

    async def send(self, work: Any, *, body: bytes = b"body") -> Response:
        return await once(self.state, self.access, "key", lambda: body, work)


def fill(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    """Let no write succeed."""

    def full() -> Any:
        raise StoreError("the disk is full")

    monkeypatch.setattr(store, "write", full)


def test_work_that_fails_on_a_full_disk_frees_its_key(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = Requests(store)

    async def fail(_keep: Keep) -> tuple[int, BaseModel]:
        fill(patched, store)
        raise StoreError("the disk is full")

    async def succeed(_keep: Keep) -> tuple[int, BaseModel]:
        return 200, Done(number=1)

    for _ in range(2):
        with monkeypatch.context() as patched, pytest.raises(StoreError, match="full"):
            asyncio.run(requests.send(fail))
    assert asyncio.run(requests.send(succeed, body=b"another")).status_code == 200
    assert REPLAYED in asyncio.run(requests.send(fail, body=b"another")).headers
    with pytest.raises(KeyReusedError):
        asyncio.run(requests.send(succeed))


def test_what_was_done_is_told_though_the_answer_cannot_be_remembered(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    requests = Requests(store)

    async def work(_keep: Keep) -> tuple[int, BaseModel]:
        return 200, Done(number=1)

    with monkeypatch.context() as patched:
        fill(patched, store)
        assert asyncio.run(requests.send(work)).status_code == 200
    assert "not remembered" in caplog.text
    again = asyncio.run(requests.send(work))
    assert (again.status_code, REPLAYED in again.headers) == (200, False)


def test_a_job_and_its_answer_are_written_together_or_not_at_all(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends right after the job was accepted: whoever sends the request again gets that job."""
    jobs = JobStore(store, tmp_path / "jobs")

    async def accept(keep: Keep) -> tuple[int, BaseModel]:
        jobs.add("ingest", "c", "me", b"{}", lambda job, connection: keep(202, job, connection))
        raise SystemError("the process ends")

    with pytest.raises(SystemError):
        asyncio.run(Requests(store).send(accept))
    again = asyncio.run(Requests(store).send(accept))
    assert (again.status_code, REPLAYED in again.headers) == (202, True)
    assert [job.id for job in jobs.latest()] == [json.loads(bytes(again.body))["id"]]

    def full(_job: Job, _connection: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(StoreError):
        jobs.add("ingest", "c", "me", b"{}", full)
    assert len(jobs.latest()) == len(list((tmp_path / "jobs").iterdir())) == 1


def test_a_key_is_in_use_until_it_is_released(store: Store) -> None:
    remembered, claim = IdempotentRequests(store), Claim("me", "key", b"body")
    remembered.begin(claim)
    with pytest.raises(KeyInUseError):
        remembered.begin(Claim("me", "key", b"body"))
    with pytest.raises(KeyReusedError):
        remembered.begin(Claim("me", "key", b"another"))
    remembered.begin(Claim("you", "key", b"another"))
    remembered.release(claim)
    remembered.begin(Claim("me", "key", b"another"))


def test_a_request_that_ends_while_its_key_is_looked_up_frees_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    requests, looking = Requests(store), threading.Event()

    async def work(_keep: Keep) -> tuple[int, BaseModel]:
        return 200, Done(number=1)

    def slow(*_: object) -> None:
        assert looking.wait(20)

    async def scenario() -> int:
        with monkeypatch.context() as patched:
            patched.setattr(IdempotentRequests, "find", slow)
            asking = asyncio.create_task(requests.send(work))
            await asyncio.sleep(0.2)
            asking.cancel()
            looking.set()
            with pytest.raises(asyncio.CancelledError):
                await asking
        return (await requests.send(work)).status_code

    assert asyncio.run(scenario()) == 200
