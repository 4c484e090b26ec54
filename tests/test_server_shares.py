"""What one client asks for takes neither the threads nor the places that the others need."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from rag_helpers import make_chat_model
from server_helpers import DOCUMENTS, Running, eventually, make_config, running
from starlette.types import Message, Receive, Scope, Send

from rag.server.body_pace import BodyPace
from rag.server.ingestions import MAX_LARGE_BODIES, MAX_OWN_BODIES, SMALL_BODY_BYTES, Ingestions
from rag.server.state import MAX_UPKEEP
from rag.service import Service
from retriever.hash_embedder import HashEmbedder

FLOOD = 45  # more than there are threads for requests


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def api(tmp_path: Path, model: Path) -> Iterator[Running]:
    config = make_config(tmp_path, model)
    with Service(config, embedder=HashEmbedder()) as service, running(service) as api:
        assert api.add(*DOCUMENTS).status_code == 200
        yield api


@pytest.mark.parametrize(
    ("where", "name", "request_of"),
    [
        ("service", "delete_document", ("DELETE", "/v1/collections/docs/documents/x?purge=true", None)),
        ("service", "precompute_plan", ("GET", "/v1/collections/docs/precompute", None)),
        ("cache", "flush", ("POST", "/v1/cache/flush", {"collection": "docs"})),
    ],
)
def test_long_work_leaves_threads_to_the_others(
    api: Running, monkeypatch: pytest.MonkeyPatch, where: str, name: str, request_of: tuple[str, str, Any]
) -> None:
    release, begun = threading.Event(), []

    def hang(*_arguments: Any, **_named: Any) -> None:
        begun.append(name)
        release.wait(60)
        raise AssertionError("nobody looks at this")

    monkeypatch.setattr(api.service if where == "service" else api.service.cache, name, hang)
    method, path, body = request_of
    with httpx.Client(base_url=api.url, timeout=60, trust_env=False) as flood, ThreadPoolExecutor(FLOOD) as pool:
        sent = [pool.submit(flood.request, method, path, json=body) for _ in range(FLOOD)]
        try:
            eventually(lambda: len(begun) >= MAX_UPKEEP)
            found = api.http.post("/v1/search", json={"query": "lamp", "collection": "docs"}, timeout=20)
            assert found.status_code == 200
            assert api.http.get("/v1/collections/docs/documents", timeout=20).status_code == 200
            assert len(begun) == MAX_UPKEEP
        finally:
            release.set()
        assert {response.result().status_code for response in sent} == {500}


def test_pinning_ends_when_its_client_has_gone(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = api.service.components.worker()
    begun, ended = [], []

    async def hang(_handle: object) -> Any:
        begun.append(1)
        try:
            await asyncio.sleep(60)
            yield
        finally:
            ended.append(1)

    monkeypatch.setattr(worker, "stream", hang)
    with suppress(httpx.ReadTimeout):
        api.http.post("/v1/cache/pin", json={"collection": "docs"}, timeout=0.5)
    eventually(lambda: ended)
    assert len(begun) == 1, "the second passage is not read"
    monkeypatch.undo()
    assert api.http.post("/v1/cache/pin", json={"collection": "docs"}).json() == {"passages": 2, "left_out": 0}


def send_slowly(api: Running) -> socket.socket:
    """Begin a large body, and send no more than its first byte."""
    host, port = api.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    head = f"POST /v1/collections/slow/documents HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {SMALL_BODY_BYTES + 1}\r\n\r\n{{".encode())
    return connection


def test_who_sends_slowly_gives_up_its_place(tmp_path: Path, model: Path) -> None:
    config = make_config(tmp_path, model, server={"body_seconds": 0.5})
    with (
        Service(config, embedder=HashEmbedder()) as service,
        running(service) as api,
        ExitStack() as stack,
    ):
        slow = [stack.enter_context(send_slowly(api)) for _ in range(MAX_LARGE_BODIES)]
        large = json.dumps({"documents": DOCUMENTS}) + " " * SMALL_BODY_BYTES
        headers = {"Content-Type": "application/json"}
        sent = api.http.post("/v1/collections/docs/documents", content=large, headers=headers, timeout=20)
        assert sent.status_code == 200
        for connection in slow:
            told = b"".join(iter(lambda connection=connection: connection.recv(4096), b"")).decode()
            assert told.startswith("HTTP/1.1 408")
            assert "PREREAD_SERVER__BODY_SECONDS" in told


def test_a_body_may_take_as_long_as_it_is_large() -> None:
    """Bytes that have come give it time; what comes after the body may take any."""
    messages = [(0.2, 2**20, True)] * 3 + [(0.2, 1, False), (0.6, 0, False)]
    come = iter(messages)

    async def receive() -> Message:
        seconds, size, more = next(come)
        await asyncio.sleep(seconds)
        return {"type": "http.request", "body": bytes(size), "more_body": more}

    received: list[int] = []

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        received.extend([len((await receive())["body"]) for _ in messages])

    async def send(_message: Message) -> None:
        raise AssertionError("nothing is answered")

    asyncio.run(BodyPace(app, patience_seconds=0.5)({"type": "http"}, receive, send))
    assert received == [size for _, size, _ in messages]


def test_nobody_has_more_than_half_of_the_places_for_large_bodies() -> None:
    held: dict[str, int] = {}

    async def hold(ingestions: Ingestions, principal: str, release: asyncio.Event) -> None:
        async with ingestions.room_for({}, principal):
            held[principal] = held.get(principal, 0) + 1
            await release.wait()

    async def compete() -> None:
        ingestions, release = Ingestions(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for principal in ["greedy"] * MAX_LARGE_BODIES + ["other"]:
                tasks.create_task(hold(ingestions, principal, release))
            for _ in range(10):
                await asyncio.sleep(0)
            assert held == {"greedy": MAX_OWN_BODIES, "other": 1}
            release.set()

    asyncio.run(compete())
    assert held["greedy"] == MAX_LARGE_BODIES
