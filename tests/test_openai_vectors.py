"""Embeddings with the real `openai` client, and reranking."""

import math
from collections.abc import Iterator

import openai
import pytest
from openai_helpers import BARE, EMBEDDER, Api, openai_api
from rag_helpers import HARBOUR, LIGHTHOUSE

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
