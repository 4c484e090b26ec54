"""Passage KV over HTTP and at the command line: plans, reading ahead with progress, purges, health."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rag_helpers import Ran, make_chat_model, run_cli
from server_helpers import DOCUMENTS, QUESTION, Running, events_of, eventually, make_config, problem_of, running

from rag.cli.output import cache_summary, mebibytes
from rag.client import Client
from rag.components import Components
from rag.errors import ServerError
from rag.idle import IdlePrecompute
from rag.schemas import Answer, DeletedDocument, PrecomputePlan, PrecomputeProgress
from rag.service import Service
from retriever.hash_embedder import HashEmbedder

Rag = Callable[..., Ran]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def api(tmp_path: Path, model: Path) -> Iterator[Running]:
    config = make_config(tmp_path / "data", model, kv_store_bytes=2**24)
    with Service(config, embedder=HashEmbedder()) as service, running(service) as api:
        api.add(*DOCUMENTS)
        yield api
        api.check()


@pytest.fixture
def rag(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Rag:
    monkeypatch.setattr(Components, "_make_embedder", lambda _self: HashEmbedder())
    for name, value in {"DTYPE": "float32", "KV_CACHE_BYTES": 2**24, "KV_STORE_BYTES": 2**24}.items():
        monkeypatch.setenv(f"PREREAD_ENGINE__{name}", str(value))
    monkeypatch.setenv("PREREAD_ANSWER__MAX_TOKENS", "8")
    where = ("--data-dir", tmp_path / "data", "--model", model, "--embedder", model)
    return lambda *arguments: run_cli(capsys, [*where, *arguments])


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for document in DOCUMENTS:
        (folder / f"{document['title']}.txt").write_text(document["text"])
    return folder


def test_a_collection_is_read_ahead_by_one_stream_at_a_time(api: Running) -> None:
    path = "/v1/collections/docs/precompute"
    api.service.components.worker()
    alone = api.service._precompute.alone("docs")
    with alone:
        problem = problem_of(api.http.post(path), 409, "precompute-running")
        assert "already" in problem["detail"]
        assert api.http.get(path).status_code == 200, "what it would take is told meanwhile"
    with api.http.stream("POST", path) as response:
        *_, (kind, last) = events_of(response)
    assert (kind, last["finished"]) == ("progress", True)


def test_a_collection_is_read_ahead_with_progress(api: Running) -> None:
    path = "/v1/collections/docs/precompute"
    plan = PrecomputePlan.model_validate(api.http.get(path).json())
    assert (plan.passages, plan.stored, plan.to_compute) == (2, 0, 2)
    with api.http.stream("POST", path) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [(name, PrecomputeProgress.model_validate(data)) for name, data in events_of(response) if name != ":"]
    assert [name for name, _ in events] == ["progress"] * len(events)
    assert events[-1][1].finished
    assert events[-1][1].passages == 2
    assert api.http.get(path).json()["stored"] == 2
    health = api.http.get("/healthz").json()["kv_store"]
    assert (health["records"], health["written"], health["declined"]) == (3, 3, 0)


def test_the_client_does_the_same(api: Running) -> None:
    client = Client(api.url)
    try:
        assert client.precompute_plan("docs") == api.service.precompute_plan("docs")
        *_, last = client.precompute("docs")
        assert (last.passages, last.finished) == (2, True)
        document = client.documents("docs")[0]
        deleted = client.delete_document("docs", document.id, purge=True)
        assert deleted.uri == document.uri
        assert deleted.purge is not None
        assert (deleted.purge.passages, deleted.purge.records) == (1, 1)
        with pytest.raises(ServerError, match="nope"):
            client.precompute_plan("nope")
        with pytest.raises(ServerError, match="nope"):
            list(client.precompute("nope"))
    finally:
        client.close()


def test_who_leaves_ends_the_reading(api: Running) -> None:
    documents = [{"uri": f"n:{n}", "text": f"Note {n} tells of ship {n}."} for n in range(40)]
    api.add(*documents)
    with api.http.stream("POST", "/v1/collections/docs/precompute") as response:
        assert next(iter(events_of(response)))[0] == "progress"
    eventually(lambda: api.service.components.activity.idle_seconds > 0)
    eventually(lambda: api.stats().waiting == api.stats().running == 0)
    plan = api.service.precompute_plan("docs")
    assert plan.stored + plan.to_compute == 42


def test_a_server_without_work_reads_ahead(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(IdlePrecompute.__init__.__kwdefaults__, "idle_seconds", 0.05)
    config = make_config(tmp_path / "data", model, kv_store_bytes=2**24, precompute_when_idle=True)
    with Service(config, embedder=HashEmbedder()) as service, running(service) as api:
        api.add(*DOCUMENTS)
        eventually(lambda: api.http.get("/healthz").json()["kv_store"]["records"] == 3)
        answer = Answer.model_validate(api.http.post("/v1/answer", json=QUESTION | {"k": 1}).json())
        assert [passage.outcome for passage in answer.cache.passages] == ["canonical"]


def test_what_cannot_be_read_ahead_is_a_problem(api: Running, tmp_path: Path, model: Path) -> None:
    problem_of(api.http.get("/v1/collections/nope/precompute"), 404, "unknown-collection")
    problem_of(api.http.post("/v1/collections/nope/precompute"), 404, "unknown-collection")
    config = make_config(tmp_path / "storeless", model, kv_store_bytes=0)
    with Service(config, embedder=HashEmbedder()) as service, running(service) as storeless:
        storeless.add(*DOCUMENTS)
        problem = problem_of(storeless.http.post("/v1/collections/docs/precompute"), 409, "no-kv-store")
        assert "PREREAD_ENGINE__KV_STORE_BYTES" in problem["detail"]
        assert storeless.http.get("/healthz").json()["kv_store"] is None


def test_a_delete_purges_on_request(api: Running) -> None:
    list(api.service.precompute("docs"))
    listed = api.http.get("/v1/collections/docs/documents").json()["documents"]
    path = "/v1/collections/docs/documents/"
    purged = DeletedDocument.model_validate(api.http.delete(path + listed[0]["id"], params={"purge": True}).json())
    assert purged.purge is not None
    assert (purged.purge.passages, purged.purge.records, purged.purge.kept) == (1, 1, [])
    plain = DeletedDocument.model_validate(api.http.delete(path + listed[1]["id"]).json())
    assert plain.purge is None
    assert api.http.get("/healthz").json()["kv_store"]["records"] == 1, "the template's"


def test_requests_choose_reuse_and_order(api: Running) -> None:
    for fields in ({"reuse": "exact"}, {"reuse": "auto", "order": "cache"}, {"order": "score"}):
        assert api.http.post("/v1/answer", json=QUESTION | fields).status_code == 200
    problem_of(api.http.post("/v1/answer", json=QUESTION | {"reuse": "chunk"}), 422, "reuse-not-certified")
    problem_of(api.http.post("/v1/answer", json=QUESTION | {"reuse": "all"}), 422, "invalid-request")


def test_ingest_and_read_ahead_at_the_command_line(rag: Rag, docs: Path) -> None:
    ran = rag("ingest", docs, "--precompute")
    assert (ran.code, ran.out.count("2 passages read ahead in ")) == (0, 1), ran.err
    assert "2 of 2 passages to read ahead" in ran.err
    assert "the budget is 16.0 MiB" in ran.err
    again = rag("ingest", "--precompute")
    assert (again.code, again.out.count("0 passages read ahead")) == (0, 1)
    as_json = json.loads(rag("ingest", docs, "--precompute", "--json").out)
    assert (as_json["unchanged"], as_json["precompute"]["finished"]) == (2, True)
    asked = rag("ask", "Who lights the lamp?", "-k", "1", "--reuse", "exact", "--order", "cache")
    assert "of them from disk) · passages: 1 canonical · first token" in asked.out.splitlines()[-1]
    assert rag("ingest").code == 2
    assert rag("ask", "Why?", "--reuse", "always").message.count("'auto', 'exact' or 'chunk'") == 1
    refused = rag("ask", "Who lights the lamp?", "--reuse", "chunk")
    assert (refused.code, "rag certify" in refused.err) == (1, True)


def test_what_has_no_room_is_told(rag: Rag, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREREAD_ENGINE__KV_STORE_BYTES", str(2**15))
    ran = rag("ingest", docs, "--precompute")
    assert ran.code == 0
    assert "WARNING: there is no room for" in ran.err
    monkeypatch.setenv("PREREAD_ENGINE__KV_STORE_BYTES", "0")
    refused = rag("ingest", "--precompute")
    assert (refused.code, "PREREAD_ENGINE__KV_STORE_BYTES" in refused.err) == (1, True)


def test_passages_that_are_too_long_are_left_out_and_told(
    rag: Rag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "long.md").write_text("The owls of Orrin hunt at night beside the old stone bridge. " * 12)
    (folder / "short.md").write_text("Bats sleep.")
    monkeypatch.setenv("PREREAD_ENGINE__MAX_MODEL_LEN", "300")
    ran = rag("ingest", folder, "--precompute")
    assert (ran.code, "1 passages read ahead in " in ran.out) == (0, True), ran.err
    assert "WARNING: 3 of them are too long for the model" in ran.err, "as many as the long document has"


def test_documents_are_purged_at_the_command_line(rag: Rag, docs: Path) -> None:
    rag("ingest", docs, "--precompute")
    first, second = (document["id"] for document in json.loads(rag("documents", "list", "--json").out))
    ran = rag("documents", "delete", first, "--purge")
    assert (ran.code, ran.out.count("purged the KV of 1 passages: 1 records erased from disk")) == (0, 1), ran.err
    assert json.loads(rag("documents", "delete", second, "--purge", "--json").out)["purge"]["records"] == 1
    checks = {check["name"]: check for check in json.loads(rag("doctor", "--quick", "--json").out)["checks"]}
    assert checks["KV store"]["works"] is True
    assert checks["KV store"]["detail"].startswith("1 records, ")


def test_commands_let_a_server_read_ahead(api: Running, rag: Rag) -> None:
    ran = rag("ingest", "--precompute", "-c", "docs")
    assert (ran.code, ran.out.count("docs: 2 passages read ahead")) == (0, 1), ran.err
    assert api.service.components.store().stats().records == 3
    checks = {check["name"]: check for check in json.loads(rag("doctor", "--quick", "--json").out)["checks"]}
    assert checks["KV store"]["detail"].startswith("3 records, ")


def test_sizes_are_told_for_people(api: Running) -> None:
    assert [mebibytes(size) for size in (0, 3 * 2**19, 20 * 2**30)] == ["0.0 MiB", "1.5 MiB", "20.0 GiB"]
    answer = Answer.model_validate(api.http.post("/v1/answer", json=QUESTION).json())
    assert "passages: 2 computed" in cache_summary(answer)
