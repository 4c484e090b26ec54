"""Passages are read before anybody asks: planned, resumed, kept over a restart, ended with their documents."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rag_helpers import HARBOUR, LIGHTHOUSE, make_chat_model
from server_helpers import eventually

from rag.activity import Activity
from rag.config import AnswerSettings, EngineSettings, RagConfig, load_config
from rag.errors import NoKVStoreError, NoPassagesError
from rag.idle import IdlePrecompute
from rag.operations import final_answer
from rag.precompute import Precompute
from rag.schemas import Answer, AnswerRequest, CollectionPatch, PrecomputeProgress
from rag.service import Service
from retriever.document import TextSource
from retriever.errors import UnknownCollectionError
from retriever.hash_embedder import HashEmbedder

TEXTS = {
    "lighthouse": LIGHTHOUSE,
    "harbour": HARBOUR,
    "market": "The market of Orrin sells wool and salt. It opens when the harbour bell rings twice.",
    "mill": "The mill of Orrin grinds rye. Its wheel stands still when the river freezes.",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("models") / "tiny")


def make_config(folder: Path, model: Path, **engine: object) -> RagConfig:
    settings = {"dtype": "float32", "kv_cache_bytes": 16 * 2**20, "kv_store_bytes": 16 * 2**20, **engine}
    return load_config(
        data_dir=folder,
        model=str(model),
        engine=EngineSettings(**settings),
        answer=AnswerSettings(max_tokens=8, stop_repetition=False),
        embedder=str(model),
    )


@pytest.fixture
def config(tmp_path: Path, model: Path) -> RagConfig:
    return make_config(tmp_path / "data", model)


@pytest.fixture
def service(config: RagConfig) -> Iterator[Service]:
    with opened(config) as service:
        yield service


def opened(config: RagConfig) -> Service:
    service = Service(config, embedder=HashEmbedder())
    service.ingest("docs", [TextSource(f"t:{name}", text, name) for name, text in TEXTS.items()])
    return service


def read_ahead(service: Service, collection: str = "docs") -> PrecomputeProgress:
    *_, last = service.precompute(collection)
    return last


def ask(service: Service, question: str = "Who lights the lamp?", **fields: object) -> Answer:
    return final_answer(service.answer(AnswerRequest(question=question, collection="docs", **fields)))


def test_a_plan_walks_the_passages_once_until_they_change(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    library, walks = service.components.library(), []
    walk = library.iter_passages
    monkeypatch.setattr(library, "iter_passages", lambda name: walks.append(name) or walk(name))
    plans = [service.precompute_plan("docs") for _ in range(3)]
    assert (plans[0].passages, plans[1:], len(walks)) == (4, plans[:1] * 2, 1)
    service.ingest("docs", [TextSource("t:new", "Nobody has read this before.", "new")])
    assert (service.precompute_plan("docs").passages, len(walks)) == (5, 2)
    service.delete_document("docs", service.documents("docs")[0].id)
    assert (service.precompute_plan("docs").passages, len(walks)) == (4, 3)
    other = CollectionPatch(answering={"prompt": {"before": "Read this."}})
    service.update_collection("docs", other)
    assert (service.precompute_plan("docs").passages, len(walks)) == (4, 4), "every key is another one"


def test_a_plan_tells_what_it_takes_and_the_run_does_that(service: Service) -> None:
    plan = service.precompute_plan("docs")
    assert (plan.passages, plan.stored, plan.to_compute) == (4, 0, 4)
    passages = service.components.library().passages("docs")
    assert plan.tokens == sum(len(passage.token_ids) for passage in passages)
    assert plan.bytes_budget == 16 * 2**20
    events = list(service.precompute("docs"))
    assert [event.passages for event in events] == [0, 1, 2, 3, 4, 4]
    assert [event.finished for event in events] == [False] * 5 + [True]
    assert events[-1].tokens == plan.tokens
    after = service.precompute_plan("docs")
    assert (after.passages, after.stored, after.to_compute, after.bytes_needed) == (4, 4, 0, 0)
    template = service.components.store().stats().nbytes - plan.bytes_stored - plan.bytes_needed
    assert 0 < template <= plan.bytes_needed / 2, "the estimate is close, and leaves out the template alone"
    assert [event.passages for event in service.precompute("docs")] == [0, 0], "nothing is computed twice"


def test_answers_are_the_same_and_come_from_disk_after_a_restart(config: RagConfig) -> None:
    with opened(config) as service:
        expected = ask(service, k=1)
        assert expected.usage.cached_tokens == 0
        read_ahead(service)
    with opened(config) as service:
        found = ask(service, k=1)
        assert found.answer == expected.answer
        assert [(p.outcome, p.tier) for p in found.cache.passages] == [("canonical", "disk")]
        assert found.cache.hit_tokens.disk == found.usage.cached_tokens > 0
        assert found.timings_ms.load > 0
        again = ask(service, k=1)
        assert [(p.outcome, p.tier) for p in again.cache.passages] == [("canonical", "device")]
        assert again.cache.hit_tokens.disk == 0
        assert again.timings_ms.load == 0, "nothing was read from the disk"


def test_what_answers_computed_is_kept_too(config: RagConfig) -> None:
    with opened(config) as service:
        ask(service, k=1)
    with opened(config) as service:
        assert service.precompute_plan("docs").stored == 1
        assert ask(service, k=1).cache.passages[0].tier == "disk"


def test_an_interrupted_run_is_taken_up(config: RagConfig) -> None:
    with opened(config) as service:
        events = service.precompute("docs")
        while next(events).passages < 2:
            pass
        events.close()
        eventually(lambda: not service.components.worker().engine.scheduler.has_work)
    with opened(config) as service:
        plan = service.precompute_plan("docs")
        assert plan.stored >= 2
        assert plan.stored + plan.to_compute == 4
        assert read_ahead(service).passages == plan.to_compute
        assert service.precompute_plan("docs").stored == 4


def test_only_what_has_room_is_computed_and_found_ones_first(tmp_path: Path, model: Path) -> None:
    with opened(make_config(tmp_path, model)) as service:
        needed = service.precompute_plan("docs").bytes_needed
    with opened(make_config(tmp_path, model, kv_store_bytes=needed // 2)) as service:
        favourite = ask(service, "rye wheel river", k=1).sources[0].passage_id
    with opened(make_config(tmp_path, model, kv_store_bytes=needed // 2)) as service:
        ranking = service.components.library().popularity.ranking("docs")
        assert ranking[0] == favourite
        plan = service.precompute_plan("docs")
        assert 1 <= plan.to_compute < 3
        assert plan.bytes_stored + plan.bytes_needed <= plan.bytes_budget
        assert read_ahead(service).passages == plan.to_compute


def test_without_a_store_nothing_is_read_ahead(tmp_path: Path, model: Path) -> None:
    with opened(make_config(tmp_path, model, kv_store_bytes=0)) as service:
        for refused in (service.precompute_plan, read_ahead_in(service)):
            with pytest.raises(NoKVStoreError, match="KV_STORE_BYTES"):
                refused("docs")
        assert ask(service).sources
        service.delete_document("docs", service.documents("docs")[0].id, purge=True)
    assert not (tmp_path / "kv").exists()


def test_a_store_that_cannot_be_opened_costs_only_reading_again(config: RagConfig, caplog) -> None:
    config.data_dir.mkdir(parents=True)
    (config.data_dir / "kv").write_text("a file where the folder should be")
    with opened(config) as service:
        assert ask(service).sources
        service.delete_document("docs", service.documents("docs")[0].id, purge=True)
    assert "passages are read again after a restart" in caplog.text


def read_ahead_in(service: Service):
    return lambda collection: list(service.precompute(collection))


@pytest.mark.parametrize("harm", ["flip", "cut", "replace"])
def test_damaged_kv_is_never_an_answer(config: RagConfig, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    with opened(config) as service:
        read_ahead(service)
        expected = ask(service, k=1)
    files = [path for path in (config.data_dir / "kv").iterdir() if path.is_file() and path.stat().st_size > 4096]
    for path in files:
        content = bytearray(path.read_bytes())
        if harm == "flip":
            for position in range(2000, len(content), 1000):
                content[position] ^= 0x10
        path.write_bytes({"flip": content, "cut": content[:9000], "replace": b"something else " * 9000}[harm])
    with opened(config) as service:
        found = ask(service, k=1)
        assert (found.answer, found.sources) == (expected.answer, expected.sources)
        assert found.usage.cached_tokens < expected.usage.cached_tokens, "what was damaged is computed again"
        info = service.components.store().info()
        assert info.bad_records + info.damages > 0 or harm == "cut"
        assert any("kv" in record.name for record in caplog.records)
        read_ahead(service)
        assert service.precompute_plan("docs").stored == 4, "and stored again"


def test_the_kv_of_another_model_is_never_found(config: RagConfig, tmp_path: Path) -> None:
    with opened(config) as service:
        read_ahead(service)
    other = make_chat_model(tmp_path / "other")
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-4:] = bytes(4)  # one number
    (other / "model.safetensors").write_bytes(weights)
    with opened(config.model_copy(update={"model": str(other)})) as service:
        assert service.precompute_plan("docs").stored == 0
        assert ask(service, k=1).usage.cached_tokens == 0
    with opened(config) as service:
        assert service.precompute_plan("docs").stored == 4, "each has its own"


def test_an_unknown_collection_is_told(service: Service) -> None:
    with pytest.raises(UnknownCollectionError):
        service.precompute_plan("nope")


def test_a_changed_document_ends_its_kv_on_disk(service: Service) -> None:
    read_ahead(service)
    store = service.components.store()
    before = set(store.keys())
    service.ingest("docs", [TextSource("t:mill", "The mill burnt down.", "mill")])
    assert len(before - set(store.keys())) == 1
    plan = service.precompute_plan("docs")
    assert (plan.stored, plan.to_compute) == (3, 1)
    sources = [TextSource("t:harbour", HARBOUR, "harbour")]
    service.ingest("docs", sources, prune_scope=["t:"])
    assert len(store.keys()) == 2, "the template's and one passage's"


def test_a_deleted_collection_leaves_nothing_on_disk(service: Service) -> None:
    read_ahead(service)
    assert service.components.store().stats().records == 5
    service.delete_collection("docs")
    assert service.components.store().stats().records == 0


def test_a_document_is_deleted_with_its_kv_where_no_engine_runs(config: RagConfig) -> None:
    with opened(config) as service:
        read_ahead(service)
        document = service.documents("docs")[0].id
    with Service(config, embedder=HashEmbedder()) as service:
        service.delete_document("docs", document)
        assert service.components.worker.if_made is None
        assert service.components.store().stats().records == 4
    with Service(config, embedder=HashEmbedder()) as service:
        purge = service.delete_document("docs", service.documents("docs")[0].id, purge=True).purge
        assert purge is not None
        assert (purge.passages, purge.records) == (1, 1)


def test_a_purge_leaves_no_byte_of_it(config: RagConfig) -> None:
    with opened(config) as service:
        read_ahead(service)
        gone = ask(service, k=3).sources[0]
        engine = service.components.worker().engine
        head = service.components.layout().head
        (passage,) = service.components.library().passages("docs", gone.document_id)
        key = engine.identity.key("1", head.tokens, passage.token_ids)
        segment = service.components.layout().passage(passage)
        assert key in service.components.store()
        deleted = service.delete_document("docs", gone.document_id, purge=True)
        assert deleted.purge is not None
        assert (deleted.purge.passages, deleted.purge.records, deleted.purge.kept) == (1, 1, [])
        assert deleted.purge.scanned_bytes > 0
        assert not engine.cache.is_cached("1", [head, segment])
        assert engine.missing(head, [segment], "1") == [0]
        content = b"".join(file.read_bytes() for file in (config.data_dir / "kv").rglob("*") if file.is_file())
        assert key not in content
        assert gone.passage_id not in {source.passage_id for source in ask(service, k=3).sources}


def test_a_purge_waits_for_answers_that_read_the_passage(service: Service) -> None:
    events = service.answer(AnswerRequest(question="Who lights the lamp?", collection="docs", k=4, max_tokens=3000))
    retrieval = next(events)
    next(events)
    purged: list[object] = []
    document = retrieval.sources[0].document_id
    thread = threading.Thread(
        target=lambda: purged.append(service.delete_document("docs", document, purge=True)), daemon=True
    )
    thread.start()
    time.sleep(0.2)
    still_running = not purged
    events.close()
    thread.join(20)
    assert still_running
    assert purged


def test_deletes_race_with_answers(service: Service) -> None:
    read_ahead(service)
    expected = {
        question: ask(service, question, k=1) for question in ("lamp lit evening", "wool and salt", "rye wheel")
    }
    stop, failures = threading.Event(), list[object]()

    def keep_asking(question: str) -> None:
        while not stop.is_set():
            try:
                found = ask(service, question, k=1)
            except NoPassagesError:
                continue
            if found.sources[0].passage_id == expected[question].sources[0].passage_id:
                failures.extend([found] if found.answer != expected[question].answer else [])

    threads = [threading.Thread(target=keep_asking, args=(question,)) for question in expected]
    for thread in threads:
        thread.start()
    for number in range(8):
        for document in service.documents("docs")[number % 2 :: 2]:
            service.delete_document("docs", document.id, purge=number % 3 == 0)
        service.ingest("docs", [TextSource(f"t:{name}", text, name) for name, text in TEXTS.items()])
    stop.set()
    for thread in threads:
        thread.join(30)
    assert not failures
    components = service.components
    components.worker().call(lambda engine: engine.check_invariants()).result()
    components.worker().engine.tier.flush()
    assert set(components.store().keys()) <= components.library().derived.all()
    assert components.library().derived.dead() == []


def test_nobody_waits_for_what_is_read_while_idle(service: Service) -> None:
    components = service.components
    idle = IdlePrecompute(components, Precompute(components), idle_seconds=0.05)
    with components.activity.busy():
        idle.start()
        time.sleep(0.3)
        assert components.worker.if_made is None, "somebody waits"
    eventually(lambda: components.store.if_made and service.components.store().stats().records == 5)
    service.ingest("docs", [TextSource("t:ferry", "The ferry of Orrin leaves at noon.", "ferry")])
    eventually(lambda: components.store().stats().records == 6)
    idle.close()
    assert service.precompute_plan("docs").to_compute == 0


def test_a_question_ends_the_reading_at_once(service: Service) -> None:
    run = Precompute(service.components).start("docs")
    activity = service.components.activity
    with activity.interrupting(run.stop) as idle:
        assert idle
        events = iter(run)
        next(events)
        answer = ask(service, k=1)
        progress = list(events)
    assert answer.sources
    assert run.is_stopped
    assert progress[-1].passages < 4
    assert not any(event.finished for event in progress)


def test_activity_counts_who_waits() -> None:
    activity = Activity()
    interrupted: list[int] = []
    assert activity.idle_seconds > 0
    with activity.interrupting(lambda: interrupted.append(1)) as idle:
        assert idle
        with activity.busy(), activity.busy():
            assert activity.idle_seconds == 0
        assert interrupted == [1, 1]
    with activity.busy(), activity.interrupting(lambda: interrupted.append(2)) as idle:
        assert not idle
    with activity.busy():
        pass
    assert interrupted == [1, 1]
