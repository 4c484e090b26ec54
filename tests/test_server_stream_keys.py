"""Streams that stay open while the key of their reader is revoked or narrowed."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from rag_helpers import make_chat_model
from server_helpers import DOCUMENTS, QUESTION, Running, events_of, eventually, make_config, problem_of, running

from rag.schemas import PrecomputeProgress
from rag.schemas.keys import AccessRequest, CreatedKey, KeyRequest
from rag.server.feed import EventFeed
from rag.server.problems import ProblemError
from rag.server.sse import EventStream, NamedFrames
from rag.service import Service
from retriever.hash_embedder import HashEmbedder


async def endless(_collection: str) -> AsyncIterator[PrecomputeProgress]:
    yield PrecomputeProgress(passages=0, total=2, tokens=0, seconds=0)
    await asyncio.sleep(20)  # longer than the test needs


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that reads ahead without an end; the owner's token opens it."""
    folder: Path = tmp_path_factory.mktemp("data")
    config = make_config(folder / "data", make_chat_model(folder / "tiny"), server={"ping_seconds": 0.05})
    with (
        pytest.MonkeyPatch.context() as patched,
        Service(config, embedder=HashEmbedder()) as service,
        running(service) as server,
    ):
        assert server.add(*DOCUMENTS).status_code == 200
        patched.setattr(service, "precompute_async", endless)
        make(server, "first", "admin:*")
        yield server


def make(api: Running, name: str, *scopes: str) -> CreatedKey:
    return api.service.keys.create(KeyRequest(name=name, scopes=list(scopes)))


def bearer(key: CreatedKey) -> dict[str, str]:
    return {"Authorization": f"Bearer {key.key}"}


def test_who_watches_a_job_is_told_when_the_key_is_revoked(api: Running) -> None:
    writer, reader = make(api, "writer", "write:docs"), make(api, "reader", "read:docs")
    path = "/v1/collections/docs/precompute?wait=false"
    job = api.http.post(path, headers=bearer(writer)).json()
    eventually(lambda: api.http.get(f"/v1/jobs/{job['id']}", headers=bearer(reader)).json()["state"] == "running")
    with api.http.stream("GET", f"/v1/jobs/{job['id']}/events", headers=bearer(reader)) as response:
        events = events_of(response)
        assert next(events)[0] == "progress"
        assert next(event for event in events if event[0] == ":"), "it stays open with a key that is good"
        api.service.keys.revoke("reader")
        *_, (name, problem) = events
    assert (name, problem["status"]) == ("error", 401)
    assert "revoked" in problem["detail"]
    assert api.http.get(f"/v1/jobs/{job['id']}", headers=bearer(writer)).json()["state"] == "running"


def test_reading_ahead_ends_when_the_key_may_not_write_any_more(api: Running) -> None:
    key = make(api, "narrowed", "write:docs")
    with api.http.stream("POST", "/v1/collections/docs/precompute", headers=bearer(key)) as response:
        events = events_of(response)
        assert next(events)[0] == "progress"
        api.service.keys.set_access("docs", AccessRequest(scopes={key.id: "read"}))
        *_, (name, problem) = events
    assert (name, problem["status"]) == ("error", 403)


LONG = 3000  # tokens: more than come while a key is revoked
MODEL, SAID = "rag/docs", [{"role": "user", "content": QUESTION["question"]}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("answer", {**QUESTION, "max_tokens": LONG}),
        ("chat/completions", {"model": MODEL, "messages": SAID, "max_tokens": LONG}),
        ("chat/completions", {"model": "tiny", "messages": SAID, "max_tokens": LONG}),
        ("responses", {"model": MODEL, "input": QUESTION["question"], "max_output_tokens": LONG}),
        ("completions", {"model": "tiny", "prompt": "The lamp of", "max_tokens": LONG, "ignore_eos": True}),
    ],
    ids=["native", "chat", "bare chat", "response", "completion"],
)
def test_an_answer_ends_when_the_key_is_revoked(api: Running, path: str, body: dict) -> None:
    key = make(api, f"leaver {path} {body.get('model')}", "read:docs")
    with api.http.stream("POST", f"/v1/{path}", json={**body, "stream": True}, headers=bearer(key)) as response:
        assert response.status_code == 200, response.read()
        lines = (line for line in response.iter_lines() if line.startswith("data:"))
        next(lines)
        api.service.keys.revoke(key.id)
        *_, last = [line for line in lines if "[DONE]" not in line]
    assert "revoked" in last
    eventually(lambda: api.stats().running == 0)


def test_a_silent_stream_ends_when_the_key_is_revoked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag.server.sse.CHECK_SECONDS", 0.01)
    looks = 0

    def check() -> None:
        nonlocal looks
        looks += 1
        if looks == 5:
            raise ProblemError(401, "key-required", "the key was revoked meanwhile")

    async def read() -> list[bytes]:
        feed = EventFeed(endless("docs"))
        first = await feed.next()
        stream = EventStream(
            feed,
            first,
            NamedFrames(),
            ping_seconds=60,
            send_seconds=60,
            request_id="r",
            check=check,
        )
        frames = [frame async for frame in stream._frames(first)]
        feed.close()
        return frames

    event, error = asyncio.run(read())
    assert b"progress" in event
    assert b"event: error" in error
    assert b"revoked" in error


def test_one_key_does_not_fill_the_places_for_jobs(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.server._state.jobs, "_max_jobs", 8)
    greedy, other = make(api, "greedy", "write:docs"), make(api, "other", "write:docs")
    path = "/v1/collections/docs/precompute?wait=false"
    sent = [api.http.post(path, headers=bearer(greedy)) for _ in range(3)]
    assert [response.status_code for response in sent] == [202, 202, 429]
    problem_of(sent[2], 429, "queue-full")
    assert int(sent[2].headers["retry-after"]) > 0
    assert api.http.post(path, headers=bearer(other)).status_code == 202
    described = api.http.get("/openapi.json", headers=bearer(other)).json()["paths"]
    for route in ("collections/{collection}/documents", "collections/{collection}/precompute", "cache/warm"):
        assert "429" in described[f"/v1/{route}"]["post"]["responses"]
