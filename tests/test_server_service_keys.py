"""Jobs, idempotency keys, the cache and settings of collections are for those whose key may use the collection."""

from collections.abc import Iterator

import pytest
from rag_helpers import make_chat_model
from server_helpers import DOCUMENTS, Running, eventually, make_config, problem_of, running

from rag.service import Service
from retriever.hash_embedder import HashEmbedder

Headers = dict[str, str]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = make_chat_model(tmp_path_factory.mktemp("models") / "tiny")
    config = make_config(tmp_path_factory.mktemp("data"), model)
    with Service(config, embedder=HashEmbedder()) as service, running(service) as server:
        for name in ("ours", "theirs"):
            assert server.add(*DOCUMENTS, collection=name).status_code == 200
        yield server


@pytest.fixture(scope="module")
def keys(api: Running) -> dict[str, Headers]:
    token = api.service.config.data_dir / "owner.token"
    eventually(token.exists)
    owner = {"Authorization": f"Bearer {token.read_text()}"}
    made = {"owner": owner}
    for name, scope in (("writer", "write:ours"), ("reader", "read:ours"), ("other", "admin:theirs")):
        response = api.http.post("/v1/keys", json={"name": name, "scopes": [scope]}, headers=owner)
        made[name] = {"Authorization": f"Bearer {response.json()['key']}"}
    return made


def start(api: Running, headers: Headers, collection: str = "ours") -> dict:
    path = f"/v1/collections/{collection}/documents?wait=false"
    response = api.http.post(path, json={"documents": DOCUMENTS}, headers=headers)
    assert response.status_code == 202, response.text
    job: dict = response.json()
    return job


def test_a_job_is_seen_by_who_may_read_and_ended_by_who_may_write(api: Running, keys: dict[str, Headers]) -> None:
    path = f"/v1/jobs/{start(api, keys['writer'])['id']}"
    for verb, where in (("GET", path), ("DELETE", path), ("GET", f"{path}/events")):
        problem_of(api.http.request(verb, where, headers=keys["other"]), 404, "unknown-job")
    assert api.http.get(path, headers=keys["reader"]).status_code == 200
    problem_of(api.http.delete(path, headers=keys["reader"]), 403, "not-allowed")
    assert api.http.delete(path, headers=keys["writer"]).status_code == 200
    theirs = start(api, keys["other"], "theirs")["id"]
    seen = {job["id"] for job in api.http.get("/v1/jobs", headers=keys["reader"]).json()["jobs"]}
    assert path.rsplit("/", 1)[-1] in seen
    assert theirs not in seen
    problem_of(api.http.post("/v1/collections/ours/precompute?wait=false", headers=keys["reader"]), 403, "not-allowed")


def test_an_idempotency_key_is_its_principals_own(api: Running, keys: dict[str, Headers]) -> None:
    same = {"Idempotency-Key": "same"}
    body = {"documents": [{"uri": "mine", "text": "Wool is sold."}]}
    first = api.http.post("/v1/collections/ours/documents", json=body, headers=keys["writer"] | same)
    other = api.http.post("/v1/collections/theirs/documents", json=body, headers=keys["other"] | same)
    assert (first.json()["added"], other.json()["added"]) == (1, 1)
    assert "idempotency-replayed" not in other.headers


@pytest.mark.parametrize("verb", ["warm", "pin", "unpin", "flush"])
def test_the_cache_of_a_collection_is_managed_by_who_may_write(
    api: Running, keys: dict[str, Headers], verb: str
) -> None:
    body = {"collection": "ours"}
    for name in ("reader", "other"):
        problem_of(api.http.post(f"/v1/cache/{verb}", json=body, headers=keys[name]), 403, "not-allowed")
    assert api.http.post(f"/v1/cache/{verb}", json=body, headers=keys["writer"]).is_success


def test_settings_and_metadata_are_changed_by_who_may(api: Running, keys: dict[str, Headers]) -> None:
    patch = {"answering": {"k": 3}}
    problem_of(api.http.patch("/v1/collections/ours", json=patch, headers=keys["writer"]), 403, "not-allowed")
    assert api.http.patch("/v1/collections/theirs", json=patch, headers=keys["other"]).json()["answering"]["k"] == 3
    problem_of(api.http.post("/v1/collections", json={"name": "new"}, headers=keys["writer"]), 403, "not-allowed")
    listed = api.http.get("/v1/collections/ours/documents", headers=keys["reader"]).json()["documents"]
    path, body = f"/v1/collections/ours/documents/{listed[0]['id']}", {"metadata": {"a": 1}}
    problem_of(api.http.patch(path, json=body, headers=keys["reader"]), 403, "not-allowed")
    assert api.http.patch(path, json=body, headers=keys["writer"]).status_code == 200
