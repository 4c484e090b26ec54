"""The HTTP API where all goes well, on a real server with a tiny model."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rag_helpers import HARBOUR, LIGHTHOUSE, make_chat_model, run_cli
from server_helpers import DOCUMENTS, QUESTION, Running, eventually, make_config, running, shape

from rag.client import Client
from rag.config import RetrieverSettings
from rag.operations import final_answer
from rag.schemas import (
    Answer,
    AnswerRequest,
    CollectionInfo,
    DeletedDocument,
    DocumentWithPassages,
    SearchRequest,
    SearchResult,
)
from rag.server import document_bodies
from rag.server.ingestions import MAX_LARGE_BODIES, SMALL_BODY_BYTES
from rag.service import Service
from retriever.document import BytesSource, TextSource
from retriever.hash_embedder import HashEmbedder
from retriever.ingest import Stage


class GatedEmbedder(HashEmbedder):
    """Waits before it embeds documents, and remembers how many threads did so at once."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.inside = self.most = 0
        self._lock = threading.Lock()

    def embed_documents(self, texts, headers=None):
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.entered.release()
        assert self.gate.wait(30), "the gate stayed closed"
        with self._lock:
            self.inside -= 1
        return super().embed_documents(texts, headers)


@pytest.fixture(scope="module")
def embedder() -> GatedEmbedder:
    return GatedEmbedder()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, embedder: GatedEmbedder) -> Iterator[Running]:
    model = make_chat_model(tmp_path_factory.mktemp("models") / "tiny")
    config = make_config(tmp_path_factory.mktemp("data"), model)
    with Service(config, embedder=embedder) as service, running(service) as running_api:
        assert running_api.add(*DOCUMENTS).status_code == 200
        yield running_api


def test_health_tells_what_runs(api: Running) -> None:
    health = api.http.get("/healthz").json()
    assert health["status"] == "ok"
    assert health["ready"] is True
    assert health["model"] == api.service.config.model
    assert set(health) == {"status", "ready", "model", "embedder", "version", "kv_store", "shadow"}
    assert health["kv_store"]["bytes_budget"] > 0
    assert api.http.get("/readyz").json() == {"status": "ready"}
    assert api.http.head("/healthz").status_code == 200


def test_documents_come_and_go(api: Running) -> None:
    report = api.add({"uri": "a", "text": "Owls hunt at night."}, {"uri": "b", "text": "Bees dance."}, collection="zoo")
    assert report.json() | {"seconds": 0} == {
        "collection": "zoo", "added": 2, "updated": 0, "unchanged": 0, "removed": 0, "skipped": [], "passages": 2,
        "seconds": 0,
    }  # fmt: skip
    again = api.add({"uri": "a", "text": "Owls hunt at dusk."}, {"uri": "b", "text": "Bees dance."}, collection="zoo")
    assert (again.json()["updated"], again.json()["unchanged"]) == (1, 1)
    assert "zoo" in [item["name"] for item in api.http.get("/v1/collections").json()["collections"]]
    info = CollectionInfo.model_validate(api.http.get("/v1/collections/zoo").json())
    assert (info.documents, info.passages) == (2, 2)
    listed = api.http.get("/v1/collections/zoo/documents").json()["documents"]
    assert [item["uri"] for item in listed] == ["a", "b"]
    path = f"/v1/collections/zoo/documents/{listed[0]['id']}"
    document = DocumentWithPassages.model_validate(api.http.get(path).json())
    assert document.passage_list[0].text == "Owls hunt at dusk."
    assert api.http.delete(path).json() == listed[0] | {"purge": None}
    assert api.http.get(path).status_code == 404
    gone = api.http.delete("/v1/collections/zoo")
    assert (gone.status_code, gone.content) == (204, b"")
    assert api.http.get("/v1/collections/zoo").status_code == 404


def test_bytes_come_as_base64_or_as_a_form(api: Running) -> None:
    page = b"<html><title>Tides</title><body><p>The tide turns at noon.</p></body></html>"
    data = base64.b64encode(page).decode()
    assert api.add({"uri": "x", "data": data, "name": "t.html"}, collection="raw").json()["added"] == 1
    form = [("files", ("t.html", page, "text/html")), ("files", ("notes.md", b"# Notes\n\nSalt is sold."))]
    report = api.http.post("/v1/collections/raw/documents", files=form)
    assert report.json()["added"] == 2, report.text
    listed = api.http.get("/v1/collections/raw/documents").json()["documents"]
    assert [(item["uri"], item["title"]) for item in listed] == [
        ("notes.md", "Notes"),
        ("t.html", "Tides"),
        ("x", "Tides"),
    ]


def test_unusable_documents_are_listed_and_the_others_stored(api: Running) -> None:
    report = api.add({"uri": "good", "text": "Wool is sold."}, {"uri": "bad", "text": "   "}, collection="mixed")
    assert report.status_code == 200
    assert report.json()["added"] == 1
    assert [item["uri"] for item in report.json()["skipped"]] == ["bad"]


def test_search(api: Running) -> None:
    response = api.http.post("/v1/search", json={"query": "lamp of the lighthouse", "collection": "docs", "k": 1})
    found = SearchResult.model_validate(response.json())
    assert [hit.text for hit in found.results] == [LIGHTHOUSE]


def test_an_answer_has_the_stable_shape(api: Running) -> None:
    response = api.http.post("/v1/answer", json=QUESTION)
    answer = Answer.model_validate(response.json())
    assert {source.text for source in answer.sources} == {LIGHTHOUSE, HARBOUR}
    local = final_answer(api.service.answer(AnswerRequest(**QUESTION)))
    assert shape(response.json()) == shape(local.model_dump(mode="json"))
    again = Answer.model_validate(api.http.post("/v1/answer", json=QUESTION).json())
    passage_tokens = sum(passage.tokens for passage in again.cache.passages)
    assert again.usage.cached_tokens >= 0.9 * passage_tokens
    assert again.answer == answer.answer


def test_the_client_does_what_the_service_does(api: Running) -> None:
    client = Client(api.url)
    try:
        sources = [TextSource("u:1", "Nets are mended in March.", "nets"), BytesSource("bad.bin", b"\0\1\2" * 99)]
        report = client.ingest("by-client", sources)
        assert (report.added, [item.uri for item in report.skipped]) == (1, ["bad.bin"])
        nothing = client.ingest("by-client", sources[1:])
        assert (nothing.added, [item.uri for item in nothing.skipped]) == (0, ["bad.bin"])
        here = api.service.ingest("by-client", sources[1:])
        assert nothing.skipped == here.skipped, "a refused request and a local run tell the same"
        assert client.collections() == api.service.collections()
        documents = client.documents("by-client")
        assert documents == api.service.documents("by-client")
        assert client.document("by-client", documents[0].id) == api.service.document("by-client", documents[0].id)
        request = SearchRequest(query="nets", collection="by-client")
        assert client.search(request).results == api.service.search(request).results
        question = AnswerRequest(question="When?", collection="by-client")
        assert final_answer(client.answer(question)).sources == final_answer(api.service.answer(question)).sources
        deleted = client.delete_document("by-client", documents[0].id)
        assert deleted == DeletedDocument(**documents[0].model_dump())
        client.delete_collection("by-client")
        assert "by-client" not in [collection.name for collection in api.service.collections()]
    finally:
        client.close()


def test_the_command_line_uses_the_server(api: Running, capsys: pytest.CaptureFixture[str]) -> None:
    data_dir = api.service.config.data_dir
    before = api.stats().totals.requests
    ran = run_cli(capsys, ["ask", "Who lights the lamp?", "-c", "docs", "--json", "--data-dir", data_dir])
    assert ran.code == 0, ran.err
    assert shape(Answer.model_validate_json(ran.out).model_dump(mode="json")) == shape(
        api.http.post("/v1/answer", json=QUESTION).json()
    )
    assert api.stats().totals.requests == before + 2


def test_the_server_stays_responsive_during_an_ingestion(api: Running, embedder: GatedEmbedder) -> None:
    """Two ingestions into one collection take turns; health, listings, search and answers do not wait."""
    while embedder.entered.acquire(blocking=False):
        pass
    embedder.gate.clear()
    embedder.most = 0
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(api.add, {"uri": uri, "text": f"Text {uri}."}, collection="slow") for uri in "ab"]
        try:
            assert embedder.entered.acquire(timeout=30)
            for _ in range(5):
                assert api.http.get("/healthz", timeout=5).status_code == 200
            assert api.http.get("/v1/collections/docs", timeout=5).status_code == 200
            assert api.http.post("/v1/answer", json=QUESTION, timeout=20).status_code == 200
            assert not embedder.entered.acquire(timeout=0.3), "the second ingestion waits for the first"
        finally:
            embedder.gate.set()
        assert [run.result().json()["added"] for run in runs] == [1, 1]
    assert embedder.most == 1
    assert api.http.get("/v1/collections/slow").json()["documents"] == 2


def test_sixteen_questions_at_once(api: Running) -> None:
    def ask(number: int) -> Answer:
        body = QUESTION | {"question": f"Question {number}: who lights the lamp?", "max_tokens": 12}
        return Answer.model_validate(api.http.post("/v1/answer", json=body).json())

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(16)))
    assert all(answer.usage.completion_tokens == 12 for answer in answers)
    api.check()


def test_openapi_describes_bodies_events_and_problems(api: Running) -> None:
    description = api.http.get("/openapi.json").json()
    routes = {(method, path) for path, item in description["paths"].items() for method in item}
    documents, one = "/v1/collections/{collection}/documents", "/v1/collections/{collection}/documents/{document_id}"
    assert {("post", documents), ("get", documents), ("get", one), ("delete", one)} <= routes
    assert {("post", "/v1/search"), ("post", "/v1/answer"), ("get", "/healthz"), ("get", "/readyz")} <= routes
    answer = description["paths"]["/v1/answer"]["post"]["responses"]
    assert set(answer["200"]["content"]) == {"application/json", "text/event-stream"}
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    assert all(answer[status]["content"] == problem for status in ("400", "404", "409", "413", "415", "422", "503"))
    assert {"type", "title", "status", "detail"} <= set(description["components"]["schemas"]["Problem"]["properties"])
    body = description["paths"][documents]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    references = set(_references(description))
    known = {f"#/components/schemas/{name}" for name in description["components"]["schemas"]}
    assert references <= known


def _references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


def test_the_data_directory_names_the_server(api: Running) -> None:
    from rag.data_dir import find_owner

    owner = find_owner(Path(api.service.config.data_dir))
    assert owner is not None
    assert owner.url == api.url


def test_settings_that_the_collection_does_not_have_are_told(api: Running, caplog: pytest.LogCaptureFixture) -> None:
    client, events = Client(api.url, wanted=RetrieverSettings(passage_tokens=32)), []
    client.ingest("settings", [TextSource("t:a", "Owls hunt at night.")], progress=events.append)
    client.close()
    notices = [event.message for event in events if event.stage is Stage.NOTICE]
    assert len(notices) == 1
    assert "asks for 32" in notices[0]
    assert "made with passage_tokens 256" in notices[0]
    assert "asks for" not in caplog.text


def test_an_ingestion_of_which_nothing_comes_leaves_no_collection(api: Running) -> None:
    assert api.add({"uri": "empty", "text": ""}, collection="rejected").status_code == 422
    assert api.http.get("/v1/collections/rejected").status_code == 404
    client = Client(api.url)
    report = client.ingest("rejected", [TextSource("t:empty", "")], prune_scope=["t:"])
    client.close()
    assert [item.uri for item in report.skipped] == ["t:empty"]
    assert api.http.get("/v1/collections/rejected").status_code == 404


def test_few_large_bodies_are_in_memory_at_once(
    api: Running, embedder: GatedEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived: list[int] = []
    check = document_bodies._checked
    monkeypatch.setattr(document_bodies, "_checked", lambda how, body: arrived.append(len(body)) or check(how, body))
    embedder.gate.clear()

    def send(number: int, padding: int) -> int:
        body = json.dumps({"documents": [{"uri": "u", "text": f"Net {number} is mended."}]}) + " " * padding
        path = f"/v1/collections/bodies{number}/documents"
        return api.http.post(path, content=body, headers={"content-type": "application/json"}).status_code

    with ThreadPoolExecutor(MAX_LARGE_BODIES + 4) as pool:
        try:
            large = [pool.submit(send, number, SMALL_BODY_BYTES) for number in range(MAX_LARGE_BODIES + 3)]
            eventually(lambda: len(arrived) == MAX_LARGE_BODIES)
            small = pool.submit(send, 99, 0)
            eventually(lambda: min(arrived) < SMALL_BODY_BYTES)
            time.sleep(0.2)
            assert len(arrived) == MAX_LARGE_BODIES + 1
        finally:
            embedder.gate.set()
    assert [sent.result() for sent in (*large, small)] == [200] * (MAX_LARGE_BODIES + 4)


def test_a_declared_type_goes_before_the_name_and_the_name_before_a_guess(api: Running) -> None:
    text = "# Nets\n\nThey are mended."
    assert api.add({"uri": "nets.py", "text": text, "media_type": "text/markdown"}, collection="types").is_success
    files = {"files": ("nets.md", text, "text/plain")}
    assert api.http.post("/v1/collections/types/documents", files=files).is_success
    listed = api.http.get("/v1/collections/types/documents").json()["documents"]
    assert [(item["uri"], item["title"]) for item in listed] == [("nets.md", "Nets"), ("nets.py", "Nets")]
