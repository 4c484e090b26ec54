"""Keys over HTTP and on the command line: who is let in, what each may do, how much, and from when on."""

import json
import re
import socket
import stat
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from fastapi.routing import APIRoute
from rag_helpers import make_chat_model, run_cli
from server_helpers import DOCUMENTS, QUESTION, Running, eventually, make_config, problem_of, running

from rag.ledger import Account, Tokens
from rag.server import access as access_module
from rag.server.app import create_app
from rag.server.authentication import OPEN_PATHS
from rag.server.quotas import QuestionWindow
from rag.service import Service
from retriever.hash_embedder import HashEmbedder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="files have no owner's permissions")

MAX_FILES = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    """A server with two collections and keys on; `http` presents no key."""
    config = make_config(tmp_path_factory.mktemp("data"), model, server={"max_files": MAX_FILES})
    with Service(config, embedder=HashEmbedder()) as service, running(service) as server:
        for name in ("docs", "other"):
            assert server.add(*DOCUMENTS, collection=name).status_code == 200
        assert create(server, "first", "admin:*").status_code == 201
        yield server


def as_owner(server: Running) -> dict[str, str]:
    token = server.service.config.data_dir / "owner.token"
    eventually(token.exists)  # a server announces itself a moment after it is ready
    return {"Authorization": f"Bearer {token.read_text()}"}


def create(server: Running, name: str, *scopes: str, **more: object) -> httpx.Response:
    return server.http.post("/v1/keys", json={"name": name, "scopes": scopes, **more}, headers=as_owner(server))


def key(server: Running, name: str, *scopes: str, **more: object) -> dict[str, str]:
    """Make a key and return the headers that present it."""
    made = create(server, name, *scopes, **more)
    assert made.status_code == 201, made.text
    return {"Authorization": f"Bearer {made.json()['key']}"}


def test_an_open_server_lets_everyone_ask_and_nobody_make_the_first_key(tmp_path: Path, model: Path) -> None:
    with Service(make_config(tmp_path, model), embedder=HashEmbedder()) as service, running(service) as server:
        assert server.add(*DOCUMENTS).status_code == 200
        before = server.http.get("/healthz").json()
        assert before["kv_store"] is not None
        stranger = {"name": "mine", "scopes": ["admin:*"]}
        for headers in ({}, {"Authorization": "Bearer x"}, {"X-API-Key": "prk_0_0"}):
            problem = problem_of(server.http.post("/v1/keys", json=stranger, headers=headers), 401, "key-required")
            assert "rag keys create" in problem["detail"]
        assert server.http.get("/v1/keys").status_code == 401
        assert server.http.post("/v1/search", json={"query": "lamp", "collection": "docs"}).status_code == 200
        token = tmp_path / "owner.token"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        mine = key(server, "app", "read:docs")
        assert server.http.post("/v1/search", json={"query": "lamp", "collection": "docs"}).status_code == 401
        found = server.http.post("/v1/search", json={"query": "lamp", "collection": "docs"}, headers=mine)
        assert found.status_code == 200
    assert not token.exists(), "a token is good for one server"


def test_keys_can_be_required_before_there_is_one(tmp_path: Path, model: Path) -> None:
    config = make_config(tmp_path, model, server={"require_keys": True})
    with Service(config, embedder=HashEmbedder()) as service, running(service) as server:
        problem_of(server.http.get("/v1/collections"), 401, "key-required")
        assert server.http.get("/v1/collections", headers=as_owner(server)).json() == {"collections": []}


def test_without_a_key_only_health_and_the_page_are_there(api: Running) -> None:
    called = 0
    for route in create_app(api.service).state.routes:
        for method in route.methods:
            path = re.sub(r"\{[^}]+\}", "x", route.path)
            response = api.http.request(method, path)
            if route.path in OPEN_PATHS:
                assert response.status_code == 200, (method, path)
                continue
            assert response.status_code == 401, (method, path, response.text)
            assert response.headers["www-authenticate"] == 'Bearer realm="preread"'
            called += 1
    assert called > 15
    assert api.http.get("/nowhere").status_code == 401, "which routes there are is not told either"
    assert api.http.get("/openapi.json").status_code == 401
    health = api.http.get("/healthz").json()
    assert health["ready"]
    assert health["kv_store"] is health["shadow"] is None, "figures move with others' questions"
    assert api.http.get("/healthz", headers=as_owner(api)).json()["kv_store"] is not None


def test_every_route_asks_who_calls(api: Running) -> None:
    def calls(dependant) -> set[object]:
        found = {dependant.call}
        for inner in dependant.dependencies:
            found |= calls(inner)
        return found

    careless = [
        (sorted(route.methods), route.path)
        for route in create_app(api.service).state.routes
        if isinstance(route, APIRoute)
        and route.path not in OPEN_PATHS
        and access_module._access not in calls(route.dependant)
    ]
    assert careless == []


def test_a_wrong_key_is_told_in_the_form_that_its_route_speaks(api: Running) -> None:
    wrong = {"Authorization": f"Bearer prk_0123456789ab_{'0' * 48}"}
    response = api.http.get("/v1/collections", headers=wrong)
    problem_of(response, 401, "key-required")
    assert response.headers["www-authenticate"] == 'Bearer realm="preread", error="invalid_token"'
    chat = {"model": "rag/docs", "messages": [{"role": "user", "content": "Who?"}]}
    error = api.http.post("/v1/chat/completions", json=chat, headers=wrong)
    assert (error.status_code, error.json()["error"]["type"]) == (401, "authentication_error")


def test_a_key_may_stand_in_either_header(api: Running) -> None:
    bearer = key(api, "either", "read:docs")
    token = bearer["Authorization"].removeprefix("Bearer ")
    basic = {"Authorization": "Basic x", "X-API-Key": token}
    for headers in (bearer, {"X-API-Key": token}, {"authorization": f"bearer  {token}"}, basic):
        assert api.http.get("/v1/collections/docs", headers=headers).status_code == 200, headers
    assert api.http.get(f"/v1/collections/docs?api_key={token}").status_code == 401, "addresses are logged"


@pytest.mark.parametrize("collection", ["other", "nowhere"])
def test_what_a_key_may_not_use_looks_the_same_whether_it_is_there_or_not(api: Running, collection: str) -> None:
    mine = key(api, f"narrow {collection}", "read:docs")
    document = {"documents": [{"uri": "u", "text": "t"}]}
    chat = {"model": f"rag/{collection}", "messages": [{"role": "user", "content": "Who?"}]}
    refused = [
        api.http.post("/v1/search", json={"query": "q", "collection": collection}, headers=mine),
        api.http.post("/v1/answer", json={"question": "q", "collection": collection}, headers=mine),
        api.http.post("/v1/answer", json={"question": "q", "collection": collection, "stream": True}, headers=mine),
        api.http.get(f"/v1/collections/{collection}", headers=mine),
        api.http.get(f"/v1/collections/{collection}/documents", headers=mine),
        api.http.get(f"/v1/collections/{collection}/documents/x", headers=mine),
        api.http.get(f"/v1/collections/{collection}/precompute", headers=mine),
        api.http.get(f"/v1/collections/{collection}/access", headers=mine),
        api.http.post(f"/v1/collections/{collection}/documents", json=document, headers=mine),
        api.http.post(f"/v1/collections/{collection}/precompute", headers=mine),
        api.http.delete(f"/v1/collections/{collection}/documents/x", headers=mine),
        api.http.delete(f"/v1/collections/{collection}", headers=mine),
        api.http.put(f"/v1/collections/{collection}/access", json={"scopes": {}}, headers=mine),
    ]
    for response in refused:
        problem = problem_of(response, 403, "not-allowed")
        assert collection in problem["detail"]
    assert api.http.post("/v1/chat/completions", json=chat, headers=mine).status_code == 403
    assert len(api.http.get("/v1/collections/other/documents", headers=as_owner(api)).json()["documents"]) == 2


def test_reading_is_not_writing_and_writing_is_not_administrating(api: Running) -> None:
    reader, writer = key(api, "reader", "read:other"), key(api, "writer", "write:other")
    document = {"documents": [{"uri": "new", "text": "A new lamp."}]}
    path = "/v1/collections/other/documents"
    assert api.http.get(path, headers=reader).status_code == 200
    assert api.http.post(path, json=document, headers=reader).status_code == 403
    assert api.http.post(path, json=document, headers=writer).status_code == 200
    assert api.http.post("/v1/search", json={"query": "lamp", "collection": "other"}, headers=writer).status_code == 200
    for request in (("DELETE", "/v1/collections/other"), ("GET", "/v1/collections/other/access")):
        problem_of(api.http.request(*request, headers=writer), 403, "not-allowed")
    for request in (("GET", "/v1/keys"), ("DELETE", "/v1/keys/reader"), ("GET", "/metrics")):
        problem_of(api.http.request(*request, headers=key(api, f"{request}", "admin:other")), 403, "not-allowed")


def test_only_what_a_key_may_read_is_listed_and_named(api: Running) -> None:
    mine = key(api, "lister", "read:docs", "read:ghost")
    listed = api.http.get("/v1/collections", headers=mine).json()["collections"]
    assert [info["name"] for info in listed] == ["docs"]
    missing = api.http.post("/v1/search", json={"query": "q", "collection": "ghost"}, headers=mine)
    assert "choose one of: docs" in problem_of(missing, 404, "unknown-collection")["detail"]
    assert "other" not in missing.text
    models = api.http.get("/v1/models", headers=mine)
    assert "rag/docs" in models.text
    assert "other" not in models.text


def test_a_revoked_key_is_refused_at_once_and_an_administrator_can_do_so(api: Running) -> None:
    admin, mine = key(api, "boss", "admin:*"), key(api, "leaver", "read:docs")
    assert api.http.get("/v1/collections/docs", headers=mine).status_code == 200
    revoked = api.http.delete("/v1/keys/leaver", headers=admin).json()
    assert revoked["revoked_at"] is not None
    assert api.http.get("/v1/collections/docs", headers=mine).status_code == 401
    problem_of(api.http.delete("/v1/keys/leaver", headers=admin), 404, "unknown-key")
    assert "leaver" in api.http.get("/v1/keys", headers=admin).text
    own = admin["Authorization"].removeprefix("Bearer ")
    assert own not in api.http.get("/v1/keys", headers=admin).text


def test_who_may_read_a_collection_is_changed_for_it_alone(api: Running) -> None:
    admin = key(api, "docs admin", "admin:docs")
    one, two = create(api, "one", "read:docs").json(), create(api, "two", "read:other").json()
    path = "/v1/collections/docs/access"
    entries = api.http.get(path, headers=admin).json()["entries"]
    assert {"key_id": one["id"], "name": "one", "scope": "read", "everywhere": False} in entries
    assert any(entry["name"] == "first" and entry["everywhere"] for entry in entries)
    assert two["id"] not in {entry["key_id"] for entry in entries}
    kept = {entry["key_id"]: entry["scope"] for entry in entries if not entry["everywhere"]}
    del kept[one["id"]]
    changed = api.http.put(path, json={"scopes": {**kept, two["id"]: "write"}}, headers=admin)
    assert changed.status_code == 200
    assert {entry["key_id"] for entry in changed.json()["entries"]} >= {two["id"]}
    status = {
        name: api.http.get("/v1/collections/docs", headers={"X-API-Key": made["key"]}).status_code
        for name, made in (("one", one), ("two", two))
    }
    assert status == {"one": 403, "two": 200}
    problem_of(api.http.put(path, json={"scopes": {"nobody": "read"}}, headers=admin), 404, "unknown-key")
    assert api.http.put(path, json={"scopes": {one["id"]: "own"}}, headers=admin).status_code == 422


@pytest.mark.parametrize(
    "wanted",
    [
        {"name": "", "scopes": ["read:docs"]},
        {"name": "x", "scopes": []},
        {"name": "x", "scopes": ["read:a/b"]},
        {"name": "x", "scopes": ["own:docs"]},
        {"name": "x", "scopes": ["read:docs"], "questions_per_minute": 0},
        {"name": "x", "scopes": ["read:docs"], "expires_at": "2001-01-01T00:00:00Z"},
        {"name": "x", "scopes": ["read:docs"], "expires_at": "2101-01-01T00:00:00"},
        {"name": "x", "scopes": ["read:docs"], "expires_at": "9999-12-31T23:59:59-12:00"},
        {"name": "x", "scopes": ["read:docs"], "expires_at": "0001-01-01T00:00:00+12:00"},
        {"name": "first", "scopes": ["read:docs"]},
        {"name": "x", "scopes": ["read:docs"], "secret": "s"},
    ],
)
def test_a_key_that_cannot_be_made_like_this(api: Running, wanted: dict) -> None:
    response = api.http.post("/v1/keys", json=wanted, headers=as_owner(api))
    problem_of(response, 422, "invalid-request")


def test_the_end_of_a_key_is_told_in_utc(api: Running) -> None:
    made = create(api, "far", "read:docs", expires_at="9998-12-31T23:59:59-12:00")
    assert made.json()["expires_at"] == "9999-01-01T11:59:59+00:00"
    listed = api.http.get("/v1/keys", headers=as_owner(api)).json()["keys"]
    assert {key["expires_at"] for key in listed if key["name"] == "far"} == {"9999-01-01T11:59:59+00:00"}
    stored = api.service.components.library().store
    with stored.read() as reader:
        rows = reader.connection.execute("SELECT expires_at FROM api_keys WHERE name = 'far'").fetchall()
    assert rows == [("9999-01-01T11:59:59+00:00",)]


def test_questions_a_minute(api: Running) -> None:
    mine = key(api, "few", "read:docs", questions_per_minute=2)
    search = {"query": "lamp", "collection": "docs"}
    responses = [api.http.post("/v1/search", json=search, headers=mine) for _ in range(3)]
    assert [response.status_code for response in responses] == [200, 200, 429]
    assert [response.headers["ratelimit"].partition(";t=")[0] for response in responses] == [
        '"questions";r=1', '"questions";r=0', '"questions";r=0',
    ]  # fmt: skip
    assert responses[0].headers["ratelimit-policy"] == '"questions";q=2;w=60'
    problem_of(responses[2], 429, "too-many-questions")
    assert 0 < int(responses[2].headers["retry-after"]) <= 60
    assert api.http.get("/v1/collections/docs", headers=mine).status_code == 200, "this is no question"
    chat = {"model": "rag/docs", "messages": [{"role": "user", "content": "Who?"}]}
    refused = api.http.post("/v1/chat/completions", json=chat, headers=mine)
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
    unlimited = key(api, "many", "read:docs")
    assert "ratelimit" not in api.http.post("/v1/search", json=search, headers=unlimited).headers


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/cache/pin"),
        ("POST", "/v1/cache/warm"),
        ("GET", "/v1/collections/docs/precompute"),
        ("POST", "/v1/collections/docs/precompute"),
        ("POST", "/v1/collections/docs/precompute?wait=false"),
    ],
)
def test_what_reads_passages_ahead_is_a_question(api: Running, method: str, path: str) -> None:
    mine = key(api, f"{method} {path}", "write:docs", questions_per_minute=1)
    body = {"collection": "docs"} if method == "POST" and "cache" in path else None
    first = api.http.request(method, path, json=body, headers=mine)
    assert first.status_code in (200, 202, 409), first.text
    problem_of(api.http.request(method, path, json=body, headers=mine), 429, "too-many-questions")


def test_no_minute_has_more_questions_than_the_limit() -> None:
    now = [100.0]
    window = QuestionWindow(clock=lambda: now[0])
    allowed = []
    for step in range(400):
        now[0] = 100.0 + step * 0.7
        if window.take(10)[0]:
            allowed.append(now[0])
    assert all(later - earlier >= 60 for earlier, later in zip(allowed, allowed[10:], strict=False))
    assert len(allowed) == 50, "ten in each of the minutes"
    _, quota = window.take(10)
    assert quota.left + sum(moment > now[0] - 60 for moment in allowed) == 10


def test_tokens_a_day(api: Running) -> None:
    made = create(api, "thrifty", "read:docs", tokens_per_day=1000).json()
    mine = {"X-API-Key": made["key"]}
    answered = api.http.post("/v1/answer", json=QUESTION, headers=mine)
    assert answered.status_code == 200
    assert answered.headers["ratelimit-policy"] == '"tokens";q=1000;w=86400'
    ledger = api.service.components.ledger()
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    usage = answered.json()["usage"]
    assert ledger.tokens_since(made["id"], midnight) == usage["prompt_tokens"] + usage["completion_tokens"]
    ledger.add(Account(made["id"], "docs", "answer", "m"), Tokens(prompt=900, output=100))
    refused = api.http.post("/v1/answer", json=QUESTION, headers=mine)
    problem_of(refused, 429, "too-many-tokens")
    assert 0 < int(refused.headers["retry-after"]) <= 86400
    assert refused.headers["ratelimit"].startswith('"tokens";r=0;')


def test_clients_cannot_have_paths_read(api: Running, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the password is swordfish")
    path = "/v1/collections/docs/documents"
    for document in (
        {"uri": str(secret)},
        {"uri": secret.as_uri()},
        {"uri": "u", "path": str(secret)},
        {"uri": "u", "file": str(secret)},
    ):
        response = api.http.post(path, json={"documents": [document]}, headers=as_owner(api))
        assert response.status_code == 422, document
    told = {"uri": secret.as_uri(), "name": str(secret), "text": "only this"}
    assert api.http.post(path, json={"documents": [told]}, headers=as_owner(api)).status_code == 200
    listed = api.http.get(path, headers=as_owner(api)).json()["documents"]
    document_id = next(item["id"] for item in listed if item["uri"] == secret.as_uri())
    stored = api.http.get(f"{path}/{document_id}", headers=as_owner(api))
    assert "only this" in stored.text
    assert "swordfish" not in stored.text


def test_a_request_has_no_more_files_than_allowed(api: Running) -> None:
    path, headers = "/v1/collections/many/documents", as_owner(api)
    documents = [{"uri": f"u{number}", "text": "a text"} for number in range(MAX_FILES + 1)]
    refused = api.http.post(path, json={"documents": documents}, headers=headers)
    assert "4 documents, above 3" in problem_of(refused, 413, "too-many-files")["detail"]
    files = [("files", (f"{number}.txt", b"a text")) for number in range(50)]
    assert problem_of(api.http.post(path, files=files[: MAX_FILES + 1], headers=headers), 413, "too-many-files")
    assert problem_of(api.http.post(path, files=files, headers=headers), 400, "unreadable-body")
    assert api.http.get(path, headers=headers).status_code == 404, "none of them was stored"
    assert api.http.post(path, files=files[:MAX_FILES], headers=headers).status_code == 200


def test_without_a_key_no_byte_of_a_body_is_awaited(api: Running) -> None:
    host, port = api.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = f"POST /v1/collections/docs/documents HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 1000000\r\n\r\n"
        connection.sendall(head.encode())
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("path", ["/v1/search", "/v1/collections/docs/documents", "/v1/keys", "/v1/chat/completions"])
def test_json_within_json_without_end_is_refused(api: Running, path: str) -> None:
    headers = {**as_owner(api), "Content-Type": "application/json"}
    for body in (b"[" * 200_000, b'{"a":' * 200_000):
        assert api.http.post(path, content=body, headers=headers).status_code in (400, 422)


def test_the_description_names_the_ways_to_present_a_key(api: Running) -> None:
    schema = api.http.get("/openapi.json", headers=as_owner(api)).json()
    assert schema["components"]["securitySchemes"].keys() == {"bearer", "header"}
    assert schema["security"] == [{"bearer": []}, {"header": []}, {}]
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            assert path in OPEN_PATHS or {"401", "403"} <= operation["responses"].keys(), (method, path)


# The command line


def test_the_command_line_beside_a_server(
    api: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = ["--data-dir", api.service.config.data_dir, "--model", api.service.config.model]
    at += ["--embedder", api.service.config.embedder]
    made = run_cli(capsys, [*at, "keys", "create", "cli", "--scope", "read:docs", "--expires", "30d"])
    assert (made.code, made.err) == (0, ""), made
    token = made.out.strip()
    assert token.startswith("prk_")
    listed = json.loads(run_cli(capsys, [*at, "keys", "list", "--json"]).out)
    mine = next(item for item in listed["keys"] if item["name"] == "cli")
    assert mine["scopes"] == ["read:docs"]
    left = datetime.fromisoformat(mine["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=29) < left <= timedelta(days=30)
    shown = run_cli(capsys, [*at, "keys", "list"])
    assert "cli" in shown.out
    assert token not in shown.out

    collections = run_cli(capsys, [*at, "--api-key", token, "collections", "--json"])
    assert [item["name"] for item in json.loads(collections.out)] == ["docs"]
    everything = run_cli(capsys, [*at, "collections", "--json"])
    assert {"docs", "other"} <= {item["name"] for item in json.loads(everything.out)}
    monkeypatch.setenv("PREREAD_API_KEY", token)
    refused = run_cli(capsys, [*at, "keys", "revoke", "cli"])
    assert refused.code == 1
    assert "admin:*" in refused.message
    monkeypatch.delenv("PREREAD_API_KEY")
    assert run_cli(capsys, [*at, "keys", "revoke", "cli"]).code == 0
    gone = run_cli(capsys, [*at, "collections", "--api-key", token])
    assert (gone.code, "revoked" in gone.message) == (1, True)


def test_the_command_line_without_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--data-dir", tmp_path]
    empty = run_cli(capsys, [*at, "keys", "list"])
    assert "there are no keys" in empty.err
    first = run_cli(capsys, [*at, "keys", "create", "a", "--scope", "admin:*", "--json"])
    made = json.loads(first.out)
    assert made["scopes"] == ["admin:*"]
    assert "first key" in first.message
    second = run_cli(capsys, [*at, "keys", "create", "b", "--scope", "read:x", "--scope", "write:y"])
    assert second.err == ""
    assert json.loads(run_cli(capsys, [*at, "keys", "revoke", made["id"], "--json"]).out)["revoked_at"]
    listed = json.loads(run_cli(capsys, [*at, "keys", "list", "--json"]).out)
    assert [(item["name"], bool(item["revoked_at"])) for item in listed["keys"]] == [("a", True), ("b", False)]
    assert listed["on"] is True
    assert run_cli(capsys, [*at, "keys", "revoke", "a"]).code == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["x"], "scope"),
        (["x", "--scope", "own:docs"], "scopes"),
        (["x", "--scope", "read", "--expires", "soon"], "12h, 30d"),
        (["x", "--scope", "read", "--expires", "9999-12-31T23:59:59-12:00"], "12h, 30d"),
        (["x", "--scope", "read", "--questions-per-minute", "0"], "questions_per_minute"),
    ],
)
def test_a_wrong_use_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    ran = run_cli(capsys, ["--data-dir", tmp_path, "keys", "create", *arguments])
    assert (ran.code, reason in ran.message) == (2, True), ran
