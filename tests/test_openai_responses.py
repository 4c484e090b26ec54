"""Responses with the real `openai` client."""

from collections.abc import Iterator

import openai
import pytest
from openai_helpers import BARE, DOCS, Api, openai_api
from rag_helpers import LIGHTHOUSE
from server_helpers import events_of

from rag.openai.response_schemas import Response
from rag.openai.stored import ResponseStore, Stored

QUESTION = "Who lights the lamp?"
YES = {
    "type": "json_schema",
    "name": "yes",
    "schema": {"const": "yes"},
}  # what the tiny model is held to, so that it ends


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with openai_api(tmp_path_factory.mktemp("openai")) as api:
        yield api
        api.running.check()


def test_a_response_from_a_collection(api: Api) -> None:
    response = api.client.responses.create(
        model=DOCS, input=QUESTION, include=["file_search_call.results"], metadata={"of": "a test"}
    )
    assert (response.status, response.metadata) == ("incomplete", {"of": "a test"})
    search, message = response.output
    assert search.queries == [QUESTION]
    assert search.results[0].text == LIGHTHOUSE
    (part,) = message.content
    (citation,) = part.annotations
    assert part.text[citation.index :].startswith("[1]")
    assert (citation.type, citation.file_id, citation.filename) == (
        "file_citation",
        search.results[0].file_id,
        "t:lighthouse",
    )
    assert message.model_extra["preread"]["citations"][0]["source"] == 1
    usage = response.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    again = api.client.responses.create(model=DOCS, input=QUESTION).usage
    assert again.input_tokens_details.cached_tokens > usage.input_tokens / 2
    assert api.client.responses.retrieve(response.id).output_text == response.output_text == part.text


def test_a_stream_tells_each_step(api: Api) -> None:
    events = list(api.client.responses.create(model=DOCS, input=QUESTION, stream=True))
    final = events[-1].response
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = list(dict.fromkeys(event.type.removeprefix("response.") for event in events))
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "file_search_call.in_progress",
        "file_search_call.searching",
        "file_search_call.completed",
        "output_item.done",
        "content_part.added",
        "output_text.delta",
        "output_text.annotation.added",
        "output_text.done",
        "content_part.done",
        "incomplete",
    ]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    whole = api.client.responses.create(model=DOCS, input=QUESTION)
    assert text == final.output_text == whole.output_text
    assert final.output[1].content[0].annotations == whole.output[1].content[0].annotations
    assert api.client.responses.retrieve(final.id).output_text == text


def test_the_client_puts_a_stream_together(api: Api) -> None:
    with api.client.responses.stream(model=DOCS, input=QUESTION, text={"format": YES}) as stream:
        final = stream.until_done().get_final_response()
    assert (final.status, final.output_text) == ("completed", '"yes"')
    assert final.text.format.schema_ == YES["schema"]
    bare = api.client.responses.create(model=BARE, input=QUESTION, text={"format": YES})
    assert (bare.status, bare.output_text) == ("completed", '"yes"')


def test_an_answer_that_is_cut_off(api: Api) -> None:
    response = api.client.responses.create(model=BARE, input="Count.", max_output_tokens=3)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert [item.type for item in response.output] == ["message"]
    kinds = [
        event.type
        for event in api.client.responses.create(model=BARE, input="Count.", max_output_tokens=3, stream=True)
    ]
    assert kinds[-1] == "response.incomplete"


def test_the_tool_names_a_collection_for_the_bare_model(api: Api) -> None:
    tool = {"type": "file_search", "vector_store_ids": ["docs"], "max_num_results": 1}
    fields = {"model": BARE, "input": QUESTION, "include": ["file_search_call.results"]}
    search, _ = api.client.responses.create(**fields, tools=[tool]).output
    assert [result.filename for result in search.results] == ["t:lighthouse"]
    without = api.client.responses.create(**fields, tools=[tool], tool_choice="none", max_output_tokens=2)
    assert [item.type for item in without.output] == ["message"]


def test_a_response_goes_on_from_another(api: Api) -> None:
    first = api.client.responses.create(model=DOCS, input=QUESTION)
    second = api.client.responses.create(
        model=DOCS, input="And who else lights it in winter?", previous_response_id=first.id
    )
    said = [
        {"role": "user", "content": QUESTION},
        *[item.model_dump(exclude_none=True) for item in first.output],
        {"role": "user", "content": "And who else lights it in winter?"},
    ]
    assert second.previous_response_id == first.id
    assert api.client.responses.create(model=DOCS, input=said).output_text == second.output_text
    api.client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        api.client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError):
        api.client.responses.create(model=DOCS, input="And?", previous_response_id=first.id)
    unstored = api.client.responses.create(model=DOCS, input=QUESTION, store=False)
    with pytest.raises(openai.NotFoundError):
        api.client.responses.retrieve(unstored.id)


def test_a_short_question_is_looked_for_with_the_one_before(api: Api) -> None:
    said = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "Mara Venn."},
        {"role": "user", "content": "And then?"},
    ]
    search, _ = api.client.responses.create(model=DOCS, input=said).output
    assert search.queries == [f"{QUESTION}\nAnd then?"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["a", "b"]}]}, "tools[0].vector_store_ids"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]}, None),
        ({"input": []}, None),
        ({"temperature": -1}, "temperature"),
        ({"extra_body": {"temprature": 1}}, "temprature"),
    ],
)
def test_what_cannot_be_answered(api: Api, fields: dict, param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        api.client.responses.create(**({"model": DOCS, "input": QUESTION} | fields))
    if param is not None:
        assert error.value.param == param
    unknown = {"type": "file_search", "vector_store_ids": ["nowhere"]}
    with pytest.raises(openai.NotFoundError):
        api.client.responses.create(model=BARE, input=QUESTION, tools=[unknown])


def stored(name: str, *, instructions: str = "", said: str = "") -> Stored:
    """Make a response."""
    response = Response(
        id=name, created_at=0, status="completed", instructions=instructions, max_output_tokens=None, metadata={},
        model=BARE, output=[], previous_response_id=None, store=True, temperature=0, text={}, tool_choice="auto",
        tools=[], top_logprobs=0, top_p=1, usage=None,
    )  # fmt: skip
    return Stored(response, (("user", said),))


def test_a_response_counts_with_all_that_it_has() -> None:
    small = stored("a").size
    assert stored("a", instructions="x" * 1000).size == small + 1000
    assert stored("a", said="x" * 1000).size == small + 1000


def test_a_large_response_is_not_stored_and_displaces_nothing() -> None:
    store = ResponseStore(max_characters=16 * 2000)
    assert store.add("ada", stored("small"))
    assert not store.add("ada", stored("large", instructions="x" * 2000))
    assert store.get("ada", "small")
    assert store.get("ada", "large") is None


@pytest.mark.parametrize("limits", [{"max_responses": 20}, {"max_characters": 20 * stored("00").size}])
def test_who_stores_most_loses_his_own(limits: dict[str, int]) -> None:
    store = ResponseStore(**limits)
    for number in range(10, 13):
        assert store.add("ada", stored(str(number)))
    for number in range(10, 90):
        assert store.add("bob", stored(str(number)))
    assert all(store.get("ada", str(number)) for number in range(10, 13))
    kept = [number for number in range(10, 90) if store.get("bob", str(number))]
    assert kept == list(range(73, 90)), "the latest"
    assert store.remove("bob", "89")
    assert not store.remove("bob", "89")
    assert not store.remove("eve", "10")


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_that_is_not_stored_says_so(api: Api, stream: bool) -> None:
    body = {"model": BARE, "input": "Count.", "max_output_tokens": 2, "stream": stream}
    body |= {"metadata": {"a": "b"}, "text": {"format": {"type": "text"}}}
    store = api.running.server.config.app.state.preread.responses
    before = store._max_characters
    store._max_characters = 16
    try:
        answer = api.running.http.post("/v1/responses", json=body)
    finally:
        store._max_characters = before
    response = [data for _, data in events_of(answer)][-1]["response"] if stream else answer.json()
    assert response["store"] is False
    assert api.running.http.get(f"/v1/responses/{response['id']}").status_code == 404


@pytest.mark.parametrize(
    "filters",
    [
        {"type": "eq", "key": "no name", "value": 1},
        {"type": "eq", "key": "year", "value": [1, 2]},
        {"type": "and", "filters": [{"type": "eq", "key": "", "value": 1}]},
        {"type": "and", "filters": [{"type": "eq", "key": "a", "value": 1}] * 10_000},
        {"type": "in", "key": "year", "value": 3},
    ],
)
def test_a_filter_that_cannot_be_used(api: Api, filters: dict) -> None:
    tool = {"type": "file_search", "vector_store_ids": ["docs"], "filters": filters}
    response = api.running.http.post("/v1/responses", json={"model": BARE, "input": QUESTION, "tools": [tool]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "tools[0].filters"), response.text


def test_a_conversation_of_too_many_messages(api: Api) -> None:
    said = [{"role": role, "content": "a"} for _ in range(750) for role in ("user", "assistant")]
    asked = [*said, {"role": "user", "content": QUESTION}]
    first = api.running.http.post("/v1/responses", json={"model": DOCS, "input": asked})
    assert first.json().get("error", {}) is None or first.json()["error"]["code"] == "context_length_exceeded"
    stored = api.client.responses.create(model=BARE, input="a", max_output_tokens=1)
    body = {"model": DOCS, "input": [*said, *asked[-500:]], "previous_response_id": stored.id}
    response = api.running.http.post("/v1/responses", json=body)
    assert (response.status_code, "2002 messages" in response.text) == (400, True), response.text
