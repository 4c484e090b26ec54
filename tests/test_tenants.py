"""What one key asks is nothing that another can find out: not by cached tokens, not by reports, not by what is shared.

Two keys may read the same collection. Its passages are shared between them; what they ask about them is not.
"""

from collections.abc import Iterator
from functools import partial

import httpx
import pytest
from rag_helpers import make_chat_model
from server_helpers import DOCUMENTS, Running, make_config, running

from rag.keys import parse_scopes
from rag.service import Service
from retriever.hash_embedder import HashEmbedder

COLLECTIONS = ("docs", "twin", "later")
SECRET, CONTROL, OTHER, OWN = "quixotic", "sphinxes", "vexingly", "jackdaws"  # one length, and in no document
LONG = "Is the lamp of the lighthouse built in 1874 lit every evening by Mara Venn? Remember the word {word}."


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = make_chat_model(tmp_path_factory.mktemp("models") / "bare")
    config = make_config(tmp_path_factory.mktemp("data"), model)
    with Service(config, embedder=HashEmbedder()) as service, running(service) as server:
        for name in COLLECTIONS:
            assert server.add(*DOCUMENTS, collection=name).status_code == 200
        yield server


class Tenant:
    """A key and what it sees of its answers.

    Args:
        server: to ask.
        name: of the key.
        scopes: of the key.
    """

    def __init__(self, server: Running, name: str, *scopes: str) -> None:
        key, token = server.service.components.keys().create(name, parse_scopes(scopes))
        self.id, self._server, self._headers = key.id, server, {"Authorization": f"Bearer {token}"}

    def post(self, path: str, **body: object) -> httpx.Response:
        response = self._server.http.post(path, json=body, headers=self._headers)
        assert response.status_code == 200, response.text
        return response

    def answer(self, word: str, collection: str = "docs", **more: object) -> dict:
        """Ask natively; return everything that tells of the cache."""
        body = self.post("/v1/answer", question=LONG.format(word=word), collection=collection, **more).json()
        return {"usage": body["usage"] | {"completion_tokens": 0}, "cache": body["cache"]}

    def chat(self, word: str, model: str = "rag/docs") -> dict:
        said = [{"role": "system", "content": f"Be {word}."}, {"role": "user", "content": LONG.format(word=word)}]
        return _of(self.post("/v1/chat/completions", model=model, messages=said, max_tokens=4).json())

    def complete(self, word: str) -> dict:
        return _of(self.post("/v1/completions", model="bare", prompt=LONG.format(word=word), max_tokens=4).json())

    def respond(self, word: str) -> dict:
        said = LONG.format(word=word)
        return _of(self.post("/v1/responses", model="rag/docs", input=said, max_output_tokens=16).json())


def _of(body: dict) -> dict:
    usage = body["usage"]
    details = usage.get("prompt_tokens_details") or usage["input_tokens_details"]
    return {"prompt": usage.get("prompt_tokens", usage.get("input_tokens")), "cached": details["cached_tokens"]}


@pytest.fixture(scope="module")
def tenants(api: Running) -> tuple[Tenant, Tenant]:
    one, two = (Tenant(api, name, "read:docs") for name in ("one", "two"))
    for word in (SECRET, CONTROL, OTHER, OWN):
        found = one.post("/v1/search", query=LONG.format(word=word), collection="docs").json()["results"]
        assert [source["uri"] for source in found] == ["t:lighthouse", "t:harbour"], "one order for all"
    one.answer(OTHER)  # template and passages are in memory from here on
    assert two.answer(OTHER)["usage"]["cached_tokens"] > 0, "passages are shared"
    return one, two


SURFACES = {
    "answer": Tenant.answer,
    "answer in turns": partial(Tenant.answer, history=[{"role": "user", "content": "Hello, lighthouse keeper."}]),
    "chat": Tenant.chat,
    "bare chat": partial(Tenant.chat, model="bare"),
    "completion": Tenant.complete,
    "response": Tenant.respond,
}


@pytest.mark.parametrize("surface", SURFACES)
def test_a_question_that_another_has_asked_looks_like_one_that_nobody_has(
    tenants: tuple[Tenant, Tenant], surface: str
) -> None:
    one, two = tenants
    ask = SURFACES[surface]
    ask(two, OTHER)  # what all of its own questions have in common is its own
    for _ in range(2):
        ask(one, SECRET)
    assert ask(two, SECRET) == ask(two, CONTROL)


@pytest.mark.parametrize("surface", ["chat", "bare chat", "completion", "response"])
def test_whoever_has_asked_it_himself_finds_it_again(tenants: tuple[Tenant, Tenant], surface: str) -> None:
    """What the test before looks for is there to be seen."""
    one, _ = tenants
    ask = SURFACES[surface]
    first, again = ask(one, OWN), ask(one, OWN)
    assert again["cached"] > first["cached"]


def test_two_tenants_begin_alike_whatever_the_first_has_asked(api: Running, tenants: tuple[Tenant, Tenant]) -> None:
    """The very first question of a key tells it nothing either."""
    before = Tenant(api, "before", "read:docs").chat("whatever", model="bare")
    tenants[0].chat("whatever", model="bare")
    assert Tenant(api, "after", "read:docs").chat("whatever", model="bare") == before
    assert before["cached"] == 0


def test_a_collection_of_the_same_documents_is_as_cold_as_if_nobody_had_read_the_other(
    api: Running, tenants: tuple[Tenant, Tenant]
) -> None:
    stranger = Tenant(api, "stranger", "read:twin", "read:later")
    unread = stranger.answer(SECRET, "twin")
    for _ in range(3):
        tenants[0].answer(SECRET)
    read = stranger.answer(SECRET, "later")
    for report in (unread, read):
        for part in (*report["cache"]["passages"], *report["cache"]["segments"]):
            part.pop("passage_id", None)
            part.pop("label", None)
    assert read == unread


def test_nothing_that_was_asked_is_in_shared_memory(api: Running, tenants: tuple[Tenant, Tenant]) -> None:
    one, two = tenants
    for ask in SURFACES.values():
        ask(one, SECRET)
        ask(two, CONTROL)
    decode = api.service.components.tokenizer().decode
    worker = api.service.components.worker()
    nodes = worker.call(
        lambda engine: [(node.owner, _path_of(node)) for tree in engine.cache._all_trees() for node in tree.nodes()]
    ).result()
    seen: dict[str, set[str]] = {SECRET: set(), CONTROL: set()}
    for owner, tokens in nodes:
        text = decode(tokens)
        for word in (SECRET, CONTROL):
            if word in text:
                seen[word].add("everyone" if owner is None else owner[0])
    assert seen[CONTROL] == {two.id}, "also asked by the other test, by no other key"
    assert one.id in seen[SECRET]
    assert "everyone" not in seen[SECRET]


def _path_of(node) -> list[int]:
    """Return the tokens from the root to the end of a node; a word may lie on a boundary."""
    above = [] if node.parent is None else _path_of(node.parent)
    return [*above, *(token for key in node.keys for token in key)]


def test_what_moves_with_others_questions_is_for_administrators(api: Running, tenants: tuple[Tenant, Tenant]) -> None:
    one, two = tenants
    for path in ("/metrics", "/v1/cache", "/v1/usage/patterns?collection=docs"):
        assert api.http.get(path, headers=two._headers).status_code == 403, path

    def seen() -> list[dict]:
        paths = ("/healthz", "/v1/usage", "/v1/collections", "/v1/models", "/v1/jobs")
        found = [api.http.get(path, headers=two._headers).json() for path in paths]
        assert found[1]["rows"], "it has asked itself"
        return found

    before = seen()
    one.answer(SECRET)
    one.chat(SECRET)
    assert seen() == before


def test_an_answer_of_another_is_no_answer_that_there_is(api: Running, tenants: tuple[Tenant, Tenant]) -> None:
    one, two = tenants
    asked = {"model": "rag/docs", "input": LONG.format(word=SECRET), "max_output_tokens": 16}
    mine = one.post("/v1/responses", **asked).json()["id"]
    onward = asked | {"previous_response_id": mine}
    assert api.http.post("/v1/responses", json=onward, headers=one._headers).status_code == 200
    refused = []
    for name in (mine, f"{mine[:-1]}{'1' if mine[-1] == '0' else '0'}"):
        response = api.http.post("/v1/responses", json=asked | {"previous_response_id": name}, headers=two._headers)
        refused.append((response.status_code, response.text.replace(name, "ID")))
    assert refused[0] == refused[1]
    assert refused[0][0] == 404
