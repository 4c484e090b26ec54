"""Conversations with the real `openai` client."""

from collections.abc import Iterator

import pytest
from openai_helpers import BARE, DOCS, Api, openai_api


@pytest.fixture(scope="module")
def module_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with openai_api(tmp_path_factory.mktemp("openai")) as api:
        yield api


@pytest.fixture
def api(module_api: Api) -> Iterator[Api]:
    """The server; afterwards nothing runs and the books are right."""
    yield module_api
    module_api.running.check()


def test_models(api: Api) -> None:
    names = [model.id for model in api.client.models.list()]
    assert names[:2] == [BARE, DOCS]
    assert api.client.models.retrieve(DOCS).id == DOCS


def test_an_answer_from_a_collection(api: Api) -> None:
    completion = api.chat("Who lights the lamp?")
    (choice,) = completion.choices
    evidence = choice.message.model_extra["preread"]
    (annotation,) = choice.message.annotations
    cited = annotation.url_citation
    assert choice.message.content[cited.start_index : cited.end_index] == "[1]"
    assert (cited.title, cited.url) == ("lighthouse", "t:lighthouse")
    assert [source["n"] for source in evidence["sources"]] == [1, 2]
    assert evidence["citations"][0]["source"] == 1
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    assert completion.usage.prompt_tokens_details.cached_tokens == evidence["cache"]["hit_tokens"]["device"]


def test_a_stream_says_the_same(api: Api) -> None:
    whole = api.chat("Who lights the lamp?")
    chunks = list(api.chat("Who lights the lamp?", stream=True, stream_options={"include_usage": True}))
    *parts, last, usage = chunks
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(part.choices[0].delta.content for part in parts)
    assert text == whole.choices[0].message.content
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    delta = last.choices[0].delta.model_extra
    assert delta["annotations"] == [item.model_dump() for item in whole.choices[0].message.annotations]
    assert delta["preread"]["sources"] == whole.choices[0].message.model_extra["preread"]["sources"]
    assert usage.choices == []
    assert usage.usage.prompt_tokens == whole.usage.prompt_tokens
    assert len({chunk.id for chunk in chunks}) == 1
