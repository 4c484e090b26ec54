"""What the server's tests share: a real server in a thread, and a reader of server-sent events."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from rag_helpers import HARBOUR, LIGHTHOUSE

from engine.stats import EngineStats
from rag.config import AnswerSettings, EngineSettings, RagConfig, ServerSettings, load_config
from rag.data_dir import open_owned
from rag.server.app import create_app
from rag.server.running import Server, listen
from rag.service import Service

DOCUMENTS = [
    {"uri": "t:lighthouse", "text": LIGHTHOUSE, "title": "lighthouse"},
    {"uri": "t:harbour", "text": HARBOUR, "title": "harbour"},
]
QUESTION = {"question": "Who lights the lamp?", "collection": "docs"}
PROBLEM = "application/problem+json"


def make_config(folder: Path, model: Path, *, server: dict | None = None, **engine: object) -> RagConfig:
    return load_config(
        data_dir=folder,
        model=str(model),
        embedder=str(model),
        # slow on purpose: readers leave, and questions queue, while an answer of some thousand tokens is on its way
        engine=EngineSettings(
            **{
                "dtype": "float32",
                "backend": "torch",
                "max_draft_tokens": 0,
                "kv_cache_bytes": 16 * 2**20,
                "precompute_when_idle": False,
                **engine,
            }
        ),
        answer=AnswerSettings(max_tokens=8, stop_repetition=False),
        server=ServerSettings(**(server or {})),
    )


@dataclass(frozen=True)
class Running:
    """A server that runs in a thread."""

    server: Server
    service: Service
    http: httpx.Client

    @property
    def url(self) -> str:
        return self.server.url

    def stats(self) -> EngineStats:
        return self.service.components.worker().call(lambda engine: engine.stats()).result()

    def add(self, *documents: dict, collection: str = "docs") -> httpx.Response:
        return self.http.post(f"/v1/collections/{collection}/documents", json={"documents": list(documents)})

    def check(self) -> None:
        """Nothing runs and the books are right."""
        eventually(lambda: self.stats().running == self.stats().waiting == 0)
        self.service.components.worker().call(lambda engine: engine.check_invariants()).result()


@contextmanager
def running(service: Service, *, ready: bool = True) -> Iterator[Running]:
    """Serve on a free port until the block ends; with `ready`, wait until it takes questions."""
    with open_owned(service.config.data_dir) as owned, listen("127.0.0.1", 0) as listener:
        server = Server(create_app(service), owned, listener)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as http:
            try:
                eventually(lambda: server.started)
                if ready:
                    eventually(lambda: http.get("/readyz").status_code == 200)
                yield Running(server, service, http)
            finally:
                server.should_exit = True
                thread.join(30)
                assert not thread.is_alive(), "the server did not end"


def eventually(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def events_of(response: httpx.Response) -> Iterator[tuple[str, dict]]:
    """Yield name and data of each event; a comment is one named ':'."""
    name = ""
    for line in response.iter_lines():
        if line.startswith(":"):
            yield ":", {}
        elif line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))
        else:
            assert line == "", f"a stray line in the stream: {line!r}"


def problem_of(response: httpx.Response, status: int, slug: str) -> dict:
    """Check that a response is this problem, and return it."""
    assert (response.status_code, response.headers["content-type"]) == (status, PROBLEM), response.text
    problem: dict = response.json()
    assert problem["status"] == status
    assert problem["type"] == f"urn:problem-type:preread:{slug}"
    assert problem["title"]
    assert len(problem["detail"]) > 20, "a detail says what is wrong and what to do"
    assert response.headers["x-request-id"]
    return problem


def shape(value: object) -> object:
    """Return the keys and the nesting of JSON without its values; a list looks like its first item."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return ...
