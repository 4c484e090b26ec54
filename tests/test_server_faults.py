"""What clients see when something goes wrong: steps that fail or hang, deaf readers, deadlines, the server's end."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from rag_helpers import make_chat_model
from server_helpers import DOCUMENTS, QUESTION, Running, events_of, eventually, make_config, problem_of, running

from rag.components import QUESTIONS_AT_ONCE
from rag.server import watchdog
from rag.server.deadlines import HEADER
from rag.server.running import listen
from rag.service import Service
from retriever.hash_embedder import HashEmbedder

CHILD = Path(__file__).with_name("server_child.py")
LONG = QUESTION | {"max_tokens": 3000, "extractive": False, "stream": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("models") / "tiny")


@contextmanager
def serving(tmp_path: Path, model: Path, *, server: dict | None = None, **engine: Any) -> Iterator[Running]:
    settings = {"ping_seconds": 0.05, "shutdown_seconds": 0.3, **(server or {})}
    config = make_config(tmp_path, model, server=settings, **engine)
    with Service(config, embedder=HashEmbedder()) as service, running(service) as api:
        assert api.add(*DOCUMENTS).status_code == 200
        yield api


@pytest.fixture
def api(tmp_path: Path, model: Path) -> Iterator[Running]:
    with serving(tmp_path, model) as running_api:
        yield running_api


def on_engine(api: Running, function: Callable[[Any], Any]) -> Any:
    return api.service.components.worker().call(function).result(30)


def fail_steps_with(api: Running, monkeypatch: pytest.MonkeyPatch, token: int) -> None:
    """Make the model fail whenever it reads a token."""

    def install(engine: Any) -> None:
        original = engine.runner.run

        def run(batch: Any) -> Any:
            if token in batch.token_ids.tolist():
                raise RuntimeError("a bit has flipped")
            return original(batch)

        monkeypatch.setattr(engine.runner, "run", run)

    on_engine(api, install)


def test_a_step_that_fails_costs_the_one_who_is_to_blame(
    api: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Both are answered in the same steps: one client hears a clear error, the other gets its whole answer."""
    body = QUESTION | {"max_tokens": 300, "extractive": False}
    whole = api.http.post("/v1/answer", json=body).json()["answer"]
    poison = api.service.components.tokenizer().encode("~")[0]
    fail_steps_with(api, monkeypatch, poison)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: api.http.post("/v1/answer", json=body))
        eventually(lambda: api.stats().running == 1)
        problem = problem_of(api.http.post("/v1/answer", json=body | {"question": "Is ~ a lamp?"}), 500, "step-failed")
        assert other.result().json()["answer"] == whole
    assert "a bit has flipped" not in problem["detail"], "reasons are for the log"
    assert "ask again" in problem["detail"]
    assert api.http.get("/readyz").status_code == 200
    with api.http.stream("POST", "/v1/answer", json=body | {"question": "Is ~ a lamp?", "stream": True}) as response:
        *_, (name, told) = events_of(response)
    assert (name, told["type"].rpartition(":")[2]) == ("error", "step-failed")
    api.check()


def test_a_server_whose_steps_all_fail_is_not_ready_and_lives(
    api: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("engine.worker.IDLE_SECONDS", 0.02)
    with monkeypatch.context() as patched:
        on_engine(api, lambda engine: patched.setattr(engine.runner, "run", lambda batch: 1 // 0))
        for _ in range(3):
            problem_of(api.http.post("/v1/answer", json=QUESTION), 500, "step-failed")
        problem = problem_of(api.http.get("/readyz"), 503, "not-ready")
        assert "fails at every step" in problem["detail"]
        problem_of(api.http.post("/v1/answer", json=QUESTION), 503, "not-ready")
        assert api.http.get("/livez").json() == {"status": "alive"}
    eventually(lambda: api.http.get("/readyz").status_code == 200)
    assert api.http.post("/v1/answer", json=QUESTION).status_code == 200


def test_an_engine_that_hangs_is_told_of_and_the_server_says_that_it_does_not_live(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watchdog, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(watchdog.watch, "__kwdefaults__", {"poll_seconds": 0.02})
    release = threading.Event()

    def hang_here(_engine: Any) -> None:
        release.wait(30)

    with serving(tmp_path, model, server={"stall_seconds": 0.5}) as api:
        assert api.http.get("/livez").status_code == 200
        api.service.components.worker().call(hang_here)
        eventually(lambda: api.http.get("/livez").status_code == 503)
        problem_of(api.http.get("/livez"), 503, "not-alive")
        problem_of(api.http.get("/readyz"), 503, "not-ready")
        assert api.http.get("/healthz").json()["ready"] is False
        eventually(lambda: "hang_here" in caplog.text)
        release.set()
        eventually(lambda: api.http.get("/readyz").status_code == 200)
        eventually(lambda: "the engine goes on" in caplog.text)
    assert sum("What runs" in record.getMessage() for record in caplog.records) == 1


def test_health_is_answered_while_every_thread_is_busy(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither route needs one of the threads that questions, uploads and all the rest are worked on in."""
    release = threading.Event()
    blocked: list[int] = []
    preparation = api.service.pipeline.preparation
    original = preparation.prepare

    def slow(*args: Any) -> Any:
        blocked.append(1)
        release.wait(30)
        return original(*args)

    async def block_the_default_threads() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(64):
            loop.run_in_executor(None, release.wait, 30)

    monkeypatch.setattr(preparation, "prepare", slow)
    with ThreadPoolExecutor(QUESTIONS_AT_ONCE) as pool:
        asked = [pool.submit(api.http.post, "/v1/answer", json=QUESTION) for _ in range(QUESTIONS_AT_ONCE)]
        eventually(lambda: len(blocked) == QUESTIONS_AT_ONCE)
        loop = api.server._preparing.get_loop()
        asyncio.run_coroutine_threadsafe(block_the_default_threads(), loop).result(30)
        for route in ("/livez", "/readyz", "/healthz"):
            assert api.http.get(route).status_code == 200
        release.set()
        assert {answer.result().status_code for answer in asked} == {200}


def test_questions_that_wait_to_be_prepared_are_few_and_have_deadlines(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, begun = threading.Event(), []
    with serving(tmp_path, model, max_share_waiting=2) as api:
        preparation, threads = api.service.pipeline.preparation, api.service.components.threads
        original = preparation.prepare

        def slow(*args: Any) -> Any:
            begun.append(1)
            release.wait(60)
            return original(*args)

        monkeypatch.setattr(preparation, "prepare", slow)
        late = problem_of(api.http.post("/v1/answer", json=QUESTION, headers={HEADER: "0.3"}), 504, "deadline-exceeded")
        assert "ask again" in late["detail"]
        with ThreadPoolExecutor(QUESTIONS_AT_ONCE + 1) as pool:
            try:
                asked = [pool.submit(api.http.post, "/v1/answer", json=QUESTION) for _ in range(QUESTIONS_AT_ONCE + 1)]
                eventually(lambda: len(begun) == QUESTIONS_AT_ONCE and len(threads._waiting.get("", ())) == 2)
                problem_of(api.http.post("/v1/answer", json=QUESTION, timeout=20), 429, "queue-full")
            finally:
                on_engine(api, lambda engine: setattr(engine.scheduler, "_max_share_waiting", 99))  # it has its own
                release.set()
            assert {answer.result().status_code for answer in asked} == {200}
        api.check()


def test_a_deadline_ends_an_answer_and_frees_its_blocks(api: Running) -> None:
    body = LONG | {"stream": False}
    problem = problem_of(api.http.post("/v1/answer", json=body, headers={HEADER: "0.3"}), 504, "deadline-exceeded")
    assert "ask again" in problem["detail"]
    with api.http.stream("POST", "/v1/answer", json=LONG, headers={HEADER: "0.5"}) as response:
        *_, (name, told) = events_of(response)
    assert (name, told["status"]) == ("error", 504)
    for wrong in ("soon", "0", "-1", "nan", "inf"):
        problem_of(api.http.post("/v1/answer", json=QUESTION, headers={HEADER: wrong}), 422, "invalid-request")
    assert api.http.post("/v1/answer", json=QUESTION, headers={HEADER: "30"}).status_code == 200
    api.check()
    stats = api.stats()
    assert stats.free_blocks + stats.cached_blocks == stats.num_blocks


def test_the_server_has_a_deadline_of_its_own(tmp_path: Path, model: Path) -> None:
    with serving(tmp_path, model, server={"answer_seconds": 0.3}) as api:
        body = LONG | {"stream": False}
        for headers in ({}, {HEADER: "1000"}):
            problem_of(api.http.post("/v1/answer", json=body, headers=headers), 504, "deadline-exceeded")


def test_a_client_that_reads_nothing_is_let_go(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for it is at most its answer; after a while that is forgotten, and its blocks are free."""

    def listen_with_small_buffers(host: str, port: int) -> socket.socket:
        listener = listen(host, port)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # connections have the listener's
        return listener

    monkeypatch.setattr("server_helpers.listen", listen_with_small_buffers)
    with serving(tmp_path, model, server={"send_seconds": 0.5, "ping_seconds": 0.01}) as api:
        host, port = api.url.removeprefix("http://").split(":")
        body = json.dumps(LONG).encode()
        head = (
            f"POST /v1/answer HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            deaf.connect((host, int(port)))
            deaf.sendall(head.encode() + body)
            eventually(lambda: api.stats().running == 1)
            eventually(lambda: len(api.server.server_state.connections) == 1, seconds=60)  # that of `api.http`
            api.check()
            received = b""
            with suppress(ConnectionResetError):
                while more := deaf.recv(65536):
                    received += more
        assert b"event: retrieval" in received
        assert b"event: done" not in received
        assert api.http.post("/v1/answer", json=QUESTION).status_code == 200
        stats = api.stats()
        assert stats.free_blocks + stats.cached_blocks == stats.num_blocks


def test_one_key_that_fills_its_share_is_refused_and_another_is_not(tmp_path: Path, model: Path) -> None:
    """Its requests wait for the one that runs; the client is told when to come back."""
    with serving(tmp_path, model, max_num_seqs=1, max_share_waiting=2) as api:
        worker = api.service.components.worker()
        endless = {"principal": "flood"}
        handles = [worker.submit_sync(_prompt(api), **endless) for _ in range(1)]
        eventually(lambda: api.stats().running == 1)
        handles += [worker.submit_sync(_prompt(api), **endless) for _ in range(2)]
        with pytest.raises(Exception, match="2 requests of yours"):
            worker.submit_sync(_prompt(api), **endless)
        assert api.http.post("/v1/answer", json=QUESTION).status_code == 200, "another's question comes first"
        for handle in handles:
            worker.cancel(handle)
        api.check()


def _prompt(api: Running) -> list[int]:
    return api.service.components.tokenizer().encode("Once upon a time " * 40)


@pytest.fixture
def spawn(tmp_path: Path, model: Path) -> Iterator[Callable[[], Any]]:
    """Starts servers of one data directory in processes of their own."""
    started: list[subprocess.Popen[str]] = []
    path = os.pathsep.join([str(CHILD.parent.parent), str(CHILD.parent), os.environ.get("PYTHONPATH", "")])

    def start() -> Any:
        command = [sys.executable, CHILD, tmp_path / "data", model, "0"]
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path})
        started.append(child)
        assert child.stderr is not None
        for line in child.stderr:
            if " at http://" in line:
                return SimpleNamespace(process=child, url=line.split(" at ")[1].split()[0])
        raise AssertionError("the server ended")

    yield start
    for child in started:
        child.kill()
        child.communicate()


def ask(url: str, **more: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/answer", json=QUESTION | more, trust_env=False, timeout=60)


@pytest.mark.slow
def test_sigterm_during_answers_saves_their_kv_and_refuses_new_ones(spawn: Callable[[], Any]) -> None:
    """What runs ends as usual, who comes later on a connection that is open is told to go; nothing is read twice."""
    server = spawn()
    documents = {"documents": DOCUMENTS}
    httpx.post(f"{server.url}/v1/collections/docs/documents", json=documents, trust_env=False).raise_for_status()
    with httpx.stream("POST", f"{server.url}/v1/answer", json=LONG | {"max_tokens": 150}, trust_env=False) as response:
        events = events_of(response)
        assert next(events)[0] == "retrieval"
        server.process.send_signal(signal.SIGTERM)
        *_, (name, _) = events
    assert name == "done"
    assert server.process.wait(60) == 0
    again = spawn()
    cache = ask(again.url).json()["cache"]
    assert cache["hit_tokens"]["disk"] > 0, "what was read for the answer is on disk"
    again.process.send_signal(signal.SIGTERM)
    assert again.process.wait(60) == 0


@pytest.mark.slow
def test_sigkill_during_answers_loses_nothing_that_was_acknowledged(spawn: Callable[[], Any]) -> None:
    server = spawn()
    documents = {"documents": DOCUMENTS}
    httpx.post(f"{server.url}/v1/collections/docs/documents", json=documents, trust_env=False).raise_for_status()
    before = ask(server.url).json()["answer"]
    with httpx.stream("POST", f"{server.url}/v1/answer", json=LONG, trust_env=False) as response:
        events = events_of(response)
        assert next(events)[0] == "retrieval"
        server.process.send_signal(signal.SIGKILL)
        with pytest.raises(httpx.TransportError):
            list(events)
    server.process.wait(60)
    began = time.monotonic()
    again = spawn()
    assert time.monotonic() - began < 60
    listed = httpx.get(f"{again.url}/v1/collections/docs/documents", trust_env=False).json()["documents"]
    assert {item["uri"] for item in listed} == {item["uri"] for item in DOCUMENTS}
    assert ask(again.url).json()["answer"] == before
