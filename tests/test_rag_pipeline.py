"""From a question to an answer with its evidence, on a tiny model: what was cached, what was left out, who shares."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from rag_helpers import HARBOUR, LIGHTHOUSE, make_chat_model

from rag.config import AnswerSettings, EngineSettings, RagConfig, load_config
from rag.errors import NoPassagesError, QuestionTooLongError
from rag.operations import final_answer
from rag.preparation import tied_groups
from rag.schemas import Answer, AnswerRequest, RetrievalEvent, SearchRequest
from rag.service import Service
from retriever.document import TextSource
from retriever.errors import UnknownCollectionError
from retriever.hash_embedder import HashEmbedder

TEXTS = {
    "lighthouse": LIGHTHOUSE,
    "harbour": HARBOUR,
    "market": "The market of Orrin sells wool and salt. It opens when the harbour bell rings twice.",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("models") / "tiny")


def make_config(folder: Path, model: Path, **engine: object) -> RagConfig:
    return load_config(
        data_dir=folder,
        model=str(model),
        engine=EngineSettings(dtype="float32", kv_cache_bytes=16 * 2**20, **engine),
        answer=AnswerSettings(max_tokens=8, stop_repetition=False),
        embedder=str(model),
    )


@pytest.fixture
def service(tmp_path: Path, model: Path) -> Iterator[Service]:
    with Service(make_config(tmp_path, model), embedder=HashEmbedder()) as service:
        service.ingest("docs", [TextSource(f"t:{name}", text, name) for name, text in TEXTS.items()])
        yield service
        if (worker := service.components.worker.if_made) and worker.is_alive:
            worker.call(lambda engine: engine.check_invariants()).result()


def ask(service: Service, question: str, **fields: object) -> Answer:
    return final_answer(service.answer(AnswerRequest(question=question, collection="docs", **fields)))


def test_events_come_in_order_and_agree_with_the_answer(service: Service) -> None:
    events = list(service.answer(AnswerRequest(question="Who lights the lamp?", collection="docs", k=2)))
    assert isinstance(events[0], RetrievalEvent)
    answer = final_answer(events)
    assert events[0].sources == answer.sources
    assert "".join(event.text for event in events if event.type == "delta") == answer.answer
    assert [event.citation for event in events if event.type == "citation"] == answer.citations
    assert all(answer.answer[c.start : c.end] == c.marker for c in answer.citations)
    assert [source.n for source in answer.sources] == [1, 2]
    assert [p.passage_id for p in answer.cache.passages] == [s.passage_id for s in answer.sources]
    assert answer.usage.completion_tokens == 8
    times = answer.timings_ms
    assert 0 < times.prefill <= times.ttft <= times.total


def test_the_text_of_a_source_is_where_it_says(service: Service) -> None:
    answer = ask(service, "Who lights the lamp?", k=3)
    for source in answer.sources:
        text = service.components.library().document_text("docs", source.document_id)
        assert text[source.start : source.end] == source.text


def test_a_second_question_finds_the_passages_cached(service: Service) -> None:
    first = ask(service, "Who lights the lamp of the lighthouse?", k=2)
    second = ask(service, "who lights the lamp of the lighthouse", k=2)
    assert [s.passage_id for s in first.sources] == [s.passage_id for s in second.sources]
    assert {p.outcome for p in first.cache.passages} == {"computed"}
    assert [p.outcome for p in second.cache.passages] == ["canonical", "path"]
    passages = sum(p.tokens for p in second.cache.passages)
    template = len(service.components.layout().head.tokens)
    assert second.usage.cached_tokens == second.cache.hit_tokens.device >= passages + template


def test_collections_share_nothing(service: Service) -> None:
    service.ingest("twin", [TextSource(f"t:{name}", text, name) for name, text in TEXTS.items()])
    ask(service, "Who lights the lamp?")
    other = final_answer(service.answer(AnswerRequest(question="Who lights the lamp?", collection="twin")))
    assert other.usage.cached_tokens == 0


def test_a_deleted_document_is_no_source(service: Service) -> None:
    before = ask(service, "Who lights the lamp?", k=3)
    gone = before.sources[0]
    service.delete_document("docs", gone.document_id)
    after = ask(service, "Who lights the lamp?", k=3)
    assert gone.passage_id not in {source.passage_id for source in after.sources}
    assert len(after.sources) == 2


def test_a_deleted_collection_leaves_no_kv(service: Service) -> None:
    ask(service, "Who lights the lamp?")
    worker = service.components.worker()
    assert worker.call(lambda engine: engine.stats().cached_blocks).result() > 0
    service.delete_collection("docs")
    assert worker.call(lambda engine: engine.stats().cached_blocks).result() == 0
    service.ingest("docs", [TextSource("t:lighthouse", LIGHTHOUSE)])
    assert ask(service, "Who lights the lamp?").usage.cached_tokens == 0
    worker.close()
    service.delete_collection("docs")


def test_a_search_does_not_load_the_language_model(service: Service) -> None:
    result = service.search(SearchRequest(query="Who lights the lamp?", collection="docs", k=2))
    assert [source.n for source in result.results] == [1, 2]
    assert service.components.worker.if_made is None


def test_it_is_loaded_once_all_of_it_is(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.components.worker()
    service.components.embedder()
    assert not service.is_loaded  # made, but perhaps without weights yet
    service.load()
    assert service.is_loaded
    monkeypatch.setattr(service.components.hub, "resolve", None)
    service.load()  # looks for nothing again


def test_async_answers_equal_sync_ones_and_run_together(service: Service) -> None:
    questions = ["Who lights the lamp?", "When does the harbour freeze?", "What does the market sell?"]

    async def answer(question: str) -> Answer:
        events = [
            event async for event in service.answer_async(AnswerRequest(question=question, collection="docs", k=2))
        ]
        return final_answer(events)

    async def everything() -> list[Answer]:
        return await asyncio.gather(*(answer(question) for question in questions))

    together = asyncio.run(everything())
    assert [a.answer for a in together] == [ask(service, question, k=2).answer for question in questions]


def test_leaving_early_frees_the_request(service: Service) -> None:
    events = service.answer(AnswerRequest(question="Who lights the lamp?", collection="docs", max_tokens=2000))
    next(events)
    next(events)
    events.close()
    worker = service.components.worker()
    done = threading.Event()
    for _ in range(200):
        stats = worker.call(lambda engine: engine.stats()).result()
        if not stats.running and not stats.waiting:
            break
        done.wait(0.05)
    assert (stats.running, stats.waiting) == (0, 0)
    assert stats.totals.cancelled == 1


def test_passages_that_do_not_fit_are_named(tmp_path: Path, model: Path) -> None:
    config = make_config(tmp_path, model, max_model_len=480)
    with Service(config, embedder=HashEmbedder()) as service:
        service.ingest("docs", [TextSource(f"t:{name}", text, name) for name, text in TEXTS.items()])
        first, *_, last = service.answer(AnswerRequest(question="Who lights the lamp?", collection="docs", k=3))
        assert isinstance(first, RetrievalEvent)
        assert 1 <= len(first.sources) < 3
        assert len(first.warnings) == 1
        assert f"{3 - len(first.sources)} of 3 passages did not fit" in first.warnings[0]
        assert last.type == "done"
        assert last.answer.usage.prompt_tokens + last.answer.usage.completion_tokens <= 480


def test_a_question_without_room_is_refused_and_the_next_one_works(service: Service) -> None:
    with pytest.raises(QuestionTooLongError, match="shorter question"):
        ask(service, "why " * 2000)
    assert ask(service, "Who lights the lamp?").sources


def test_a_long_answer_is_cut_to_what_the_model_can(tmp_path: Path, model: Path) -> None:
    with Service(make_config(tmp_path, model, max_model_len=560), embedder=HashEmbedder()) as service:
        service.ingest("docs", [TextSource("t:lighthouse", LIGHTHOUSE, "lighthouse")])
        answer = ask(service, "Who lights the lamp?", k=1, max_tokens=1_000_000)
        assert answer.finish_reason in ("stop", "length")
        assert answer.usage.prompt_tokens + answer.usage.completion_tokens <= 560


def test_unknown_and_empty_collections_are_told(service: Service) -> None:
    with pytest.raises(UnknownCollectionError, match="docs"):
        service.answer(AnswerRequest(question="Why?", collection="nope"))
    service.components.library().create_collection("empty")
    with pytest.raises(NoPassagesError, match="rag ingest"):
        final_answer(service.answer(AnswerRequest(question="Why?", collection="empty")))


def test_near_ties_come_in_a_fixed_order(service: Service) -> None:
    hits = service.components.library().search("docs", "Who lights the lamp?", 3)
    spread = hits[0].score - hits[-1].score
    assert tied_groups(hits, 0.0) == tuple((hit,) for hit in hits)
    tied = tied_groups(hits, spread + 0.01)
    assert [[hit.passage.id for hit in group] for group in tied] == [sorted(hit.passage.id for hit in hits)]
    assert tied_groups(list(reversed(tied[0])), spread + 0.01) == tied
    assert tied_groups([], 0.0) == ()


def test_sampling_is_repeatable_with_a_seed(service: Service) -> None:
    answers = {ask(service, "Who lights the lamp?", temperature=2.0, seed=5, extractive=False).answer for _ in range(2)}
    other = ask(service, "Who lights the lamp?", temperature=2.0, seed=6, extractive=False).answer
    assert len(answers) == 1
    assert other not in answers
