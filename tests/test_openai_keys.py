"""Keys with the real `openai` client: errors become its exceptions, and nobody sees anything of another's."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime

import openai
import pytest
from openai_helpers import BARE, DOCS, EMBEDDER, Api, connect, openai_api

from engine.errors import StepFailedError
from rag.keys import parse_scopes
from rag.ledger import Account, Tokens

QUESTION = "Who lights the lamp of the lighthouse of Orrin every evening?"
PROMPT = "A prompt of several blocks that nobody else has any reason to guess, which is why it is so long. "

Connect = Callable[..., openai.OpenAI]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with openai_api(tmp_path_factory.mktemp("openai")) as api:
        api.running.service.components.keys().create("admin", parse_scopes(["admin:*"]))
        yield api


@pytest.fixture
def client(api: Api) -> Iterator[Connect]:
    """Make a key of these scopes and limits, and open a client with it."""
    with ExitStack() as stack:

        def make(name: str, *scopes: str, **limits: int) -> openai.OpenAI:
            _, token = api.running.service.components.keys().create(name, parse_scopes(scopes), **limits)
            return stack.enter_context(connect(api.running, token))

        yield make


def ask(client: openai.OpenAI, *said: str, model: str = DOCS, **fields):
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": text} for number, text in enumerate(said)]
    return client.chat.completions.create(model=model, messages=messages, **fields)


def cached(answer) -> int:
    return answer.usage.prompt_tokens_details.cached_tokens


def test_without_a_key(api: Api) -> None:
    for stream in (False, True):
        with pytest.raises(openai.AuthenticationError) as error:
            ask(api.client, QUESTION, stream=stream)
        assert error.value.type == "authentication_error"
    with pytest.raises(openai.AuthenticationError):
        api.client.models.list()


def test_a_key_sees_its_own_collections(client: Connect) -> None:
    reader, other = client("reader", "read:docs"), client("other", "read:else")
    assert [model.id for model in reader.models.list()] == [BARE, DOCS, EMBEDDER]
    assert [model.id for model in other.models.list()] == [BARE, EMBEDDER]
    assert ask(reader, QUESTION).choices
    tool = {"type": "file_search", "vector_store_ids": ["docs"]}
    for refused in (
        lambda: ask(other, QUESTION),
        lambda: other.responses.create(model=DOCS, input=QUESTION),
        lambda: other.responses.create(model=BARE, input=QUESTION, tools=[tool]),
    ):
        with pytest.raises(openai.PermissionDeniedError) as error:
            refused()
        assert error.value.type == "permission_error"
    with pytest.raises(openai.NotFoundError):
        other.models.retrieve(DOCS)


def test_too_many_questions(client: Connect) -> None:
    hasty = client("hasty", "read:docs", questions_per_minute=1)
    assert hasty.embeddings.create(model=EMBEDDER, input="a").data
    with pytest.raises(openai.RateLimitError) as error:
        ask(hasty, QUESTION)
    assert error.value.type == "rate_limit_error"
    assert int(error.value.response.headers["retry-after"]) > 0


def test_a_request_for_many_completions_is_many_questions(client: Connect) -> None:
    many = client("many", "read:docs", questions_per_minute=8)
    four = {"model": BARE, "prompt": ["a", "b"], "n": 2, "max_tokens": 1}
    with pytest.raises(openai.BadRequestError, match="18 answers"):
        many.completions.create(model=BARE, prompt=["a"] * 9, n=2, max_tokens=1)
    assert len(many.completions.create(**four).choices) == 4
    with pytest.raises(openai.RateLimitError):
        many.completions.create(**four)
    several = client("several", "read:docs", questions_per_minute=3)
    assert len(ask(several, QUESTION, model=BARE, n=2, max_tokens=1).choices) == 2
    with pytest.raises(openai.RateLimitError):
        ask(several, QUESTION, model=BARE, n=2, max_tokens=1)


@pytest.mark.parametrize("stream", [False, True])
def test_completions_do_not_begin_that_the_day_has_no_tokens_for(api: Api, client: Connect, *, stream: bool) -> None:
    thrifty = client(f"thrifty-{stream}", "read:docs", tokens_per_day=50)
    complete = {"model": BARE, "stream": stream}
    with pytest.raises(openai.BadRequestError, match="lower max_tokens"):
        thrifty.completions.create(prompt=["a"] * 5, n=2, max_tokens=10, **complete)
    done = thrifty.completions.create(prompt=["a"], n=4, max_tokens=8, **complete)
    assert list(done), "what is reserved is no more than what there is"
    with pytest.raises(openai.RateLimitError, match="left"):
        thrifty.completions.create(prompt=["a"], n=4, max_tokens=8, **complete)
    assert set(api.running.server.config.app.state.preread.quotas._reserved.values()) == {0}


def native(api: Api, client: openai.OpenAI, **fields) -> None:
    headers = {"Authorization": f"Bearer {client.api_key}"}
    body = {"question": QUESTION, "collection": "docs", **fields}
    response = api.running.http.post("/v1/answer", json=body, headers=headers)
    if response.status_code == 429:
        raise openai.RateLimitError(response.text, response=response, body=None)
    if response.is_error:
        raise openai.BadRequestError(response.text, response=response, body=None)


ASKED: dict[str, Callable[..., object]] = {
    "chat": lambda api, client, tokens: list(ask(client, QUESTION, max_tokens=tokens, stream=True)),
    "bare chat": lambda api, client, tokens: ask(client, QUESTION, model=BARE, max_tokens=tokens),
    "several": lambda api, client, tokens: ask(client, QUESTION, model=BARE, n=2, max_tokens=tokens // 2),
    "response": lambda api, client, tokens: client.responses.create(
        model=DOCS, input=QUESTION, max_output_tokens=tokens
    ),
    "native": lambda api, client, tokens: native(api, client, max_tokens=tokens),
}


@pytest.mark.parametrize("way", ASKED)
def test_no_answer_begins_that_the_day_has_no_tokens_for(api: Api, client: Connect, way: str) -> None:
    thrifty = client(f"thrifty {way}", "read:docs", tokens_per_day=2600)
    key = api.running.service.components.keys().find(f"thrifty {way}")
    ledger, quotas = api.running.service.components.ledger(), api.running.server.config.app.state.preread.quotas
    with pytest.raises(openai.BadRequestError, match="lower max_tokens"):
        ASKED[way](api, thrifty, 2700)
    assert ledger.tokens_since(key.id, datetime.now(UTC).replace(hour=0)) == 0, "nothing has begun"
    ASKED[way](api, thrifty, 8)
    ledger.add(Account(key.id, "docs", "answer", "m"), Tokens(prompt=1200, output=0))
    with pytest.raises(openai.RateLimitError, match="left"):
        ASKED[way](api, thrifty, 1400)
    ASKED[way](api, thrifty, 8)
    assert quotas._reserved[key.id] == 0


def test_what_one_key_asks_does_not_help_another(client: Connect) -> None:
    one, two, three = (client(name, "read:docs") for name in ("one", "two", "three"))
    prompt = {"model": BARE, "prompt": PROMPT, "max_tokens": 2}
    assert cached(one.completions.create(**prompt)) == 0
    assert cached(one.completions.create(**prompt)) > len(PROMPT) - 32
    assert cached(two.completions.create(**prompt)) == 0, "a prompt is its principal's alone"
    said = [QUESTION, "Mara Venn.", "And who was it that lit this lamp before her, do you know?"]
    ask(one, *said)
    mine, theirs = cached(ask(one, *said)), cached(ask(two, *said))
    assert mine > theirs, "a conversation's own KV serves its principal"
    passages = cached(ask(three, "Is it this lighthouse of Orrin whose lamp is lit every evening?"))
    assert theirs == passages, "of another's conversation, no more than of none"


def test_a_response_is_known_to_its_own_key(client: Connect) -> None:
    mine, other = client("mine", "read:docs"), client("not-mine", "read:docs")
    response = mine.responses.create(model=DOCS, input=QUESTION)
    assert mine.responses.retrieve(response.id).id == response.id
    for refused in (
        lambda: other.responses.retrieve(response.id),
        lambda: other.responses.delete(response.id),
        lambda: other.responses.create(model=DOCS, input="And then?", previous_response_id=response.id),
    ):
        with pytest.raises(openai.NotFoundError):
            refused()
    assert mine.responses.retrieve(response.id).id == response.id


def test_an_answer_that_fails_underway(api: Api, client: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    asker = client("asker", "read:docs")
    worker = api.running.service.components.worker()
    real = type(worker).stream

    async def failing(self, handle):
        async for event in real(self, handle):
            yield event
            raise StepFailedError("the engine failed while computing this answer; ask again")

    monkeypatch.setattr(type(worker), "stream", failing)
    with pytest.raises(openai.InternalServerError):
        ask(asker, QUESTION, model=BARE)
    with pytest.raises(openai.APIError) as error:
        list(ask(asker, QUESTION, model=BARE, stream=True))
    assert "the engine failed" in error.value.message or "failed on this request" in error.value.message
    *_, last = asker.responses.create(model=BARE, input=QUESTION, stream=True)
    assert last.type == "error"
    monkeypatch.undo()
    api.running.check()
