"""Jobs: accepted and done behind the answer, watched, cancelled, and taken up after a stop."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rag_helpers import make_chat_model
from server_helpers import DOCUMENTS, Running, events_of, eventually, make_config, problem_of, running

from rag import fetch
from rag.jobs import MAX_ATTEMPTS, JobStore
from rag.schemas.jobs import Job
from rag.server.ingestions import Ingestions
from rag.server.job_runner import JobRunner
from rag.service import Service
from retriever.hash_embedder import HashEmbedder
from retriever.store import Store


class GatedEmbedder(HashEmbedder):
    """Waits before it embeds documents while its gate is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def embed_documents(self, texts, headers=None):
        self.entered.release()
        assert self.gate.wait(30), "the gate stayed closed"
        return super().embed_documents(texts, headers)

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Hold ingestions up until the block ends."""
        while self.entered.acquire(blocking=False):
            pass
        self.gate.clear()
        try:
            yield
        finally:
            self.gate.set()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def embedder() -> GatedEmbedder:
    return GatedEmbedder()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, model: Path, embedder: GatedEmbedder) -> Iterator[Running]:
    config = make_config(tmp_path_factory.mktemp("data"), model, server={"max_jobs": 4, "allow_url_fetch": True})
    with Service(config, embedder=embedder) as service, running(service) as running_api:
        yield running_api


def post(api: Running, collection: str, *documents: dict, **headers: str) -> dict:
    path = f"/v1/collections/{collection}/documents?wait=false"
    response = api.http.post(path, json={"documents": list(documents)}, headers=headers)
    assert response.status_code == 202, response.text
    job: dict = response.json()
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    return job


def ended(api: Running, job: dict) -> dict:
    """Wait for a job's end by its events, and return it."""
    with api.http.stream("GET", f"/v1/jobs/{job['id']}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [event for event in events_of(response) if event[0] != ":"]
    assert [name for name, _ in events[:-1]] == ["progress"] * (len(events) - 1)
    name, data = events[-1]
    assert (name, data["type"]) == ("done", "done")
    assert api.http.get(f"/v1/jobs/{job['id']}").json() == data["job"]
    return dict(data["job"])


def test_documents_are_stored_behind_the_answer(api: Running, embedder: GatedEmbedder) -> None:
    with embedder.closed():
        job = post(api, "behind", *DOCUMENTS)
        assert (job["kind"], job["collection"], job["attempts"]) == ("ingest", "behind", 0)
        assert embedder.entered.acquire(timeout=30)
        eventually(lambda: api.http.get(f"/v1/jobs/{job['id']}").json()["state"] == "running")
        assert api.http.get("/healthz").status_code == 200
    job = ended(api, job)
    assert (job["state"], job["attempts"], job["error"]) == ("succeeded", 1, None)
    assert (job["result"]["added"], job["progress"]["done"], job["progress"]["total"]) == (2, 2, 2)
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]
    assert api.http.get("/v1/collections/behind").json()["documents"] == 2
    assert job["id"] in [item["id"] for item in api.http.get("/v1/jobs").json()["jobs"]]
    assert not list((api.service.config.data_dir / "jobs").iterdir()), "what it worked on is gone"


def test_files_come_as_a_job_too(api: Running) -> None:
    files = [("files", ("notes.md", b"# Notes\n\nSalt is sold."))]
    response = api.http.post("/v1/collections/upload/documents", params={"wait": False}, files=files)
    assert ended(api, response.json())["result"]["added"] == 1
    listed = api.http.get("/v1/collections/upload/documents").json()["documents"]
    assert [(item["uri"], item["title"]) for item in listed] == [("notes.md", "Notes")]


def test_a_job_of_which_nothing_comes_has_failed_and_says_why(api: Running) -> None:
    job = ended(api, post(api, "nothing", {"uri": "u", "text": " "}))
    assert job["state"] == "failed"
    assert "u holds no text" in job["error"]
    assert [item["uri"] for item in job["result"]["skipped"]] == ["u"]


def test_documents_of_the_web_are_fetched_where_that_is_allowed(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/v1/collections/web/documents"
    inside = {"urls": ["http://127.0.0.1:8080/a"]}
    refused = problem_of(api.http.post(path, json=inside), 422, "unusable-documents")
    assert "not a host of the internet" in refused["skipped"][0]["reason"]
    job = ended(api, api.http.post(f"{path}?wait=false", json=inside).json())
    assert (job["state"], "not a host of the internet" in job["error"]) == ("failed", True)

    monkeypatch.setattr(fetch, "_get", lambda *_: (b"<h1>Salt</h1><p>It is sold.</p>", "text/html"))
    listed = {"urls": ("list.txt", b"https://example.org/salt\nhttps://example.org/more\n")}
    sent = api.http.post(f"{path}?wait=false", files=listed, data={"metadata": '{"from": "web"}'})
    assert ended(api, sent.json())["result"]["added"] == 2
    documents = api.http.get(path).json()["documents"]
    assert [(item["uri"], item["title"], item["metadata"]) for item in documents] == [
        ("https://example.org/more", "Salt", {"from": "web"}),
        ("https://example.org/salt", "Salt", {"from": "web"}),
    ]


def test_a_running_job_is_cancelled_after_what_it_is_doing(api: Running, embedder: GatedEmbedder) -> None:
    documents = [{"uri": f"u{n}", "text": f"Bees dance {n}. " * 40} for n in range(400)]
    with embedder.closed():
        job = post(api, "cancel", *documents)
        assert embedder.entered.acquire(timeout=30)
        assert api.http.delete(f"/v1/jobs/{job['id']}").json()["state"] == "running"
    job = ended(api, job)
    assert job["state"] == "cancelled"
    assert api.http.delete(f"/v1/jobs/{job['id']}").json() == job, "it is left as it has ended"
    stored = [item for item in api.http.get("/v1/collections").json()["collections"] if item["name"] == "cancel"]
    assert not stored or stored[0]["documents"] < 400


def test_a_waiting_job_is_cancelled_at_once_and_too_many_are_refused(api: Running, embedder: GatedEmbedder) -> None:
    with embedder.closed():
        jobs = [post(api, "queue", {"uri": f"u{n}", "text": f"Bees dance {n}."}) for n in range(4)]
        assert embedder.entered.acquire(timeout=30)
        refused = api.http.post("/v1/collections/queue/documents?wait=false", json={"documents": [DOCUMENTS[0]]})
        problem_of(refused, 503, "queue-full")
        assert refused.headers["retry-after"]
        waiting = next(job for job in jobs if api.http.get(f"/v1/jobs/{job['id']}").json()["state"] == "queued")
        assert api.http.delete(f"/v1/jobs/{waiting['id']}").json()["state"] == "cancelled"
    states = sorted(ended(api, job)["state"] for job in jobs)
    assert states == ["cancelled", *["succeeded"] * 3]
    assert api.http.get("/v1/collections/queue").json()["documents"] == 3


def test_passages_are_read_ahead_and_warmed_by_jobs(api: Running) -> None:
    ended(api, post(api, "ahead", *DOCUMENTS))
    started = api.http.post("/v1/collections/ahead/precompute?wait=false")
    assert started.status_code == 202
    job = ended(api, started.json())
    assert (job["state"], job["progress"]["done"], job["progress"]["total"]) == ("succeeded", 2, 2)
    assert api.http.get("/v1/collections/ahead/precompute").json()["stored"] == 2
    api.http.post("/v1/cache/flush", json={"collection": "ahead"})
    warmed = api.http.post("/v1/cache/warm", json={"collection": "ahead"})
    assert warmed.status_code == 202
    assert ended(api, warmed.json())["state"] == "succeeded"
    held = {item["collection"]: item["blocks"] for item in api.http.get("/v1/cache").json()["collections"]}
    assert held["ahead"] > 0
    question = {"question": "Who?", "collection": "ahead"}
    answer = api.http.post("/v1/answer", json=question).json()
    assert answer["cache"]["hit_tokens"]["device"] > 0
    api.check()


def test_a_job_is_made_once_under_its_key(api: Running) -> None:
    key = {"Idempotency-Key": "job"}
    first, again = (post(api, "keyed", {"uri": "u", "text": "Owls hunt."}, **key) for _ in range(2))
    assert first["id"] == again["id"]
    ended(api, first)


def test_what_is_no_job_is_told(api: Running) -> None:
    for call in (api.http.get, api.http.delete):
        problem_of(call("/v1/jobs/none"), 404, "unknown-job")
    problem_of(api.http.get("/v1/jobs/none/events"), 404, "unknown-job")
    problem_of(api.http.post("/v1/collections/none/precompute?wait=false"), 404, "unknown-collection")


def test_jobs_go_on_after_a_stop(tmp_path: Path, model: Path) -> None:
    """The one that ran is begun again, the one that waited is begun, and no document is lost."""
    config = make_config(tmp_path, model)
    embedder = GatedEmbedder()
    with Service(config, embedder=embedder) as service, running(service) as api:
        embedder.gate.clear()
        runs = post(api, "lasting", *({"uri": f"u{n}", "text": f"Bees dance {n}. " * 30} for n in range(300)))
        waits = post(api, "lasting", {"uri": "late", "text": "Owls hunt."})
        assert embedder.entered.acquire(timeout=30)
        threading.Timer(0.5, embedder.gate.set).start()
    with Service(config, embedder=embedder) as service, running(service) as api:
        first, second = ended(api, runs), ended(api, waits)
        assert (first["state"], first["attempts"], second["state"]) == ("succeeded", 1, "succeeded")
        assert api.http.get("/v1/collections/lasting").json()["documents"] == 301


def test_jobs_that_are_watched_go_on_after_a_stop_too(tmp_path: Path, model: Path) -> None:
    """Who watches is told of the stop, which waits for connections; no job fails while it does."""
    config = make_config(tmp_path, model)
    embedder = GatedEmbedder()
    with Service(config, embedder=embedder) as service, running(service) as api:
        embedder.gate.clear()
        runs = post(api, "watched", *({"uri": f"u{n}", "text": f"Bees dance {n}. " * 30} for n in range(300)))
        waits = post(api, "watched", {"uri": "late", "text": "Owls hunt."})
        assert embedder.entered.acquire(timeout=30)
        with api.http.stream("GET", f"/v1/jobs/{waits['id']}/events") as response:
            events = events_of(response)
            assert next(events)[0] == "progress"
            api.server.should_exit = True
            eventually(lambda: api.server._state._stopping)
            embedder.gate.set()
            *_, (name, problem) = events
        assert (name, problem["status"]) == ("error", 503)
    with Service(config, embedder=embedder) as service, running(service) as api:
        first, second = ended(api, runs), ended(api, waits)
        assert (first["state"], first["attempts"], second["state"]) == ("succeeded", 1, "succeeded")
        assert api.http.get("/v1/collections/watched").json()["documents"] == 301


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with_tables = Store(tmp_path / "library.sqlite3")
    yield with_tables
    with_tables.close()


def test_a_crash_leaves_jobs_to_begin_again_until_they_are_the_suspects(tmp_path: Path, store: Store) -> None:
    """Opened again and again without an end, as after crashes."""
    jobs = JobStore(store, tmp_path / "jobs")
    waiting = jobs.add("ingest", "c", "", b"later")
    suspect = jobs.add("ingest", "c", "", b"{}")
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert jobs.begin(suspect.id).attempts == attempt
        jobs = JobStore(store, tmp_path / "jobs")
        left = [job.id for job in jobs.unfinished()]
        assert left == ([waiting.id, suspect.id] if attempt < MAX_ATTEMPTS else [waiting.id])
    ended_so = jobs.get(suspect.id)
    assert (ended_so.state, ended_so.finished_at is None) == ("interrupted", False)
    assert "stopped 3 times" in str(ended_so.error)
    assert [path.read_bytes() for path in (tmp_path / "jobs").iterdir()] == [b"later"]


def test_a_stop_that_is_not_its_doing_does_not_count(tmp_path: Path, store: Store) -> None:
    jobs = JobStore(store, tmp_path / "jobs")
    job = jobs.add("ingest", "c", "")
    for _ in range(2 * MAX_ATTEMPTS):
        jobs.begin(job.id)
        assert jobs.put_back(job.id).attempts == 0
    assert [left.id for left in jobs.unfinished()] == [job.id]


def test_the_events_of_a_slow_job_are_bridged_by_comments(tmp_path: Path, model: Path) -> None:
    embedder = GatedEmbedder()
    config = make_config(tmp_path, model, server={"ping_seconds": 0.1})
    with Service(config, embedder=embedder) as service, running(service) as api, embedder.closed():
        job = post(api, "slow", *DOCUMENTS)
        with api.http.stream("GET", f"/v1/jobs/{job['id']}/events") as response:
            names = []
            for name, _ in events_of(response):
                names.append(name)
                if names.count(":") == 3:
                    embedder.gate.set()
        assert names[-1] == "done"
        assert names.count(":") >= 3


def test_input_on_disk_is_what_was_sent(api: Running, embedder: GatedEmbedder) -> None:
    with embedder.closed():
        job = post(api, "spooled", {"uri": "u", "text": "Owls hunt.", "metadata": {"a": 1}})
        content = json.loads((api.service.config.data_dir / "jobs" / f"{job['id']}.json").read_text())
        assert content["documents"] == [{"uri": "u", "text": "Owls hunt.", "metadata": {"a": 1}}]
    ended(api, job)


def test_a_job_that_comes_before_the_old_ones_are_taken_up_is_begun_once(tmp_path: Path, model: Path) -> None:
    embedder = GatedEmbedder()
    with Service(make_config(tmp_path, model), embedder=embedder) as service:
        service.load()
        left = JobStore(service.components.library().store, tmp_path / "jobs")
        old = left.add("ingest", "c", "", b'{"documents": [{"uri": "old", "text": "Owls hunt."}]}')
        left.begin(old.id)

        async def both() -> list[Job]:
            runner = JobRunner(service, Ingestions(), 10)
            content = b'{"documents": [{"uri": "new", "text": "Bees dance."}]}'
            new, _ = await asyncio.gather(runner.submit("ingest", "c", "", content), runner.resume())
            return [[event.job async for event in runner.watch(job.id)][-1] for job in (old, new)]

        ends = asyncio.run(both())
        assert [(job.state, job.attempts) for job in ends] == [("succeeded", 2), ("succeeded", 1)]
        assert {item.uri for item in service.documents("c")} == {"old", "new"}
