"""Conversations with the real `openai` client."""

import asyncio
import json
from collections.abc import Iterator
from itertools import pairwise

import openai
import pytest
from fastapi.exceptions import RequestValidationError
from openai_helpers import BARE, DOCS, Api, openai_api
from server_helpers import eventually

from rag.caller import NOBODY
from rag.openai.generation import answering
from rag.openai.messages import Conversation
from rag.openai.targets import Target
from rag.schemas import Sampling

BLOCK = 16


@pytest.fixture(scope="module")
def module_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with openai_api(tmp_path_factory.mktemp("openai")) as api:
        yield api


@pytest.fixture
def api(module_api: Api) -> Iterator[Api]:
    """The server; afterwards nothing runs and the books are right."""
    yield module_api
    module_api.running.check()


def texts_of(completion, n: int) -> list[str]:
    """Return the answers of a completion, whole or streamed."""
    if hasattr(completion, "choices"):
        return [choice.message.content for choice in completion.choices]
    texts = [""] * n
    for chunk in completion:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    return texts


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


def test_the_bare_model(api: Api) -> None:
    completion = api.chat("Count.", model=BARE, max_completion_tokens=5)
    (choice,) = completion.choices
    assert choice.finish_reason == "length"
    assert completion.usage.completion_tokens == 5
    assert "preread" not in choice.message.model_extra
    assert choice.message.annotations == []


@pytest.mark.parametrize("model", [BARE, DOCS])
def test_a_conversation_finds_its_own_kv(api: Api, model: str) -> None:
    said = [f"Who lights the lamp of the lighthouse of Orrin every evening, asks {model}?"]
    used = []
    for question in ("And who lit that same lamp in the year before?", "Who will light that lamp next year?"):
        completion = api.chat(*said, model=model, max_completion_tokens=24)
        used.append(completion.usage)
        said += [completion.choices[0].message.content, question]
    last = api.chat(*said, model=model, max_completion_tokens=24).usage
    used.append(last)
    for before, after in pairwise(used):
        known = before.prompt_tokens + before.completion_tokens
        assert after.prompt_tokens_details.cached_tokens > known - 2 * BLOCK
        assert after.prompt_tokens > known


def test_another_collection_of_words_is_not_that_conversation(api: Api) -> None:
    api.chat("What is the harbour of Orrin like in January?", "Cold.", "And what do the ships wait for then?")
    said = ["What is the harbour of Orrin like in January?", "Warm.", "And what do the ships wait for then?"]
    usage = api.chat(*said).usage
    assert usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens - BLOCK


@pytest.mark.parametrize("stream", [False, True])
def test_several_answers(api: Api, stream: bool) -> None:
    fields = {"n": 3, "temperature": 1.0, "seed": 5, "max_completion_tokens": 8, "model": BARE}
    texts = texts_of(api.chat("Count.", **fields, stream=stream), 3)
    assert len(set(texts)) == 3
    assert texts == texts_of(api.chat("Count.", **fields), 3), "a seed makes all of them repeatable"
    alone = api.chat("Count.", **(fields | {"n": 1, "seed": 6}))
    assert alone.choices[0].message.content == texts[1]


def test_an_answer_that_has_to_be_json(api: Api) -> None:
    schema = {
        "type": "object",
        "properties": {"lit": {"type": "boolean"}, "by": {"enum": ["Mara", "nobody"]}},
        "required": ["lit", "by"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "lamp", "schema": schema, "strict": True}}
    for model in (BARE, DOCS):
        completion = api.chat("Who lights the lamp?", model=model, response_format=form, max_completion_tokens=400)
        found = json.loads(completion.choices[0].message.content)
        assert set(found) == {"lit", "by"}
        assert completion.choices[0].finish_reason == "stop"
    with pytest.raises(openai.BadRequestError):
        api.chat("Who?", response_format=form | {"json_schema": {"name": "lamp", "schema": {"type": "nothing"}}})


def test_what_the_model_writes_can_be_steered(api: Api) -> None:
    fields = {"model": BARE, "max_completion_tokens": 6, "logprobs": True, "top_logprobs": 2}
    plain = api.chat("Count.", **fields).choices[0]
    tokens = plain.logprobs.content
    assert len(tokens) == 6
    assert all(token.top_logprobs[0].token == token.token for token in tokens), "greedy"
    assert [token.top_logprobs[0].logprob for token in tokens] == [token.logprob for token in tokens]
    encode = api.running.service.components.tokenizer().encode
    (letter,) = encode("x")
    biased = api.chat("Count.", **fields, logit_bias={str(letter): 100}).choices[0]
    assert biased.message.content == "xxxxxx"
    penalised = api.chat("Count.", **fields, logit_bias={str(letter): 4}, frequency_penalty=2.0).choices[0]
    assert penalised.message.content.count("x") < 6
    stopped = api.chat("Count.", **fields, logit_bias={str(letter): 100}, stop="xxx").choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("", "stop")
    at_least = {"min_tokens": 6, "ignore_eos": True}
    assert api.chat("Count.", **fields, extra_body=at_least).usage.completion_tokens == 6
    streamed = [c for chunk in api.chat("Count.", **fields, stream=True) for c in chunk.choices if c.logprobs]
    assert [token.token for c in streamed for token in c.logprobs.content] == [token.token for token in tokens]


def test_system_and_parts(api: Api) -> None:
    said = [
        {"role": "system", "content": "Answer in French."},
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "short."}]},
        {"role": "user", "content": "Who lights the lamp?", "name": "someone"},
    ]
    plain = api.chat("Who lights the lamp?").usage
    told = api.client.chat.completions.create(model=DOCS, messages=said, user="someone", metadata={"a": "b"}).usage
    words = "Answer in French.\n\nBe short.\n\n"
    assert told.prompt_tokens == plain.prompt_tokens + len(words)
    assert told.prompt_tokens_details.cached_tokens > told.prompt_tokens / 2, "instructions come after the passages"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"temperature": 200}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "content": "Hello."}]}, None),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None),
        ({"messages": [{"role": "user", "content": "why " * 5000}]}, None),
        ({"logit_bias": {"a": 1}}, None),
        ({"max_tokens": 2, "extra_body": {"min_tokens": 3}}, None),
        ({"extra_body": {"temprature": 1}}, "temprature"),
        ({"extra_body": {"preread": {"where": {"year": {"about": 1}}}}}, "preread.where"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_answered(api: Api, fields: dict, param: str | None, stream: bool) -> None:
    asked = {"model": DOCS, "messages": [{"role": "user", "content": "Who?"}], "stream": stream}
    with pytest.raises(openai.BadRequestError) as error:
        api.client.chat.completions.create(**(asked | fields))
    if param is not None:
        assert error.value.param == param
    assert error.value.type == "invalid_request_error"
    assert len(error.value.message) > 20


def test_harmless_fields_are_taken(api: Api) -> None:
    fields = {"user": "a", "store": False, "service_tier": "auto", "tools": [], "tool_choice": "none"}
    plain = api.chat("Who lights the lamp?").choices[0].message.content
    assert api.chat("Who lights the lamp?", **fields).choices[0].message.content == plain


def test_a_model_that_there_is_not(api: Api) -> None:
    for name in ("rag/nowhere", "gpt-4o", "embedder"):
        with pytest.raises(openai.NotFoundError) as error:
            api.chat("Who?", model=name)
        assert error.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        api.client.models.retrieve("rag/nowhere")


def test_a_client_that_goes_away_cancels_its_requests(api: Api) -> None:
    long = {"model": BARE, "max_completion_tokens": 3000, "n": 2, "temperature": 1.0}
    with api.chat("Count to a million.", **long, stream=True) as stream:
        next(iter(stream))
        eventually(lambda: api.running.stats().running == 2)
    eventually(lambda: api.running.stats().running == 0)
    impatient = api.client.with_options(timeout=0.3)
    said = [{"role": "user", "content": "Count to a million."}]
    with pytest.raises(openai.APITimeoutError):
        impatient.chat.completions.create(messages=said, **long)
    eventually(lambda: api.running.stats().running == 0)


def test_a_conversation_is_tokenised_beside_the_event_loop(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, on_loop = api.running.service.components.tokenizer(), list[bool]()
    encode = type(tokenizer).encode

    def recorded(self: object, text: str, **options: bool) -> list[int]:
        try:
            on_loop.append(asyncio.get_running_loop().is_running())
        except RuntimeError:
            on_loop.append(False)
        return encode(self, text, **options)

    monkeypatch.setattr(type(tokenizer), "encode", recorded)
    api.chat("Who lights the lamp?", model=BARE, max_tokens=2)
    assert on_loop
    assert not any(on_loop)


def test_a_conversation_far_beyond_the_context_is_not_tokenised(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    service = api.running.service
    monkeypatch.setattr(type(service.components.tokenizer()), "encode", lambda *_, **__: pytest.fail("tokenised"))
    context = service.components.worker().engine.max_model_len
    with pytest.raises(openai.BadRequestError, match="characters") as refusal:
        api.chat("a" * 32 * context, "b", "c", model=BARE)
    assert refusal.value.code == "context_length_exceeded"


def test_what_a_collection_cannot_be_asked_is_no_defect(api: Api) -> None:
    service = api.running.service
    asked = Conversation("", [("user", "a")] * 2001, "b")
    with pytest.raises(RequestValidationError) as refusal:
        answering(service, Target(DOCS, "docs"), asked, Sampling(), 1, NOBODY)
    assert [item["loc"] for item in refusal.value.errors()] == [("body", "history")]


def test_many_messages_are_read(api: Api) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        api.chat(*["a"] * 1501)
    assert refusal.value.code == "context_length_exceeded", "not a defect"
