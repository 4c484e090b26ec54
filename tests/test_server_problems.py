"""Bad requests: each gets its status and a problem document, nothing is lost, and the next question is answered."""

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from rag_helpers import make_chat_model
from retriever_helpers import make_pdf
from server_helpers import DOCUMENTS, PROBLEM, QUESTION, Running, events_of, make_config, problem_of, running

from rag.service import Service
from retriever.hash_embedder import HashEmbedder

MAX_BODY = 200_000
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def module_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = make_chat_model(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=700)
    config = make_config(tmp_path_factory.mktemp("data"), model, server={"max_body_bytes": MAX_BODY})
    with Service(config, embedder=HashEmbedder()) as service, running(service) as running_api:
        assert running_api.add(*DOCUMENTS).status_code == 200
        yield running_api


@pytest.fixture
def api(module_api: Running) -> Iterator[Running]:
    """The server; afterwards nothing is lost and it answers."""
    yield module_api
    assert module_api.http.get("/v1/collections/docs").json()["documents"] == len(DOCUMENTS)
    assert module_api.http.post("/v1/answer", json=QUESTION).status_code == 200
    module_api.check()


UNUSABLE = {
    "empty.txt": (b"", "is empty"),
    "blank.txt": (b" \n ", "holds no text"),
    "noise.bin": (bytes(range(256)) * 8, "binary"),
    "secret.pdf": (make_pdf(["hidden"], password="sesame"), "password"),
    "torn.pdf": (b"%PDF-1.7\n garbage", "not a readable PDF"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_one_unusable_document(api: Running, name: str) -> None:
    data, reason = UNUSABLE[name]
    response = api.http.post("/v1/collections/docs/documents", files={"files": (name, data)})
    problem = problem_of(response, 422, "unusable-documents")
    assert reason in problem["detail"]
    assert [item["uri"] for item in problem["skipped"]] == [name]
    assert reason in problem["skipped"][0]["reason"]


def test_a_form_without_files(api: Running) -> None:
    path = "/v1/collections/docs/documents"
    problem = problem_of(api.http.post(path, files={"other": ("a.txt", b"text")}), 422, "invalid-request")
    assert "'files'" in problem["detail"]
    text_part = api.http.post(path, files={"x": ("a", b"b")}, data={"files": "not a file"})
    problem_of(text_part, 422, "invalid-request")
    empty = b"--x--\r\n"
    response = api.http.post(path, content=empty, headers={"content-type": "multipart/form-data; boundary=x"})
    problem_of(response, 422, "invalid-request")
    broken = api.http.post(path, content=b"--y\r\nrubbish", headers={"content-type": "multipart/form-data; boundary=x"})
    problem_of(broken, 400, "unreadable-body")
    problem_of(
        api.http.post(path, content=b"x", headers={"content-type": "multipart/form-data"}), 400, "unreadable-body"
    )


@pytest.mark.parametrize("path", ["/v1/answer", "/v1/search"])
def test_an_unknown_collection(api: Running, path: str) -> None:
    field = "question" if path.endswith("answer") else "query"
    response = api.http.post(path, json={field: "Who?", "collection": "nowhere"})
    assert "nowhere" in problem_of(response, 404, "unknown-collection")["detail"]


def test_unknown_things_by_path(api: Running) -> None:
    for method, path in [("GET", ""), ("DELETE", ""), ("GET", "/documents"), ("DELETE", "/documents/1")]:
        response = api.http.request(method, f"/v1/collections/nowhere{path}")
        problem_of(response, 404, "unknown-collection")
    for method in ("GET", "DELETE"):
        problem_of(api.http.request(method, "/v1/collections/docs/documents/0"), 404, "unknown-document")
    problem_of(api.http.get("/v1/nothing"), 404, "unknown-route")
    problem_of(api.http.get("/v1/collections/"), 404, "unknown-route")


def test_a_collection_without_passages(api: Running) -> None:
    assert api.add({"uri": "a", "text": "Gone soon."}, collection="void").status_code == 200
    (document,) = api.http.get("/v1/collections/void/documents").json()["documents"]
    assert api.http.delete(f"/v1/collections/void/documents/{document['id']}").status_code == 200
    problem = problem_of(api.http.post("/v1/answer", json={"question": "?", "collection": "void"}), 409, "no-passages")
    assert "add documents" in problem["detail"]


def test_a_name_that_is_no_collection(api: Running) -> None:
    problem_of(api.add(*DOCUMENTS, collection="-bad name"), 422, "invalid-request")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("question", ["", "  \n\t "])
def test_an_empty_question(api: Running, question: str, stream: bool) -> None:
    response = api.http.post("/v1/answer", json=QUESTION | {"question": question, "stream": stream})
    problem = problem_of(response, 422, "invalid-request")
    assert [item["pointer"] for item in problem["errors"]] == ["#/question"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_question_that_is_too_long(api: Running, stream: bool) -> None:
    response = api.http.post("/v1/answer", json=QUESTION | {"question": "why " * 500, "stream": stream})
    assert "shorter" in problem_of(response, 422, "question-too-long")["detail"]


@pytest.mark.parametrize("body", ["{", "", "question", '{"question": "\\ud800"}', "[" * 10_000, b"\xff\xfe"])
@pytest.mark.parametrize("path", ["/v1/answer", "/v1/search", "/v1/collections/docs/documents"])
def test_a_body_that_is_not_json(api: Running, path: str, body: str | bytes) -> None:
    response = api.http.post(path, content=body, headers=JSON)
    assert response.status_code in (400, 422), response.text
    assert response.headers["content-type"] == PROBLEM
    if body in ("{", "question"):
        problem_of(response, 400, "invalid-json")


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("/v1/answer", {"question": "a", "top": 3}, "#/top"),
        ("/v1/answer", {"question": "a", "k": 0}, "#/k"),
        ("/v1/answer", {"question": "a", "temperature": "hot"}, "#/temperature"),
        ("/v1/answer", {"question": ["a"]}, "#/question"),
        ("/v1/answer", {}, "#/question"),
        ("/v1/answer", [1], "#"),
        ("/v1/search", {"query": "a", "max_tokens": 1}, "#/max_tokens"),
        ("/v1/search", {"query": "a", "k": 10**30}, "#/k"),
        ("/v1/collections/docs/documents", {"documents": []}, "#"),
        ("/v1/collections/docs/documents", {"documents": [{"uri": "a"}]}, "#/documents/0"),
        ("/v1/collections/docs/documents", {"documents": [{"uri": "a", "text": "b", "url": 1}]}, "#/documents/0/url"),
        ("/v1/collections/docs/documents", {"documents": [{"uri": "a", "data": "%"}]}, "#/documents/0/data"),
        ("/v1/collections/docs/documents", {"document": [], "documents": [{"uri": "", "text": ""}]}, "#/document"),
    ],
)
def test_a_field_that_is_wrong(api: Running, path: str, body: object, pointer: str) -> None:
    problem = problem_of(api.http.post(path, json=body), 422, "invalid-request")
    assert pointer in [item["pointer"] for item in problem["errors"]]
    assert pointer.removeprefix("#/").removeprefix("#") in problem["detail"]


def test_numbers_that_json_does_not_have(api: Running) -> None:
    body = '{"question": "a", "temperature": NaN, "top_p": Infinity}'
    response = api.http.post("/v1/answer", content=body, headers=JSON)
    assert response.status_code in (400, 422)
    assert response.headers["content-type"] == PROBLEM


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/answer", "POST"),
        ("PUT", "/v1/collections/docs/documents", "GET, POST"),
        ("POST", "/v1/collections/docs", "DELETE, GET, PATCH"),
        ("PUT", "/v1/collections", "GET, POST"),
        ("PUT", "/v1/collections/docs/documents/1", "DELETE, GET, PATCH"),
        ("DELETE", "/healthz", "GET, HEAD"),
    ],
)
def test_a_wrong_method(api: Running, method: str, path: str, allowed: str) -> None:
    response = api.http.request(method, path)
    assert allowed in problem_of(response, 405, "wrong-method")["detail"]
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/v1/answer", "/v1/search", "/v1/collections/docs/documents"])
@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_a_body_of_another_kind(api: Running, path: str, media_type: str | None) -> None:
    headers = {"content-type": media_type} if media_type else {}
    response = api.http.post(path, content=b"question=why", headers=headers)
    problem_of(response, 415, "unsupported-media-type")
    assert "application/json" in response.headers["accept-post"]


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("path", ["/v1/answer", "/v1/collections/docs/documents", "/nowhere"])
def test_a_body_that_is_too_large(api: Running, path: str, declared: bool) -> None:
    body = b'{"question": "' + b"a" * 2 * MAX_BODY + b'"}'
    chunks = (body[start : start + 1000] for start in range(0, len(body), 1000))
    with httpx.Client(base_url=api.url, trust_env=False) as http:  # the connection is closed by the server
        response = http.post(path, content=body if declared else chunks, headers=JSON)
    if path == "/nowhere" and not declared:
        problem_of(response, 404, "unknown-route")  # it never reads the body
    else:
        assert str(MAX_BODY) in problem_of(response, 413, "body-too-large")["detail"]


def test_a_form_that_is_too_large(api: Running) -> None:
    with httpx.Client(base_url=api.url, trust_env=False) as http:
        response = http.post("/v1/collections/docs/documents", files={"files": ("a.txt", b"word " * MAX_BODY)})
    problem_of(response, 413, "body-too-large")


def test_another_embedder(api: Running) -> None:
    library = api.service.components.library()
    library.ensure_collection("foreign")
    encoder = api.service.components.passage_tokens()
    own, library._embedder = library._embedder, HashEmbedder(dimension=32)
    try:
        from retriever.document import TextSource

        library.ingest("foreign", [TextSource("a", "Salt is sold.")], encoder)
    finally:
        library._embedder = own
    question = {"question": "Who?", "collection": "foreign"}
    for response in (api.http.post("/v1/answer", json=question), api.add(*DOCUMENTS, collection="foreign")):
        assert "hash-32" in problem_of(response, 409, "embedder-mismatch")["detail"]


def test_a_defect_is_logged_and_not_told(
    api: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **_more: object) -> None:
        raise RuntimeError("the secret path /etc/shadow")

    monkeypatch.setattr(api.service.pipeline.preparation, "retrieve", fail)
    with caplog.at_level(logging.ERROR):
        for path, field in (("/v1/answer", "question"), ("/v1/search", "query")):
            response = api.http.post(path, json={field: "Who?", "collection": "docs"})
            problem = problem_of(response, 500, "internal-error")
            assert "shadow" not in response.text
            assert problem["request_id"] == response.headers["x-request-id"]
            assert problem["request_id"] in problem["detail"]
            record = next(item for item in caplog.records if problem["request_id"] in item.getMessage())
            assert record.exc_info is not None
            assert "shadow" in str(record.exc_info[1])


@pytest.mark.parametrize("stream", [False, True])
def test_a_step_that_fails(api: Running, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    engine = api.service.components.worker().engine

    def fail(_batch: object) -> None:
        raise RuntimeError("the secret path /etc/shadow")

    with monkeypatch.context() as patch:
        patch.setattr(engine.runner, "run", fail)
        with api.http.stream("POST", "/v1/answer", json=QUESTION | {"stream": stream}) as response:
            if stream:
                assert response.status_code == 200
                (first, _), (last, problem) = events_of(response)
                assert (first, last) == ("retrieval", "error")
                assert problem["status"] == 500
            else:
                response.read()
                problem = problem_of(response, 500, "step-failed")
    assert "shadow" not in str(problem)
    assert problem["request_id"] == response.headers["x-request-id"]


def test_a_full_disk_costs_nothing_that_is_there(api: Running, caplog: pytest.LogCaptureFixture) -> None:
    """SQLite's own limit of pages stands for the disk."""
    store = api.service.components.library().store
    full = store._writer.execute("PRAGMA page_count").fetchone()[0]
    text = "".join(f"The keeper of lamp {n} writes of wave {n * n}. " for n in range(3000)).encode()
    store._writer.execute(f"PRAGMA max_page_count = {full}")
    try:
        response = api.http.post("/v1/collections/docs/documents", files={"files": ("long.txt", text)})
    finally:
        store._writer.execute("PRAGMA max_page_count = 1073741823")
    problem = problem_of(response, 507, "disk-full")
    assert "nothing was changed" in problem["detail"]
    assert str(store.path) not in response.text, "paths are for the log"
    assert problem["request_id"] in problem["detail"]
    assert any(str(store.path) in str(record.exc_info) for record in caplog.records if record.exc_info)


def test_a_damaged_library_is_told_of(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = make_chat_model(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=700)
    config = make_config(tmp_path / "data", model)
    with Service(config, embedder=HashEmbedder()) as service, running(service) as whole:
        texts = [f"The keeper of lamp {n} writes in the log. " * 40 for n in range(40)]
        assert whole.add(*[{"uri": f"{n}.txt", "text": text} for n, text in enumerate(texts)]).status_code == 200
        path = service.components.library().store.path
    with Service(config, embedder=HashEmbedder()) as service, running(service) as broken:
        with path.open("r+b") as file:
            for start in range(path.stat().st_size // 4 // 4096 * 4096, path.stat().st_size, 4096):
                file.seek(start)
                file.write(b"\xff" * 64)
        responses = [broken.http.get("/v1/collections/docs/documents"), broken.http.post("/v1/answer", json=QUESTION)]
        told = [problem_of(one, 500, "library-damaged")["detail"] for one in responses if one.status_code != 200]
        assert told
        assert all("restore it from a backup" in detail and str(path) not in detail for detail in told)
        assert broken.http.get("/livez").status_code == 200


def test_a_client_that_leaves_while_it_sends(api: Running) -> None:
    host, port = api.url.removeprefix("http://").split(":")
    head = b"POST /v1/answer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head)
