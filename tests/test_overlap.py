"""What is begun for candidates helps where they are the passages of the question, and changes nothing where not."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
from rag_helpers import make_chat_model
from server_helpers import eventually
from test_precompute import TEXTS, ask, make_config, read_ahead

from engine.errors import QueueFullError
from engine.prompt import Prompt
from engine.worker import Handle
from rag.config import AnswerSettings, RagConfig
from rag.schemas import AnswerRequest
from rag.service import Service
from retriever.document import Passage, TextSource
from retriever.hash_embedder import HashEmbedder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("models") / "tiny")


def opened(folder: Path, model: Path, **answer: object) -> Service:
    settings = AnswerSettings(max_tokens=8, stop_repetition=False, **answer)
    config: RagConfig = make_config(folder, model).model_copy(update={"answer": settings})
    service = Service(config, embedder=HashEmbedder())
    service.ingest("docs", [TextSource(f"t:{name}", text, name) for name, text in TEXTS.items()])
    return service


@pytest.fixture
def expected(tmp_path: Path, model: Path) -> Iterator[str]:
    with opened(tmp_path / "plain", model, prefetch=False) as service:
        yield ask(service, k=2).answer


def after_candidates(service: Service, monkeypatch: pytest.MonkeyPatch, change: bool) -> None:
    """Let the second stage of the search take as long as the engine needs, and change the order if asked."""
    library = service.components.library()
    search = library.search

    def slow_search(collection: str, query: object, k: int, *, where, on_candidates):
        def begin(passages: list[Passage]) -> None:
            on_candidates(passages[::-1] if change else passages)
            engine = service.components.worker().engine
            eventually(lambda: not engine.scheduler.has_work)

        return search(collection, query, k, on_candidates=begin)

    monkeypatch.setattr(library, "search", slow_search)


def test_candidates_are_read_ahead_from_disk(tmp_path: Path, model: Path, monkeypatch, expected: str) -> None:
    with opened(tmp_path, model) as service:
        read_ahead(service)
        wanted: list[list[bytes]] = []
        store = service.components.store()
        prefetch = store.prefetch
        monkeypatch.setattr(store, "prefetch", lambda keys: wanted.append(keys) or prefetch(keys))
        engine = service.components.worker().engine
        monkeypatch.setattr(engine, "allows_chunk", lambda prompt: len(prompt.segments) == 3)
        answer = ask(service, k=2)
        assert answer.answer == expected
        head, library = service.components.layout().head, service.components.library()
        stored = {passage.id: passage for passage in library.passages("docs")}
        passages = [stored[source.passage_id] for source in answer.sources]
        keys = [engine.identity.key("1", head.tokens, passage.token_ids) for passage in passages]
        assert wanted == [keys]
        ask(service, k=2, reuse="exact")
        assert wanted[1:] == [keys[:1]], "exact reuse takes only what stands first"
        monkeypatch.undo()
        assert not engine.allows_chunk(Prompt([head, *map(service.components.layout().passage, passages)]))
        monkeypatch.setattr(store, "prefetch", lambda keys: wanted.append(keys) or prefetch(keys))
        ask(service, k=2)
        assert wanted[2:] == [keys[:1]], "and so does what would be chunk reuse, had it a certificate"


def test_a_right_guess_leaves_only_the_question_to_compute(
    tmp_path: Path, model: Path, monkeypatch, expected: str
) -> None:
    with opened(tmp_path, model, speculate=True) as service:
        ask(service, "What does the market sell?", k=1)
        after_candidates(service, monkeypatch, change=False)
        answer = ask(service, k=2)
        assert answer.answer == expected
        assert {passage.outcome for passage in answer.cache.passages} <= {"path", "canonical"}
        assert service.components.worker().engine.stats().totals.cancelled == 0


def test_a_wrong_guess_changes_no_answer(tmp_path: Path, model: Path, monkeypatch, expected: str) -> None:
    with opened(tmp_path, model, speculate=True) as service:
        service.components.load()
        after_candidates(service, monkeypatch, change=True)
        answer = ask(service, k=2)
        assert answer.answer == expected
        assert answer.cache.passages[-1].outcome == "computed"
        service.components.worker().call(lambda engine: engine.check_invariants()).result()


def test_a_wrong_guess_that_runs_is_dropped(tmp_path: Path, model: Path, monkeypatch, expected: str) -> None:
    with opened(tmp_path, model, speculate=True) as service:
        service.components.load()
        worker = service.components.worker()
        search = service.components.library().search
        cancelled: list[bool] = []
        cancel = worker.cancel

        def note_and_cancel(handle: Handle) -> None:
            cancelled.append(handle.request.background)
            cancel(handle)

        def swapped(*arguments: object, where, on_candidates):
            return search(*arguments, on_candidates=lambda passages: on_candidates(passages[::-1]))

        monkeypatch.setattr(worker, "cancel", note_and_cancel)
        monkeypatch.setattr(service.components.library(), "search", swapped)
        assert ask(service, k=2).answer == expected
        assert cancelled[0] is True


@pytest.fixture
def speculating(tmp_path: Path, model: Path, monkeypatch) -> Iterator[tuple[Service, list[Handle]]]:
    """A service whose guesses are right, and the background requests that it has cancelled."""
    with opened(tmp_path, model, speculate=True) as service:
        service.components.load()
        worker, cancelled = service.components.worker(), list[Handle]()
        cancel = worker.cancel
        monkeypatch.setattr(
            worker, "cancel", lambda handle: cancelled.append(handle) if handle.request.background else cancel(handle)
        )
        yield service, cancelled
        for handle in cancelled:
            cancel(handle)


@pytest.mark.parametrize("where", ["preparing", "submitting"])
def test_a_question_that_fails_leaves_no_guess_behind(where: str, speculating, monkeypatch) -> None:
    service, cancelled = speculating
    worker, preparation = service.components.worker(), service.pipeline.preparation

    def refuse(*_: object, **how: object) -> Handle:
        raise QueueFullError("full")

    if where == "preparing":
        monkeypatch.setattr(preparation, "_limit", refuse)
    else:
        submit = worker.submit_sync
        monkeypatch.setattr(
            worker, "submit_sync", lambda *a, **how: submit(*a, **how) if how.get("background") else refuse()
        )
    with pytest.raises(QueueFullError):
        ask(service, k=2)
    assert len(cancelled) == 1


def test_who_leaves_while_his_question_is_prepared_leaves_no_guess_behind(speculating, monkeypatch) -> None:
    service, cancelled = speculating
    reached, left = Event(), Event()
    monkeypatch.setattr(service.pipeline.preparation, "_expect_kv", lambda *_: reached.set() or left.wait(10))
    request = AnswerRequest(question="Who?", collection="docs", k=2)

    async def leave() -> None:
        asking = asyncio.create_task(anext(service.pipeline.answer_async(request)))
        assert await asyncio.to_thread(reached.wait, 10)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert not cancelled
        left.set()

    asyncio.run(leave())
    eventually(lambda: len(cancelled) == 1)


def test_a_busy_engine_does_not_speculate(tmp_path: Path, model: Path) -> None:
    with opened(tmp_path, model, speculate=True) as service:
        running = service.answer(AnswerRequest(question="Who?", collection="docs", k=1, max_tokens=3000))
        next(running)
        next(running)
        before = service.components.worker().engine.totals.requests
        ask(service, k=2)
        assert service.components.worker().engine.totals.requests == before + 1
        running.close()
