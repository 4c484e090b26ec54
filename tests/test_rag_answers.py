"""Real passages, the real embedder, the real language model: what a second question finds in the cache."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from data.corpora import load_corpus
from engine import Prompt, SamplingParams
from rag.config import load_config
from rag.operations import final_answer
from rag.schemas import Answer, AnswerRequest, SearchRequest
from rag.service import Service
from retriever.document import TextSource

pytestmark = pytest.mark.model

TOPICS = ("with", "lambda", "nonlocal", "global", "assert", "yield", "pass", "return")
FIRST, SECOND = "What does the with statement do?", "How do I use the with statement?"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, smollm2: Path, minilm: Path) -> Iterator[Service]:
    config = load_config(data_dir=tmp_path_factory.mktemp("data"), model=str(smollm2), embedder=str(minilm))
    documents = [d for d in load_corpus("python-topics").documents if d.id in TOPICS]
    with Service(config) as service:
        sources = [TextSource(d.uri, d.text, d.title, d.media_type) for d in documents]
        report = service.ingest("topics", sources)
        assert (report.added, report.skipped) == (len(TOPICS), [])
        yield service


def ask(service: Service, question: str) -> Answer:
    request = AnswerRequest(question=question, collection="topics", max_tokens=24, reuse="exact")
    return final_answer(service.answer(request))


def test_a_second_question_over_the_same_passages_reads_them_from_the_cache(service: Service) -> None:
    first, second = ask(service, FIRST), ask(service, SECOND)
    read = {passage.passage_id for passage in first.cache.passages}
    assert {passage.passage_id for passage in second.cache.passages} == read
    tokens = sum(passage.tokens for passage in second.cache.passages)
    cached = sum(p.tokens for p in second.cache.passages if p.outcome in ("path", "canonical"))
    assert cached >= 0.9 * tokens
    assert second.usage.cached_tokens >= 0.9 * tokens


def test_another_order_has_template_and_first_passage_cached(service: Service) -> None:
    """Each passage was once the first one; then any order begins with what is known."""
    hits = service.components.library().search("topics", "What does the nonlocal statement do?", 4)
    layout, worker = service.components.layout(), service.components.worker()
    passages = [hit.passage for hit in hits]

    def cached(order: list[int]) -> list[str]:
        laid_out = layout.lay_out("Why?", [passages[index] for index in order], max_tokens=8000)
        handle = worker.submit_sync(laid_out.prompt, SamplingParams(max_tokens=1), namespace="orders")
        *_, generation = worker.stream_sync(handle)
        return [segment.outcome.value for segment in generation.cache.segments]

    assert cached([0, 1, 2, 3])[:2] == ["computed", "computed"]
    assert cached([0, 1, 2, 3])[:5] == ["path", "canonical", "path", "path", "path"]
    assert cached([0, 3, 1, 2])[:3] == ["path", "canonical", "computed"]
    assert cached([3, 2, 1, 0])[:2] == ["path", "computed"]
    assert cached([3, 0, 1, 2])[:2] == ["path", "canonical"]


def test_answers_are_grounded_and_cited(service: Service) -> None:
    answer = ask(service, "What does the lambda expression yield?")
    assert answer.sources[0].uri == "python-topics:lambda"
    assert answer.citations
    assert all(answer.answer[c.start : c.end] == c.marker for c in answer.citations)
    text = service.components.library().document_text("topics", answer.sources[0].document_id)
    assert text[answer.sources[0].start : answer.sources[0].end] == answer.sources[0].text


def test_the_prompt_is_what_the_chat_format_and_the_passages_say(service: Service) -> None:
    layout = service.components.layout()
    hits = service.components.library().search("topics", FIRST, 2)
    prompt: Prompt = layout.lay_out(FIRST, [hit.passage for hit in hits], max_tokens=8000).prompt
    text = layout.tokenizer.decode(prompt.tokens, skip_special_tokens=False)
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    for hit in hits:
        assert f"[{hit.passage.label}] " in text
        assert hit.passage.text.strip() in text
    assert text.count("<|im_end|>") == 2


def test_the_question_finds_its_topic(service: Service) -> None:
    result = service.search(SearchRequest(query="When is the pass statement useful?", collection="topics", k=1))
    assert result.results[0].uri == "python-topics:pass"
