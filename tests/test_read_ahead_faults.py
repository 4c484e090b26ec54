"""What goes wrong while passages are read ahead costs those passages: nothing hangs, and the others are read."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rag_helpers import HARBOUR, LIGHTHOUSE, make_chat_model
from server_helpers import eventually

from engine.errors import PromptTooLongError, StepFailedError
from rag.config import AnswerSettings, EngineSettings, load_config
from rag.idle import IdlePrecompute
from rag.precompute import Precompute
from rag.service import Service
from retriever.document import TextSource
from retriever.errors import StoreError
from retriever.hash_embedder import HashEmbedder

SOURCES = [
    TextSource("t:lighthouse", LIGHTHOUSE, "lighthouse"),
    TextSource("t:harbour", HARBOUR, "harbour"),
    *(TextSource(f"n:{n}", f"Note {n} is about the number {n}.", str(n)) for n in range(4)),
]
TEMPLATES = 1  # records of a collection that are of no passage


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def service(tmp_path: Path, model: Path) -> Iterator[Service]:
    config = load_config(
        data_dir=tmp_path,
        model=str(model),
        engine=EngineSettings(dtype="float32", kv_cache_bytes=16 * 2**20, kv_store_bytes=16 * 2**20),
        answer=AnswerSettings(max_tokens=8, stop_repetition=False),
        embedder=str(model),
    )
    with Service(config, embedder=HashEmbedder()) as service:
        service.ingest("docs", SOURCES)
        yield service


@pytest.fixture
def idle(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[IdlePrecompute]:
    monkeypatch.setattr("rag.idle.RETRY_SECONDS", 0.05)
    idle = IdlePrecompute(service.components, Precompute(service.components), idle_seconds=0.05)
    yield idle
    idle._stopping.set()
    if idle._thread.ident is not None:
        idle._thread.join(20)
    assert not idle._thread.is_alive(), "what it waits for never comes"


def fail_steps(service: Service, monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Let the next steps of the engine fail; returns the list that grows with each."""
    engine = service.components.worker().engine
    step, failed = engine.step, list[int]()

    def failing() -> object:
        if len(failed) < times:
            failed.append(1)
            raise RuntimeError("the device has failed")
        return step()

    monkeypatch.setattr(engine, "step", failing)
    return failed


def records(service: Service) -> int:
    return service.components.store().stats().records


def test_a_failed_step_ends_neither_the_thread_nor_the_reading(service, idle, monkeypatch) -> None:
    failed = fail_steps(service, monkeypatch, 2)
    idle.start()
    eventually(lambda: records(service) >= len(SOURCES) - 2 + TEMPLATES)
    assert len(failed) == 2
    time.sleep(0.2)  # meanwhile it has been tried again
    service.ingest("docs", [TextSource("t:ferry", "The ferry of Orrin leaves at noon.", "ferry")])
    eventually(lambda: records(service) == len(SOURCES) + 1 + TEMPLATES, 5)


def test_a_run_that_fails_leaves_what_it_has_not_read(service, monkeypatch) -> None:
    fail_steps(service, monkeypatch, 1)
    run = Precompute(service.components).start("docs")
    with pytest.raises(StepFailedError):
        list(run)
    rest = run.rest()
    assert rest is not None
    *_, last = rest
    assert (last.passages, last.total, last.finished) == (len(SOURCES) - 1, len(SOURCES) - 1, True)


def test_whoever_leaves_a_run_leaves_the_rest_of_it(service) -> None:
    run = Precompute(service.components).start("docs")
    events = iter(run)
    while (event := next(events)).passages < 2:
        pass
    events.close()
    rest = run.rest()
    assert rest is not None
    *_, last = rest
    assert event.passages + last.passages == len(SOURCES)


def test_a_passage_that_the_engine_refuses_is_left_out(service, monkeypatch, caplog) -> None:
    worker = service.components.worker()
    submit, seen = worker.submit_sync, list[str]()

    def refusing(prompt, *args, **kwargs):
        seen.append(prompt.segments[1].name)
        if seen[-1] == seen[0]:
            raise PromptTooLongError("the prompt has 9000 tokens")
        return submit(prompt, *args, **kwargs)

    monkeypatch.setattr(worker, "submit_sync", refusing)
    *_, last = service.precompute("docs")
    assert (last.passages, last.skipped, last.total) == (len(SOURCES) - 1, 1, len(SOURCES))
    assert last.finished, "all but what is too long is on disk"
    assert f"passage {seen[0]} is not read ahead: the prompt has 9000 tokens" in caplog.text


def test_what_cannot_be_written_down_is_left_for_later(service, monkeypatch) -> None:
    derived = service.components.library().derived

    def full(_: object) -> set[bytes]:
        raise StoreError("the disk is full")

    run = Precompute(service.components).start("docs")
    with monkeypatch.context() as patch:
        patch.setattr(derived, "claim", full)
        with pytest.raises(StoreError):
            list(run)
    rest = run.rest()
    assert rest is not None
    *_, last = rest
    assert (last.passages, last.finished) == (len(SOURCES), True)


def test_a_collection_that_always_fails_does_not_starve_the_others(service, idle, monkeypatch) -> None:
    service.ingest("bad", SOURCES)
    service.ingest("worse", SOURCES)
    start = idle._precompute.start
    order = [row.name for row in service.components.library().collections()]
    broken = order[:2]
    assert len(order) == 3

    def failing(name: str):
        if name in broken:
            raise StoreError("its rows are damaged")
        return start(name)

    monkeypatch.setattr(idle._precompute, "start", failing)
    idle.start()
    eventually(lambda: service.components.store.if_made and records(service) == len(SOURCES) + TEMPLATES)


def test_nothing_is_planned_once_somebody_waits(service, idle, monkeypatch) -> None:
    service.ingest("more", SOURCES)
    start, planned = idle._precompute.start, list[str]()
    activity = service.components.activity
    busy = activity.busy()

    def plan(name: str):
        planned.append(name)
        if len(planned) == 1:
            busy.__enter__()  # somebody comes, and stays
        return start(name)

    monkeypatch.setattr(idle._precompute, "start", plan)
    idle.start()
    eventually(lambda: planned)
    time.sleep(0.3)
    assert len(planned) == 1
    busy.__exit__(None, None, None)
    eventually(lambda: len(planned) == 2)
