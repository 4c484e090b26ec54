"""What one request may cost before anybody asks whether it may be made: sizes, numbers of errors, memory of bodies."""

import json
from collections.abc import Iterator
from typing import Any

import anyio
import httpx
import pytest
from anyio import Semaphore
from pydantic import BaseModel, ValidationError
from rag_helpers import make_chat_model
from server_helpers import DOCUMENTS, Running, make_config, problem_of, running

from rag.schemas import IngestRequest
from rag.schemas.base import Request
from rag.server.ingestions import Ingestions
from rag.service import Service
from retriever.hash_embedder import HashEmbedder

MAX_JSON = 50_000
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = make_chat_model(tmp_path_factory.mktemp("models") / "tiny")
    config = make_config(tmp_path_factory.mktemp("data"), model, server={"max_json_bytes": MAX_JSON})
    with Service(config, embedder=HashEmbedder()) as service, running(service) as running_api:
        yield running_api


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("path", ["/v1/search", "/v1/collections", "/v1/collections/docs/documents/1"])
def test_a_body_other_than_documents_is_small(api: Running, path: str, declared: bool) -> None:
    body = json.dumps({"query": "a" * MAX_JSON}).encode()
    chunks = (body[start : start + 1000] for start in range(0, len(body), 1000))
    method = "PATCH" if path.endswith("/1") else "POST"
    with httpx.Client(base_url=api.url, trust_env=False) as http:  # the connection is closed by the server
        response = http.request(method, path, content=body if declared else chunks, headers=JSON)
    assert "PREREAD_SERVER__MAX_JSON_BYTES" in problem_of(response, 413, "body-too-large")["detail"]


def test_documents_may_be_larger(api: Running) -> None:
    assert api.add({"uri": "long", "text": "word " * MAX_JSON}, collection="long").status_code == 200


def _kinds(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for sub in kind.__subclasses__():
        yield sub
        yield from _kinds(sub)


def _collections(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield every list and mapping with checked items of a core schema."""
    if isinstance(schema, dict):
        if schema.get("type") == "list" or (
            schema.get("type") == "dict" and schema.get("values_schema", {"type": "any"})["type"] != "any"
        ):
            yield schema
        schema = [part for name, part in schema.items() if name != "json_schema_input_schema"]  # only described
    for part in schema if isinstance(schema, list | tuple) else ():
        yield from _collections(part)


@pytest.mark.parametrize("kind", sorted({*_kinds(Request)}, key=lambda kind: kind.__name__))
def test_lists_end_at_their_first_error(kind: type[BaseModel]) -> None:
    assert all(found.get("fail_fast") for found in _collections(kind.__pydantic_core_schema__))


def test_many_wrong_items_are_one_error(api: Running) -> None:
    with pytest.raises(ValidationError) as refusal:
        IngestRequest.model_validate_json(json.dumps({"documents": [[]] * 1000, "urls": [[]] * 1000}))
    assert refusal.value.error_count() == 2
    response = api.http.post("/v1/embeddings", json={"model": "m", "input": [[]] * 5000})
    assert response.status_code == 400
    assert len(response.content) < 1000


@pytest.mark.parametrize("path", ["/v1/search", "/v1/chat/completions"])
def test_many_unknown_fields_are_one_error(api: Running, path: str) -> None:
    response = api.http.post(path, json={f"field{number}": 0 for number in range(2000)})
    assert response.status_code in (400, 422)
    assert "2000 fields" in response.text
    assert len(response.content) < 1000


def test_errors_are_listed_up_to_twenty(api: Running) -> None:
    problem = problem_of(
        api.http.post("/v1/search", json=dict.fromkeys("abcdefghijklmnopqrstuvwxyz")), 422, "invalid-request"
    )
    assert len(problem["errors"]) == 20
    assert "and 23 more, of which errors lists 17" in problem["detail"]  # k may be null, the query is missing


@pytest.mark.parametrize(
    ("headers", "waits"),
    [({"content-length": "1"}, False), ({"content-length": "1", "transfer-encoding": "chunked"}, True), ({}, True)],
)
def test_a_body_whose_length_is_not_said_counts_as_large(headers: dict[str, str], waits: bool) -> None:
    async def room() -> object:
        return Ingestions().room_for(httpx.Headers(headers))

    assert isinstance(anyio.run(room), Semaphore) == waits


def test_the_documents_are_there_afterwards(api: Running) -> None:
    assert api.add(*DOCUMENTS).status_code == 200
    assert api.http.post("/v1/search", json={"query": "lamp", "collection": "docs"}).status_code == 200
