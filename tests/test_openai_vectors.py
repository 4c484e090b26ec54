"""Embeddings with the real `openai` client, and reranking."""

import asyncio
import math
import threading
from collections.abc import Iterator, Sequence

import openai
import pytest
from anyio import CapacityLimiter
from openai_helpers import BARE, EMBEDDER, Api, openai_api
from rag_helpers import HARBOUR, LIGHTHOUSE

from rag.openai.vectors import BATCH_CHARACTERS, BATCH_TEXTS, MAX_TEXT_CHARACTERS, embed
from retriever.embedder import Vectors
from retriever.hash_embedder import HashEmbedder

TEXTS = [LIGHTHOUSE, HARBOUR]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with openai_api(tmp_path_factory.mktemp("openai")) as api:
        yield api


def test_vectors(api: Api) -> None:
    packed = api.client.embeddings.create(model=EMBEDDER, input=TEXTS)  # the client asks for base64
    plain = api.client.embeddings.create(model=EMBEDDER, input=TEXTS, encoding_format="float", dimensions=64)
    embedder = api.running.service.components.embedder()
    for number, text in enumerate(TEXTS):
        (vector,) = embedder.embed_documents([text])[0]
        assert packed.data[number].embedding == pytest.approx(vector.tolist(), abs=1e-6)
        assert plain.data[number].embedding == packed.data[number].embedding
        assert plain.data[number].index == number
    assert plain.usage.prompt_tokens == embedder.num_tokens(TEXTS)


def test_a_long_text_is_the_mean_of_its_windows(api: Api) -> None:
    text = " ".join(f"word{number}" for number in range(300))
    (item,) = api.client.embeddings.create(model=EMBEDDER, input=text).data
    windows = api.running.service.components.embedder().embed_documents([text])[0]
    assert len(windows) == 3
    assert math.hypot(*item.embedding) == pytest.approx(1.0, abs=1e-5)
    total = windows.sum(axis=0)
    assert item.embedding == pytest.approx((total / math.hypot(*total)).tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"dimensions": 8}, openai.BadRequestError),
        ({"input": [1, 2]}, openai.BadRequestError),
        ({"input": ["a", "  "]}, openai.BadRequestError),
        ({"input": []}, openai.BadRequestError),
        ({"model": BARE}, openai.NotFoundError),
    ],
)
def test_what_cannot_be_embedded(api: Api, fields: dict, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        api.client.embeddings.create(**({"model": EMBEDDER, "input": TEXTS} | fields))


def test_texts_are_put_in_order(api: Api) -> None:
    body = {"model": EMBEDDER, "query": "Who lights the lamp of the lighthouse?", "documents": [HARBOUR, LIGHTHOUSE]}
    ranked = api.running.http.post("/v1/rerank", json=body).json()
    first, second = ranked["results"]
    assert (first["index"], second["index"]) == (1, 0)
    assert first["relevance_score"] > second["relevance_score"]
    assert first["document"] == {"text": LIGHTHOUSE}
    assert ranked["meta"] == {"scoring": "embedding-cosine"}
    body |= {"top_n": 1, "return_documents": False, "documents": [{"text": HARBOUR}, LIGHTHOUSE]}
    (only,) = api.running.http.post("/v1/rerank", json=body).json()["results"]
    assert only == {"index": 1, "relevance_score": first["relevance_score"]}
    refused = api.running.http.post("/v1/rerank", json=body | {"documents": []})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "documents")


class SlowEmbedder(HashEmbedder):
    """Embeds nothing before it is allowed to."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.allowed = threading.Event(), threading.Event()
        self.batches: list[int] = []

    def embed_documents(self, texts: Sequence[str], headers: Sequence[str] | None = None) -> list[Vectors]:
        self.begun.set()
        self.batches.append(len(texts))
        assert self.allowed.wait(30)
        return super().embed_documents(texts, headers)


def test_a_batch_that_nobody_waits_for_holds_its_place_and_is_counted() -> None:
    async def run() -> None:
        embedder, limiter, counted = SlowEmbedder(), CapacityLimiter(1), list[int]()
        task = asyncio.create_task(embed(embedder, limiter, counted.append, documents=["two words"] * 2 * BATCH_TEXTS))
        await asyncio.to_thread(embedder.begun.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.01)
        assert limiter.borrowed_tokens == 1
        assert counted == []
        embedder.allowed.set()
        while not counted:
            await asyncio.sleep(0.001)
        assert limiter.borrowed_tokens == 0
        assert embedder.batches == [BATCH_TEXTS], "nothing more is embedded"
        assert counted == [2 * BATCH_TEXTS]

    asyncio.run(run())


def test_batches_are_as_long_as_their_texts() -> None:
    async def run() -> None:
        embedder, counted = SlowEmbedder(), list[int]()
        embedder.allowed.set()
        texts = ["word " * (BATCH_CHARACTERS // 5 - 1), "word", "word " * 2, *["a"] * 40]
        embedded = await embed(embedder, CapacityLimiter(1), counted.append, documents=texts)
        assert embedder.batches[0] == 1 + 1
        assert sum(embedder.batches) == len(texts) == len(embedded.windows)
        assert max(embedder.batches) <= BATCH_TEXTS
        assert counted == [embedded.num_tokens]

    asyncio.run(run())


@pytest.mark.parametrize("texts", [["a" * (MAX_TEXT_CHARACTERS + 1)], ["a" * MAX_TEXT_CHARACTERS] * 11])
def test_texts_that_are_too_long(api: Api, texts: list[str]) -> None:
    with pytest.raises(openai.BadRequestError, match="characters, above"):
        api.client.embeddings.create(model=EMBEDDER, input=texts)
