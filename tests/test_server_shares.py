"""What one client asks for takes neither the threads nor the places that the others need."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from rag_helpers import make_chat_model
from server_helpers import DOCUMENTS, Running, eventually, make_config, running

from rag.server.state import MAX_UPKEEP
from rag.service import Service
from retriever.hash_embedder import HashEmbedder

FLOOD = 45  # more than there are threads for requests


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def api(tmp_path: Path, model: Path) -> Iterator[Running]:
    config = make_config(tmp_path, model)
    with Service(config, embedder=HashEmbedder()) as service, running(service) as api:
        assert api.add(*DOCUMENTS).status_code == 200
        yield api


@pytest.mark.parametrize(
    ("where", "name", "request_of"),
    [
        ("service", "delete_document", ("DELETE", "/v1/collections/docs/documents/x?purge=true", None)),
        ("service", "precompute_plan", ("GET", "/v1/collections/docs/precompute", None)),
        ("cache", "flush", ("POST", "/v1/cache/flush", {"collection": "docs"})),
    ],
)
def test_long_work_leaves_threads_to_the_others(
    api: Running, monkeypatch: pytest.MonkeyPatch, where: str, name: str, request_of: tuple[str, str, Any]
) -> None:
    release, begun = threading.Event(), []

    def hang(*_arguments: Any, **_named: Any) -> None:
        begun.append(name)
        release.wait(60)
        raise AssertionError("nobody looks at this")

    monkeypatch.setattr(api.service if where == "service" else api.service.cache, name, hang)
    method, path, body = request_of
    with httpx.Client(base_url=api.url, timeout=60, trust_env=False) as flood, ThreadPoolExecutor(FLOOD) as pool:
        sent = [pool.submit(flood.request, method, path, json=body) for _ in range(FLOOD)]
        try:
            eventually(lambda: len(begun) >= MAX_UPKEEP)
            found = api.http.post("/v1/search", json={"query": "lamp", "collection": "docs"}, timeout=20)
            assert found.status_code == 200
            assert api.http.get("/v1/collections/docs/documents", timeout=20).status_code == 200
            assert len(begun) == MAX_UPKEEP
        finally:
            release.set()
        assert {response.result().status_code for response in sent} == {500}


def test_pinning_ends_when_its_client_has_gone(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = api.service.components.worker()
    begun, ended = [], []

    async def hang(_handle: object) -> Any:
        begun.append(1)
        try:
            await asyncio.sleep(60)
            yield
        finally:
            ended.append(1)

    monkeypatch.setattr(worker, "stream", hang)
    with suppress(httpx.ReadTimeout):
        api.http.post("/v1/cache/pin", json={"collection": "docs"}, timeout=0.5)
    eventually(lambda: ended)
    assert len(begun) == 1, "the second passage is not read"
    monkeypatch.undo()
    assert api.http.post("/v1/cache/pin", json={"collection": "docs"}).json() == {"passages": 2, "left_out": 0}
