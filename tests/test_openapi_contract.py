"""Whatever a client sends, the server answers as its OpenAPI description says: no 5xx, no status that is not there."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rag_helpers import make_chat_model
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from server_helpers import DOCUMENTS, Running, make_config, running

from rag.service import Service
from retriever.hash_embedder import HashEmbedder

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
COLLECTION = "docs"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = make_chat_model(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=1024)
    config = make_config(tmp_path_factory.mktemp("data"), model)
    with Service(config, embedder=HashEmbedder()) as service, running(service) as running_api:
        running_api.http.headers["Authorization"] = f"Bearer {running_api.server.config.app.state.preread.owner_token}"
        yield running_api


def refill(api: Running) -> dict[str, str]:
    """Have something in the collection again, and return what parameters have to be to reach it."""
    path = f"/v1/collections/{COLLECTION}/documents"
    listed = api.http.get(path)
    if listed.status_code == 404 or not listed.json()["documents"]:
        assert api.add(*DOCUMENTS).status_code == 200
        listed = api.http.get(path)
    jobs = api.http.get("/v1/jobs").json()["jobs"]
    if not jobs:
        jobs = [api.http.post(f"{path}?wait=false", json={"documents": DOCUMENTS}).json()]
    return {"collection": COLLECTION, "document_id": listed.json()["documents"][0]["id"], "job_id": jobs[0]["id"]}


def aim(case: schemathesis.Case, there: dict[str, str]) -> None:
    """Point a request at what is there, where it would hit nothing by chance."""
    for name, value in there.items():
        if name in (case.path_parameters or {}):
            case.path_parameters[name] = value
        if isinstance(case.body, dict) and name in case.body:
            case.body[name] = value
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = f"rag/{COLLECTION}"


def check_operation(api: Running, operation: Any, examples: int) -> None:
    """Send so many requests of one kind; most of them at what is there."""
    there = refill(api)

    @settings(
        max_examples=examples,
        deadline=None,
        phases=(Phase.generate,),
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(), aimed=st.integers(0, 3))
    def conforms(case: schemathesis.Case, aimed: int) -> None:
        if aimed:
            aim(case, there)
        response = case.call(base_url=api.url, headers=dict(api.http.headers), timeout=60)
        case.validate_response(response, checks=CHECKS)

    conforms()


def check_all(api: Running, examples: int) -> None:
    schema = schemathesis.openapi.from_dict(api.http.get("/openapi.json").json())
    failures: list[str] = []
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 40, "the description has lost its routes"
    for operation in operations:
        try:
            check_operation(api, operation, examples)
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - all that is wrong is told at once
            failures.append(f"{operation.label}: {_told(error)}")
    assert not failures, "\n\n".join(failures)
    api.check()


def _told(error: BaseException) -> str:
    nested = getattr(error, "exceptions", None)
    return "\n".join(map(_told, nested)) if nested else f"{type(error).__name__}: {error}"[:3000]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Let the libraries of the test warn of what they like."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_a_few_requests_of_every_kind(api: Running) -> None:
    check_all(api, examples=4)


@pytest.mark.slow
def test_many_requests_of_every_kind(api: Running) -> None:
    check_all(api, examples=150)


def test_every_route_is_described(api: Running) -> None:
    """Each route of the app is in the description, but the page's and those that describe themselves."""
    description: dict[str, Any] = api.http.get("/openapi.json").json()["paths"]
    described = {(method.upper(), path) for path, item in description.items() for method in item}
    assert {("POST", "/v1/cache/pin"), ("GET", "/v1/jobs/{job_id}/events")} <= described
    for method, path in described:
        responses = description[path][method.lower()]["responses"]
        assert any(status.startswith("2") for status in responses), (method, path)
        assert all(item.get("description") for item in responses.values()), (method, path)
