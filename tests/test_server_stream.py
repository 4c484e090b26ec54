"""Streamed answers, and clients that leave: what runs for nobody ends, and its blocks come back."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from rag_helpers import LIGHTHOUSE, make_chat_model
from server_helpers import (
    DOCUMENTS,
    QUESTION,
    Running,
    events_of,
    eventually,
    make_config,
    problem_of,
    running,
)

from rag.client import Client
from rag.errors import ServerError
from rag.schemas import Answer, AnswerRequest
from rag.service import Service
from retriever.hash_embedder import HashEmbedder

LONG = QUESTION | {"max_tokens": 3000, "extractive": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def api(tmp_path: Path, model: Path) -> Iterator[Running]:
    """A server that runs one answer at a time and lets one more wait."""
    server = {"ping_seconds": 0.05, "shutdown_seconds": 0.3}
    config = make_config(tmp_path, model, server=server, max_num_seqs=1, max_num_waiting=1)
    with Service(config, embedder=HashEmbedder()) as service, running(service) as running_api:
        assert running_api.add(*DOCUMENTS).status_code == 200
        yield running_api


def test_a_stream_tells_the_answer_as_it_is_written(api: Running) -> None:
    body = QUESTION | {"max_tokens": 30, "stream": True, "extractive": True}
    with api.http.stream("POST", "/v1/answer", json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        events = [event for event in events_of(response) if event[0] != ":"]
    names = [name for name, _ in events]
    assert (names[0], names[-2], names[-1]) == ("retrieval", "usage", "done")
    assert set(names[1:-2]) == {"delta", "citation"}
    assert all(data["type"] == name for name, data in events), "the data tells the event's name too"
    answer = Answer.model_validate(events[-1][1]["answer"])
    assert events[-2][1]["usage"] == answer.usage.model_dump()
    assert "".join(data["text"] for name, data in events if name == "delta") == answer.answer
    assert [data["citation"] for name, data in events if name == "citation"] == [
        citation.model_dump() for citation in answer.citations
    ]
    assert events[0][1]["sources"] == [source.model_dump(mode="json") for source in answer.sources]
    assert LIGHTHOUSE in [source.text for source in answer.sources]
    whole = Answer.model_validate(api.http.post("/v1/answer", json=body | {"stream": False}).json())
    assert (whole.answer, whole.citations) == (answer.answer, answer.citations)


def test_a_long_silence_is_bridged_by_comments(api: Running) -> None:
    with api.http.stream("POST", "/v1/answer", json=QUESTION | {"stream": True, "max_tokens": 500}) as response:
        events = events_of(response)
        assert next(events)[0] == "retrieval"
        api.service.components.worker().call(lambda _engine: time.sleep(0.5))
        names = [name for name, _ in events]
    assert names.count(":") >= 3
    assert names[-1] == "done"


def test_a_reader_that_leaves_a_stream_frees_its_blocks(api: Running) -> None:
    with api.http.stream("POST", "/v1/answer", json=LONG | {"stream": True}) as response:
        events = events_of(response)  # dropped, it would close the response
        names = [next(events)[0] for _ in range(4)]
        assert names[0] == "retrieval"
        assert api.stats().running == 1
    _check_cancelled(api)


@pytest.mark.parametrize("stream", [False, True])
def test_a_connection_that_breaks_frees_its_blocks(api: Running, stream: bool) -> None:
    """While nothing is sent either: a JSON answer, and a stream whose engine is busy elsewhere."""
    host, port = api.url.removeprefix("http://").split(":")
    body = json.dumps(LONG | {"stream": stream}).encode()
    head = (
        f"POST /v1/answer HTTP/1.1\r\nHost: {host}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)
        eventually(lambda: api.stats().running == 1)
    _check_cancelled(api)


def test_one_that_leaves_the_queue_is_forgotten(api: Running) -> None:
    with begun(api):
        with begun(api):
            assert (api.stats().running, api.stats().waiting) == (1, 1)
        eventually(lambda: api.stats().waiting == 0)
        assert api.stats().running == 1
    _check_cancelled(api, requests=2)


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_refuses_and_says_when_to_come_back(api: Running, stream: bool) -> None:
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(begun(api))
        refused = api.http.post("/v1/answer", json=QUESTION | {"stream": stream})
        problem_of(refused, 503, "queue-full")
        assert int(refused.headers["retry-after"]) > 0
    _check_cancelled(api, requests=2)
    assert api.http.post("/v1/answer", json=QUESTION).status_code == 200


def test_the_client_hears_of_a_stream_that_fails(api: Running) -> None:
    client = Client(api.url)
    try:
        events = client.answer(AnswerRequest(**LONG))
        assert next(events).type == "retrieval"
        api.service.components.worker().close()
        with pytest.raises(ServerError, match="the engine has stopped"):
            list(events)
        with pytest.raises(ServerError, match="readyz"):
            list(client.answer(AnswerRequest(**QUESTION)))
    finally:
        client.close()
    response = api.http.get("/readyz")
    problem_of(response, 503, "not-ready")
    assert int(response.headers["retry-after"]) > 0
    assert api.http.get("/healthz").json()["ready"] is False


def test_stopping_lets_short_answers_end_and_ends_long_ones(api: Running) -> None:
    """The one that runs is ended with an error after the time of grace; a JSON answer that waits gets a problem."""
    problems: list[dict] = []

    def wait_in_the_queue() -> None:
        problems.append(problem_of(api.http.post("/v1/answer", json=LONG), 503, "stopping"))

    with api.http.stream("POST", "/v1/answer", json=LONG | {"stream": True, "max_tokens": 4000}) as response:
        events = events_of(response)
        assert next(events)[0] == "retrieval"
        waiting = threading.Thread(target=wait_in_the_queue)
        waiting.start()
        eventually(lambda: api.stats().waiting == 1)
        api.server.should_exit = True
        *_, (name, problem) = events
    waiting.join()
    assert name == "error"
    assert problem["status"] == 503
    assert problem["type"].endswith("stopping")
    assert len(problems) == 1


@contextmanager
def begun(api: Running) -> Iterator[None]:
    """Read a long answer until it has begun; leave it when the block ends."""
    with api.http.stream("POST", "/v1/answer", json=LONG | {"stream": True}) as response:
        events = events_of(response)
        assert next(events)[0] == "retrieval"
        yield
        events.close()


def _check_cancelled(api: Running, requests: int = 1) -> None:
    """What was running is cancelled long before its end, and its blocks are free or cached."""
    eventually(lambda: api.stats().totals.cancelled == requests, seconds=5)
    stats = api.stats()
    assert stats.totals.output_tokens < 2500
    assert stats.free_blocks + stats.cached_blocks == stats.num_blocks
    api.check()
