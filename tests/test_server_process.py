"""The server's process: it owns its folder, says where it is, ends when told, and may be killed."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from rag_helpers import make_chat_model
from server_helpers import DOCUMENTS, QUESTION, events_of, eventually, make_config, problem_of, running

from rag.client import Client
from rag.connect import connect
from rag.data_dir import find_owner
from rag.errors import AddressError, DataDirBusyError, UnknownModelError
from rag.server.app import serve
from rag.server.running import listen, url_of
from rag.service import Service
from retriever.document import TextSource
from retriever.hash_embedder import HashEmbedder

CHILD = Path(__file__).with_name("server_child.py")
Spawn = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def spawn(tmp_path: Path, model: Path) -> Iterator[Spawn]:
    """Starts servers of one data directory in processes of their own."""
    started: list[subprocess.Popen[str]] = []
    root = str(CHILD.parent.parent)
    path = os.pathsep.join([root, str(CHILD.parent), os.environ.get("PYTHONPATH", "")])

    def start(port: int = 0) -> subprocess.Popen[str]:
        command = [sys.executable, CHILD, tmp_path / "data", model, str(port)]
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path})
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


def welcome(child: subprocess.Popen[str]) -> str:
    """Read what the child says until it is ready, and return its address."""
    assert child.stderr is not None
    said = ""
    for line in child.stderr:
        said += line
        if "Stop it with Ctrl-C" in line:
            return re.findall(r"serves \S+ at (http://127\.0\.0\.1:\d+) ", said)[0]
    raise AssertionError(f"the server ended: {said}")


def add(url: str, *documents: dict) -> None:
    response = httpx.post(f"{url}/v1/collections/docs/documents", json={"documents": list(documents)}, trust_env=False)
    assert response.status_code == 200, response.text


def ask(url: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/answer", json=QUESTION, trust_env=False, timeout=60)


def test_a_killed_server_leaves_its_documents_their_kv_and_no_owner(spawn: Spawn, tmp_path: Path) -> None:
    first = spawn()
    url = welcome(first)
    owner = find_owner(tmp_path / "data")
    assert owner is not None
    assert (owner.pid, owner.url) == (first.pid, url)
    add(url, *DOCUMENTS)
    answer = ask(url).json()
    assert answer["usage"]["cached_tokens"] == 0
    eventually(lambda: httpx.get(f"{url}/healthz", trust_env=False).json()["kv_store"]["written"] == 2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert (tmp_path / "data" / "owner.json").exists(), "what the killed one wrote is still there"
    assert find_owner(tmp_path / "data") is None, "and is not believed"
    second = spawn()
    again = welcome(second)
    listed = httpx.get(f"{again}/v1/collections/docs/documents", trust_env=False).json()["documents"]
    assert {item["uri"] for item in listed} == {item["uri"] for item in DOCUMENTS}
    same = ask(again).json()
    assert (same["answer"], same["sources"]) == (answer["answer"], answer["sources"])
    assert same["cache"]["hit_tokens"]["disk"] == same["usage"]["cached_tokens"] > 0, "it is read once"
    assert same["cache"]["passages"][0]["tier"] == "disk"
    second.send_signal(signal.SIGINT)
    assert second.wait(30) == 0


def test_a_signal_ends_it_in_order(spawn: Spawn, tmp_path: Path) -> None:
    child = spawn()
    url = welcome(child)
    add(url, *DOCUMENTS)
    body = QUESTION | {"max_tokens": 200, "stream": True}
    with httpx.stream("POST", f"{url}/v1/answer", json=body, trust_env=False, timeout=60) as response:
        events = events_of(response)
        assert next(events)[0] == "retrieval"
        child.send_signal(signal.SIGTERM)
        *_, (name, _) = events
    assert name == "done", "what runs may end"
    assert child.wait(30) == 0
    assert not (tmp_path / "data" / "owner.json").exists()
    assert find_owner(tmp_path / "data") is None
    assert child.stderr is not None
    assert "Traceback" not in child.stderr.read()


def test_a_second_server_of_the_folder_is_refused(tmp_path: Path, model: Path) -> None:
    with Service(make_config(tmp_path, model), embedder=HashEmbedder()) as service, running(service) as api:
        with pytest.raises(DataDirBusyError, match=rf"process {os.getpid()}.*{api.url}"):
            serve(service.config)
        assert api.http.get("/readyz").status_code == 200


def test_a_port_that_is_taken(tmp_path: Path, model: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        config = make_config(tmp_path, model).model_copy(update={"port": port})
        with pytest.raises(AddressError, match=rf"{port} .*--port"):
            serve(config)
    assert find_owner(tmp_path) is None
    with pytest.raises(AddressError, match="--host"):
        listen("198.51.100.7", 0)


def test_a_body_does_not_wait_for_the_acknowledgement_of_its_headers() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_missing_model_ends_the_server_with_the_reason(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path, model).model_copy(update={"model": "no-such-model", "port": 0})
    with pytest.raises(UnknownModelError, match="no-such-model"):
        serve(config)
    assert find_owner(tmp_path) is None
    said = capsys.readouterr().err
    assert "Preread serves" not in said
    assert "WARNING" not in said


def test_an_address_that_others_can_reach_is_warned_of(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path, model).model_copy(update={"model": "no-such-model", "port": 0, "host": "0.0.0.0"})
    with pytest.raises(UnknownModelError):
        serve(config)
    assert "WARNING: there are no keys: whoever reaches 0.0.0.0" in capsys.readouterr().err


def test_the_address_of_every_interface_is_told_as_this_machine() -> None:
    with listen("0.0.0.0", 0) as listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
    if socket.has_ipv6:
        try:
            listener = listen("::1", 0)
        except AddressError:
            return
        with listener:
            assert url_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"


def test_while_models_load_it_lives_and_is_not_ready(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told of its address, listings work, and what needs a model is refused with a time to come back."""
    gate = threading.Event()
    with Service(make_config(tmp_path, model), embedder=HashEmbedder()) as service:
        service.ingest("docs", [TextSource("a", "Salt is sold.")])
        load = service.load
        monkeypatch.setattr(service, "load", lambda: (gate.wait(30), load()))
        with running(service, ready=False) as api:
            assert api.http.get("/healthz").json()["ready"] is False
            assert api.http.get("/v1/collections/docs").status_code == 200
            for response in (
                api.http.get("/readyz"),
                api.http.post("/v1/answer", json=QUESTION),
                api.http.post("/v1/search", json={"query": "a"}),
                api.add(*DOCUMENTS),
            ):
                problem_of(response, 503, "not-ready")
                assert int(response.headers["retry-after"]) > 0
            owner = find_owner(tmp_path)
            assert owner is not None
            assert owner.url is None
            gate.set()
            eventually(lambda: api.http.get("/readyz").status_code == 200)
            eventually(lambda: getattr(find_owner(tmp_path), "url", None) == api.url)
            with connect(service.config) as operations:
                assert isinstance(operations, Client)
                assert operations.documents("docs") == service.documents("docs")


def test_an_ingestion_stops_with_the_server_and_keeps_what_is_stored(tmp_path: Path, model: Path) -> None:
    """The first batch is committed, the request is told to send the rest again."""
    texts = [{"uri": str(number), "text": f"Net number {number} is mended. " * 20} for number in range(400)]
    answered: list[httpx.Response] = []
    with Service(make_config(tmp_path, model), embedder=HashEmbedder()) as service:
        with running(service) as api:
            thread = threading.Thread(target=lambda: answered.append(api.add(*texts)))
            thread.start()
            eventually(lambda: service.collections() and service.collections()[0].documents)
        thread.join()
        problem_of(answered[0], 503, "stopping")
        stored = service.collection("docs").documents
        assert 0 < stored < len(texts)
        service.components.library().check_invariants("docs")
