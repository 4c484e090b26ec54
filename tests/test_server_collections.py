"""Collections with settings of their own, metadata, idempotent requests and the cache, on a real server."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from rag_helpers import HARBOUR, LIGHTHOUSE, make_chat_model
from server_helpers import DOCUMENTS, QUESTION, Running, make_config, problem_of, running

from rag.schemas import AnswerRequest
from rag.service import Service
from retriever.hash_embedder import HashEmbedder

YEARS = [{"uri": f"y:{year}", "text": f"In {year} the nets were mended.", "metadata": {"year": year}} for year in
         range(2000, 2012)]  # fmt: skip


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = make_chat_model(tmp_path_factory.mktemp("models") / "tiny")
    config = make_config(tmp_path_factory.mktemp("data"), model)
    with Service(config, embedder=HashEmbedder()) as service, running(service) as running_api:
        assert running_api.add(*DOCUMENTS).status_code == 200
        assert running_api.add(*YEARS, collection="years").status_code == 200
        yield running_api


def make(api: Running, name: str, **body: Any) -> dict:
    response = api.http.post("/v1/collections", json={"name": name, **body})
    assert response.status_code == 201, response.text
    return response.json()


# Settings


def test_a_collection_is_made_with_settings_and_keeps_them(api: Running) -> None:
    settings = {"passage_tokens": 32, "overlap_tokens": 8, "index_factory": "HNSW16", "index_parameters": "efSearch=99"}
    made = make(api, "own", settings=settings, answering={"k": 1})
    assert {name: made[name] for name in settings} == settings
    assert made["answering"]["k"] == 1
    assert made["documents"] == 0
    assert api.http.get("/v1/collections/own").json() == made
    problem_of(api.http.post("/v1/collections", json={"name": "own"}), 409, "collection-conflict")


@pytest.mark.parametrize(
    "body",
    [
        {"name": "a b"},
        {"name": "x", "settings": {"index_factory": "Nonsense"}},
        {"name": "x", "settings": {"passage_tokens": 32, "overlap_tokens": 30}},
        {"name": "x", "answering": {"reuse": "always"}},
        {"name": "x", "answering": {"prompt": {"after": "no place for it"}}},
        {"name": "x", "flavour": 1},
    ],
)
def test_settings_that_cannot_work_make_no_collection(api: Running, body: dict) -> None:
    problem_of(api.http.post("/v1/collections", json=body), 422, "invalid-request")
    assert api.http.get(f"/v1/collections/{body['name']}").status_code == 404


def test_questions_follow_the_settings_of_their_collection_unless_they_say_otherwise(api: Running) -> None:
    make(api, "set", answering={"k": 1, "max_tokens": 3, "extractive": False, "order": "cache"})
    assert api.add(*DOCUMENTS, collection="set").is_success
    question = QUESTION | {"collection": "set"}
    answer = api.http.post("/v1/answer", json=question).json()
    assert (len(answer["sources"]), answer["usage"]["completion_tokens"]) == (1, 3)
    assert answer["citations"] == []
    asked = api.http.post("/v1/answer", json=question | {"k": 2, "max_tokens": 5, "extractive": True}).json()
    assert (len(asked["sources"]), asked["usage"]["completion_tokens"]) == (2, 5)
    assert asked["citations"]
    found = api.http.post("/v1/search", json={"query": "lamp", "collection": "set"}).json()
    assert len(found["results"]) == 1

    patched = api.http.patch("/v1/collections/set", json={"answering": {"k": None, "max_tokens": 4}})
    assert patched.json()["answering"] | {"prompt": None} == {
        "k": None, "max_tokens": 4, "extractive": False, "reuse": None, "order": "cache", "prompt": None,
    }  # fmt: skip
    answer = api.http.post("/v1/answer", json=question).json()
    assert (len(answer["sources"]), answer["usage"]["completion_tokens"]) == (2, 4)


def test_a_collection_may_have_words_of_its_own_around_its_passages(api: Running) -> None:
    make(api, "words", answering={"prompt": {"system": "Answer like a pirate."}})
    assert api.add(*DOCUMENTS, collection="words").is_success
    pipeline, tokenizer = api.service.pipeline, api.service.components.tokenizer()

    def prompt() -> str:
        return tokenizer.decode(
            pipeline.preparation.prepare(AnswerRequest(question="Who?", collection="words")).prompt.tokens
        )

    default = api.service.config.prompt
    assert "Answer like a pirate." in prompt()
    assert default.system not in prompt()
    assert "Question: Who?" in prompt(), "what it says nothing of is as usual"
    question = QUESTION | {"collection": "words"}
    first, second = (api.http.post("/v1/answer", json=question).json() for _ in range(2))
    assert second["usage"]["cached_tokens"] > first["usage"]["cached_tokens"]
    assert api.http.patch("/v1/collections/words", json={"answering": {"prompt": None}}).is_success
    assert default.system in prompt()


# Metadata


def test_metadata_comes_with_documents_and_conditions_find_by_it(api: Running) -> None:
    listed = api.http.get("/v1/collections/years/documents").json()["documents"]
    assert [item["metadata"] for item in listed] == [{"year": year} for year in range(2000, 2012)]
    where = {"year": {"gte": 2003, "lt": 2006}}
    search = {"query": "the nets in 2011", "collection": "years", "k": 10, "where": where}
    found = api.http.post("/v1/search", json=search).json()["results"]
    assert {item["uri"] for item in found} == {"y:2003", "y:2004", "y:2005"}
    question = {"question": "When?", "collection": "years", "k": 10, "where": where}
    answer = api.http.post("/v1/answer", json=question).json()
    assert {item["uri"] for item in answer["sources"]} == {"y:2003", "y:2004", "y:2005"}
    nothing = api.http.post("/v1/answer", json=question | {"where": {"year": 1999}})
    assert "where" in problem_of(nothing, 409, "no-passages")["detail"]
    bad = problem_of(
        api.http.post("/v1/search", json=search | {"where": {"year": {"above": 3}}}), 422, "invalid-request"
    )
    assert bad["errors"][0]["pointer"].startswith("#/where")


def test_metadata_can_be_replaced(api: Running) -> None:
    make(api, "relabel")
    assert api.add({"uri": "u", "text": "Salt is sold.", "metadata": {"a": 1}}, collection="relabel").is_success
    (document,) = api.http.get("/v1/collections/relabel/documents").json()["documents"]
    path = f"/v1/collections/relabel/documents/{document['id']}"
    changed = api.http.patch(path, json={"metadata": {"b": [1, "x"]}})
    assert changed.json() == document | {"metadata": {"b": [1, "x"]}}
    problem_of(api.http.patch(path, json={"metadata": {"a b": 1}}), 422, "invalid-request")
    problem_of(api.http.patch(path + "0", json={"metadata": {}}), 404, "unknown-document")


def test_a_form_has_metadata_for_all_its_files(api: Running) -> None:
    form = [("files", ("a.txt", b"Wool is sold.")), ("files", ("b.txt", b"Salt is sold."))]
    sent = api.http.post("/v1/collections/form/documents", files=form, data={"metadata": '{"tag": "market"}'})
    assert sent.json()["added"] == 2, sent.text
    listed = api.http.get("/v1/collections/form/documents").json()["documents"]
    assert [item["metadata"] for item in listed] == [{"tag": "market"}] * 2
    bad = api.http.post("/v1/collections/form/documents", files=form, data={"metadata": "{"})
    problem_of(bad, 422, "invalid-request")


def test_urls_are_refused_unless_the_operator_allows_them(api: Running) -> None:
    body = {"urls": ["https://example.org/a.txt"]}
    refused = api.http.post("/v1/collections/web/documents", json=body)
    problem_of(refused, 403, "no-url-fetch")
    bad = api.http.post("/v1/collections/web/documents", json={"urls": ["file:///etc/passwd"]})
    problem_of(bad, 422, "invalid-request")


# Idempotency


def test_a_request_with_the_same_key_is_done_once(api: Running) -> None:
    headers = {"Idempotency-Key": "first"}
    body = {"documents": [{"uri": "u", "text": "Owls hunt at night."}]}
    path = "/v1/collections/once/documents"
    first = api.http.post(path, json=body, headers=headers)
    again = api.http.post(path, json=body, headers=headers)
    assert first.json()["added"] == 1
    assert "idempotency-replayed" not in first.headers
    assert (again.status_code, again.json(), again.headers["idempotency-replayed"]) == (200, first.json(), "true")
    assert api.http.post(path, json=body).json()["unchanged"] == 1, "without a key it is done again"
    other = {"documents": [{"uri": "u", "text": "Owls hunt at dusk."}]}
    problem_of(api.http.post(path, json=other, headers=headers), 422, "idempotency-key-reused")
    problem_of(api.http.post(path, json=body, headers={"Idempotency-Key": "x" * 256}), 422, "invalid-request")

    made = [
        api.http.post("/v1/collections", json={"name": "twice"}, headers={"Idempotency-Key": "another"}) for _ in "12"
    ]
    assert [response.status_code for response in made] == [201, 201]
    assert made[0].json() == made[1].json()


def test_a_request_that_failed_may_be_sent_again_with_its_key(api: Running) -> None:
    headers = {"Idempotency-Key": "failing"}
    body = {"documents": [{"uri": "u", "text": "  "}]}
    for _ in range(2):
        response = api.http.post("/v1/collections/failing/documents", json=body, headers=headers)
        problem_of(response, 422, "unusable-documents")


def test_of_requests_at_once_with_one_key_one_is_done(api: Running) -> None:
    body = {"documents": [{"uri": f"u{n}", "text": f"Bees dance {n}."} for n in range(40)]}

    def send(_: int) -> tuple[int, bool]:
        path, headers = "/v1/collections/racing/documents", {"Idempotency-Key": "race"}
        response = api.http.post(path, json=body, headers=headers)
        return response.status_code, "idempotency-replayed" in response.headers

    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(send, range(6)))
    assert outcomes.count((200, False)) == 1, outcomes
    assert set(outcomes) <= {(200, False), (200, True), (409, False)}


# The cache


def cache(api: Running, verb: str, **body: Any) -> dict:
    response = api.http.post(f"/v1/cache/{verb}", json=body)
    assert response.is_success, response.text
    return response.json()


def held(api: Running, name: str) -> dict:
    stats = api.http.get("/v1/cache").json()
    assert stats["free_blocks"] + stats["cached_blocks"] == stats["blocks"]
    empty = {"blocks": 0, "pinned_passages": 0}
    return next((item for item in stats["collections"] if item["collection"] == name), empty)


def test_passages_are_pinned_unpinned_and_flushed(api: Running) -> None:
    make(api, "kept")
    assert api.add(*DOCUMENTS, collection="kept").is_success
    assert held(api, "kept")["blocks"] == 0
    listed = api.http.get("/v1/collections/kept/documents").json()["documents"]
    assert cache(api, "pin", collection="kept", document_id=listed[0]["id"]) == {"passages": 1, "left_out": 0}
    assert cache(api, "pin", collection="kept") == {"passages": 2, "left_out": 0}
    assert held(api, "kept")["pinned_passages"] == 2
    answer = api.http.post("/v1/answer", json=QUESTION | {"collection": "kept"}).json()
    assert answer["cache"]["hit_tokens"]["device"] > 0, "what is pinned is there for the first question"

    assert cache(api, "unpin", collection="kept", document_id=listed[0]["id"]) == {"passages": 1}
    assert held(api, "kept")["pinned_passages"] == 1
    assert api.http.delete(f"/v1/collections/kept/documents/{listed[1]['id']}").is_success
    assert held(api, "kept")["pinned_passages"] == 0, "a deleted document is pinned no longer"
    flushed = cache(api, "flush", collection="kept", document_id=listed[0]["id"])
    assert flushed["blocks"] > 0
    assert cache(api, "flush", collection="kept", tier="all")["blocks"] > 0
    assert held(api, "kept")["blocks"] == 0
    api.check()


def test_new_text_of_a_pinned_document_is_another_passage(api: Running) -> None:
    make(api, "changed")
    assert api.add({"uri": "u", "text": LIGHTHOUSE}, {"uri": "v", "text": HARBOUR}, collection="changed").is_success
    cache(api, "pin", collection="changed")
    assert api.add({"uri": "u", "text": "It burned down."}, collection="changed").is_success
    assert held(api, "changed")["pinned_passages"] == 1
    assert api.http.delete("/v1/collections/changed").is_success
    assert held(api, "changed")["blocks"] == 0
    api.check()


def test_flushing_the_disk_removes_what_is_stored(api: Running) -> None:
    make(api, "disk")
    assert api.add(*DOCUMENTS, collection="disk").is_success
    for _ in range(2):
        events = api.http.post("/v1/collections/disk/precompute").text
        assert '"finished":true' in events
        assert api.http.get("/v1/collections/disk/precompute").json()["stored"] == 2
        assert cache(api, "flush", collection="disk", tier="all")["records"] == 2
        assert api.http.get("/v1/collections/disk/precompute").json()["stored"] == 0


@pytest.mark.parametrize("verb", ["warm", "pin", "unpin", "flush"])
def test_what_is_not_there_is_told(api: Running, verb: str) -> None:
    problem_of(api.http.post(f"/v1/cache/{verb}", json={"collection": "no"}), 404, "unknown-collection")
    body = {"collection": "docs", "document_id": "no"}
    problem_of(api.http.post(f"/v1/cache/{verb}", json=body), 404, "unknown-document")
