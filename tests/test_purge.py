"""What was found before a purge never brings the purged KV back: by questions, checks of answers, reading ahead."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_helpers import passage, tail, template
from rag_helpers import HARBOUR, LIGHTHOUSE, make_chat_model
from server_helpers import eventually

from engine import Engine, EngineConfig, Prompt, SamplingParams
from engine.errors import OutdatedPromptError
from engine.outdated import MOST_NAMESPACES, OldestStates
from engine.output import Generation
from engine.prompt import Segment
from engine.request import FinishReason
from rag import cleaning
from rag.config import AnswerSettings, EngineSettings, RagConfig, load_config
from rag.errors import NoPassagesError, PrecomputeRunningError, PurgeError
from rag.idle import IdlePrecompute
from rag.operations import final_answer
from rag.precompute import Precompute
from rag.schemas import Answer, AnswerRequest, PrecomputeProgress
from rag.service import Service
from retriever.document import TextSource
from retriever.errors import StoreError
from retriever.hash_embedder import HashEmbedder

TEMPLATE, A, B = template(range(20)), passage(range(30, 70), "1"), passage(range(80, 120), "2")
NOTHING = SamplingParams(max_tokens=0)
SOURCES = [TextSource("t:lighthouse", LIGHTHOUSE, "lighthouse"), TextSource("t:harbour", HARBOUR, "harbour")]


@pytest.fixture
def config(tmp_path: Path) -> RagConfig:
    model = make_chat_model(tmp_path / "model")
    engine = EngineSettings(dtype="float32", kv_cache_bytes=16 * 2**20, kv_store_bytes=16 * 2**20)
    answer = AnswerSettings(max_tokens=8, stop_repetition=False, speculate=False)
    return load_config(data_dir=tmp_path / "data", model=str(model), embedder=str(model), engine=engine, answer=answer)


@pytest.fixture
def service(config: RagConfig) -> Iterator[Service]:
    with Service(config, embedder=HashEmbedder()) as service:
        service.ingest("docs", SOURCES)
        yield service


def ask(service: Service, k: int = 2) -> Answer:
    return final_answer(service.answer(AnswerRequest(question="Who lights the lamp?", collection="docs", k=k)))


def lighthouse(service: Service) -> str:
    return next(document.id for document in service.documents("docs") if document.uri == "t:lighthouse")


def tokens_of_lighthouse(service: Service) -> tuple[int, ...]:
    (own,) = service.components.library().passages("docs", lighthouse(service))
    return own.token_ids


def has_kv_of(service: Service, tokens: tuple[int, ...]) -> bool:
    engine, head = service.components.worker().engine, service.components.layout().head
    engine.tier.flush()
    in_tree = engine.cache.is_cached("1", [head, passage(tokens, "any")])
    return in_tree or engine.tier.has("1", head.tokens, tokens)


def before_submitting(service: Service, monkeypatch: pytest.MonkeyPatch, then) -> None:
    """Do something once, when a prompt is made and not yet submitted."""
    worker = service.components.worker()
    submit, done = worker.submit_sync, []

    def late(prompt, *args, **kwargs):
        if not done:
            done.append(True)
            then()
        return submit(prompt, *args, **kwargs)

    monkeypatch.setattr(worker, "submit_sync", late)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    config = EngineConfig(dtype="float32", backend="reference", block_size=16, kv_cache_bytes=4 << 20)
    return Engine.from_pretrained(make_chat_model(tmp_path / "model"), config)


def test_prompts_of_a_state_that_has_ended_are_refused(engine: Engine) -> None:
    engine.outdate("c", 7)
    with pytest.raises(OutdatedPromptError, match="deleted"):
        engine.submit(Prompt([TEMPLATE, A]), NOTHING, namespace="c", as_of=6)
    engine.outdate("c", 3)
    with pytest.raises(OutdatedPromptError):
        engine.submit(Prompt([TEMPLATE, A]), NOTHING, namespace="c", as_of=6)
    for how in ({"namespace": "c", "as_of": 7}, {"namespace": "other", "as_of": 6}, {"namespace": "c"}):
        *_, end = engine.stream(engine.submit(Prompt([TEMPLATE, A]), NOTHING, **how))
        assert isinstance(end, Generation)
        assert end.finish_reason is FinishReason.LENGTH
    assert engine.stats().waiting == 0


def test_what_nobody_waits_for_ends_with_the_state_that_it_was_made_of(engine: Engine) -> None:
    """Even where the purged text is in a private tail, as in the full run of a shadow check."""
    hidden = Prompt([TEMPLATE, tail((*A.tokens, *B.tokens))])
    check = engine.submit(hidden, forced=(1, 2, 3), background=True, namespace="c", as_of=1)
    reading = engine.submit(Prompt([TEMPLATE, B]), NOTHING, background=True, namespace="c", as_of=1)
    asked = engine.submit(Prompt([TEMPLATE, B, tail([5])]), SamplingParams(max_tokens=2), namespace="c", as_of=1)
    elsewhere = engine.submit(Prompt([TEMPLATE, A]), NOTHING, background=True, namespace="other", as_of=1)
    engine.outdate("c", 2)
    assert engine.purge("c", [A.tokens])
    for request, reason in ((check, "cancelled"), (reading, "cancelled"), (asked, "length"), (elsewhere, "length")):
        *_, end = engine.stream(request)
        assert isinstance(end, Generation)
        assert end.finish_reason == reason
    engine.check_invariants()


def test_a_question_between_retrieval_and_prompt_is_retrieved_again(service: Service, monkeypatch) -> None:
    assert len(ask(service).sources) == 2
    tokens, document = tokens_of_lighthouse(service), lighthouse(service)
    before_submitting(service, monkeypatch, lambda: service.delete_document("docs", document, purge=True))
    found = ask(service)
    assert [source.uri for source in found.sources] == ["t:harbour"]
    assert not has_kv_of(service, tokens)
    service.ingest("docs", SOURCES)
    assert tokens_of_lighthouse(service) == tokens
    assert {source.uri for source in ask(service).sources} == {"t:harbour", "t:lighthouse"}
    *_, last = service.precompute("docs")
    assert last.finished
    assert has_kv_of(service, tokens), "what is ingested again is kept as before"


def test_a_question_whose_collection_goes_meanwhile_is_told(service: Service, monkeypatch) -> None:
    ask(service)
    number = len(service.documents("docs"))
    before_submitting(
        service, monkeypatch, lambda: [service.delete_document("docs", one.id) for one in service.documents("docs")]
    )
    with pytest.raises(NoPassagesError):
        ask(service)
    assert number == 2


def test_a_run_leaves_out_what_is_purged_while_it_runs(service: Service, monkeypatch) -> None:
    service.ingest("docs", [TextSource(f"n:{n}", f"Note {n} is about the number {n}.", str(n)) for n in range(6)])
    tokens, document = tokens_of_lighthouse(service), lighthouse(service)
    before_submitting(service, monkeypatch, lambda: service.delete_document("docs", document, purge=True))
    *_, last = service.precompute("docs")
    assert last.finished
    assert (last.passages, last.total) == (7, 8)
    assert not has_kv_of(service, tokens)


def test_a_run_ends_with_its_collection(service: Service, monkeypatch) -> None:
    ask(service)
    before_submitting(service, monkeypatch, lambda: service.delete_collection("docs"))
    *_, last = service.precompute("docs")
    assert last.passages == 0
    engine = service.components.worker().engine
    engine.tier.flush()
    assert service.components.store().stats().records == 0
    assert engine.stats().cached_blocks == 0


def test_a_run_under_way_reads_what_is_left_after_a_purge(service: Service) -> None:
    """Requests that the purge cancels are of passages that live: they are submitted once more."""
    service.ingest("docs", [TextSource(f"n:{n}", f"Note {n} is about the number {n}. " * 20, str(n)) for n in range(9)])
    tokens, document = tokens_of_lighthouse(service), lighthouse(service)
    events = service.precompute("docs")
    next(events)
    first = next(events)
    assert first.passages == 1
    thread = threading.Thread(target=service.delete_document, args=("docs", document), kwargs={"purge": True})
    thread.start()
    thread.join(30)
    *_, last = events
    assert last.finished
    assert last.total - last.passages in (0, 1), "the purged one may have been the first"
    assert not has_kv_of(service, tokens)


def test_one_run_over_a_collection_at_a_time(service: Service) -> None:
    service.ingest("more", SOURCES)
    events = service.precompute("docs")
    next(events)
    with pytest.raises(PrecomputeRunningError, match="already"):
        list(service.precompute("docs"))
    assert list(service.precompute("more"))[-1].finished, "another collection's may run beside it"
    events.close()
    assert list(service.precompute("docs"))[-1].finished


def test_reading_while_idle_is_planned_once_for_each_state(service: Service, monkeypatch) -> None:
    components = service.components
    service.ingest("docs", [TextSource(f"n:{n}", f"Note {n} is about the number {n}.", str(n)) for n in range(40)])
    precompute = Precompute(components)
    plan, planned = precompute.start, list[str]()
    monkeypatch.setattr(precompute, "start", lambda name: planned.append(name) or plan(name))
    idle = IdlePrecompute(components, precompute, idle_seconds=0.05)
    idle.start()
    for _ in range(5):
        eventually(lambda: planned == ["docs"])
        ask(service, k=1)  # interrupts it
    eventually(lambda: components.store().stats().records == 42 + 1)
    eventually(lambda: components.activity.idle_seconds > 0.3)
    assert planned == ["docs"]
    service.ingest("docs", [TextSource("t:ferry", "The ferry of Orrin leaves at noon.", "ferry")])
    eventually(lambda: components.store().stats().records == 44)
    assert planned == ["docs", "docs"]
    components.library().set_answering("docs", '{"prompt": {"system": "Answer like a pirate."}}')
    eventually(lambda: components.store().stats().records == 44 + 43 + 1, 20)
    idle.close()
    assert planned == ["docs"] * 3, "below another template it is other KV"


def test_a_run_stops_where_the_disk_takes_nothing(service: Service, monkeypatch, caplog) -> None:
    service.ingest("docs", [TextSource(f"n:{n}", f"Note {n} is about the number {n}.", str(n)) for n in range(60)])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    service.components.worker()
    monkeypatch.setattr("engine.kv_folder.ExtentFolder.append", full)
    *_, last = service.precompute("docs")
    assert isinstance(last, PrecomputeProgress)
    assert not last.finished
    assert last.passages < 62
    assert "takes no KV" in caplog.text
    assert service.components.store().info().declined > 0


def test_no_file_of_the_data_directory_has_the_text(service: Service, config: RagConfig) -> None:
    def is_there() -> bool:
        return any(b"Mara Venn" in path.read_bytes() for path in config.data_dir.rglob("*") if path.is_file())

    *_, last = service.precompute("docs")
    assert last.finished
    ask(service)
    assert is_there()
    service.delete_document("docs", lighthouse(service), purge=True)
    assert not is_there()


def texts_on_disk(config: RagConfig) -> bytes:
    return b"".join(path.read_bytes() for path in config.data_dir.rglob("*") if path.is_file())


def test_a_purge_that_an_answer_outlasts_empties_the_disk_and_is_finished_later(
    service: Service, config: RagConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, last = service.precompute("docs")
    assert last.finished
    monkeypatch.setattr(cleaning, "PATIENCE_SECONDS", 0.1)
    tokens, document = tokens_of_lighthouse(service), lighthouse(service)
    components = service.components
    records = components.store().stats().records
    events = service.answer(AnswerRequest(question="Who lights the lamp?", collection="docs", k=2, max_tokens=3000))
    next(events)
    next(events)
    with pytest.raises(PurgeError) as caught:
        service.delete_document("docs", document, purge=True)
    told = str(caught.value)
    assert "Erased: its KV on the disk, its text and vectors." in told
    assert "Left: its KV in memory: an answer that uses its passages runs on" in told
    assert b"Mara Venn" not in texts_on_disk(config)
    assert components.store().stats().records == records - 1
    service.ingest("docs", [TextSource("t:a", "An owl hunts.", "a")])
    assert len(components.purging) == 1, "the answer still runs"
    events.close()
    engine = components.worker().engine
    eventually(lambda: not engine.scheduler.has_work)
    service.ingest("docs", [TextSource("t:b", "A bat sleeps.", "b")])
    assert components.purging == []
    assert not has_kv_of(service, tokens)


def test_a_disk_that_keeps_kv_keeps_no_text(service: Service, config: RagConfig, monkeypatch) -> None:
    *_, last = service.precompute("docs")
    assert last.finished
    store, tokens = service.components.store(), tokens_of_lighthouse(service)

    def fail(_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(store._store, "purge", fail)
        with pytest.raises(PurgeError, match=r"Erased: its KV in memory, its text and vectors\. Left: .*Input/output"):
            service.delete_document("docs", lighthouse(service), purge=True)
    assert b"Mara Venn" not in texts_on_disk(config)
    assert has_kv_of(service, tokens)
    service.ingest("docs", [TextSource("t:a", "An owl hunts.", "a")])
    assert not has_kv_of(service, tokens)


def test_a_library_that_keeps_text_is_told(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tokens_of_lighthouse(service)
    *_, last = service.precompute("docs")
    assert last.finished

    def fail() -> None:
        raise StoreError("the log is still read")

    monkeypatch.setattr(service.components.library().store, "erase_deleted", fail)
    with pytest.raises(PurgeError, match=r"Erased: its KV in memory, its KV on the disk\. Left: its text and vectors"):
        service.delete_document("docs", lighthouse(service), purge=True)
    assert not has_kv_of(service, tokens)


def test_what_is_pinned_while_dead_pins_are_looked_for_stays(service: Service, monkeypatch) -> None:
    *_, last = service.precompute("docs")
    assert last.finished
    library, head = service.components.library(), service.components.layout().head
    worker = service.components.worker()
    passages = library.passages("docs")
    first, second = (passage(one.token_ids, str(one.id)) for one in passages)
    living = library.living

    def pin(segment: Segment) -> bool:
        return worker.call(lambda engine: engine.cache.pin("1", head, segment)).result()

    def late(row, ids):
        found = living(row, ids)
        assert pin(second), "after the names were read, before the dead ones are let go"
        return found

    def pinned() -> set[str]:
        return {segment.name for segment in worker.engine.cache.pins.passages("1")}

    assert pin(first)
    with monkeypatch.context() as patch:
        patch.setattr(library, "living", late)
        cleaning.release_dead_pins(service.components)
    assert pinned() == {first.name, second.name}
    service.delete_document("docs", passages[0].document_id)
    assert pinned() == {second.name}


def test_what_is_known_of_deleted_namespaces_is_bounded():
    oldest = OldestStates()
    for i in range(MOST_NAMESPACES):
        oldest.raise_to(f"c{i}", 5)
    oldest.raise_to("c0", 4)  # the first of them has lost something again: its state does not go down
    oldest.raise_to("another", 5)
    for namespace in ("c0", "c2", "another"):
        with pytest.raises(OutdatedPromptError):
            oldest.check(namespace, 4)
        oldest.check(namespace, 5)
    oldest.check("c1", 4)  # it was the longest ago that this one lost something
    oldest.check("c0", None)
