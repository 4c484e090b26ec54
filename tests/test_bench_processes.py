"""Contestants in processes of their own: what they are told and say, how they fail, and what they leave behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from contestant_helpers import (
    BATCHING,
    DIE,
    FAIL,
    HANG,
    OWNER,
    REFUSE,
    SHORT,
    SINGLE,
    a_request,
    ask,
    hear,
    hear_for,
    state_of,
    wait_for,
)

from rag.bench.peers import child, process, serving
from rag.bench.peers.errors import PeerError, PeerMissingError
from rag.bench.peers.opening import reason
from rag.bench.suite import processes
from rag.bench.suite.lineup import awake
from rag.bench.suite.processes import ServingProcess, group_footprint
from rag.bench.suite.requests import RequestStream


@pytest.fixture
def adapters(tmp_path, monkeypatch):
    """A folder with the real child script and adapters of our own."""
    folder = tmp_path / "adapters"
    folder.mkdir()
    for module in (child, serving):
        shutil.copy(module.__file__, folder)
    (folder / "batching_adapter.py").write_text(BATCHING)
    (folder / "single_adapter.py").write_text(SINGLE)
    (folder / "absent_adapter.py").write_text("import no_such_package_at_all")
    monkeypatch.setattr(process, "CHILD", folder / "child.py")
    return folder


@pytest.fixture
def start(adapters, tmp_path):
    made = []

    def start(adapter="batching", **settings):
        work_dir = tmp_path / "work"
        made.append(ServingProcess("toy", adapter, Path(sys.executable), settings, work_dir=work_dir))
        return made[-1]

    yield start
    for one in made:
        one.close()
    assert not list((tmp_path / "work").glob("*")), "a folder was left behind"


def test_requests_run_together_and_tell_of_each_token(start):
    contestant = start()
    assert (contestant.name, contestant.version, contestant.detail) == ("toy", "1.0", "fake")
    contestant.resume()
    for number, output in ((4, 3), (7, 2)):
        contestant.submit(a_request(number, output=output))
    events = hear(contestant, 4, 7)
    assert [event.tokens for event in events[4]] == [(5,), (6,), (1,)]
    assert [event.count for event in events[7]] == [1, 1]
    for one in events.values():
        times = [event.at for event in one]
        assert times == sorted(times)
        assert one[-1].cached.keys() == {"device"}
        assert one[-1].started <= times[-1] <= time.monotonic()
    assert contestant.events(0.0) == []


def test_an_adapter_for_one_request_makes_the_others_wait(start):
    contestant = start("single")
    contestant.resume()
    for number, first in ((3, 1), (1, FAIL), (2, 1)):
        contestant.submit(a_request(number, first, output=2))
    heard = hear(contestant, 3, 1, 2)
    assert [event.tokens for event in heard[3]] == [(3,), (3,)]
    assert heard[1][0].error == "RuntimeError: broken answer"
    assert heard[3][-1].at <= heard[1][0].at <= heard[2][0].at
    assert heard[2][-1].cached == {"device": 2}
    contestant.prepare(RequestStream((a_request(0),), ""))
    assert ask(contestant, a_request(5))[-1].cached == {"device": 1}, "it has not forgotten"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="process states are read from /proc")
def test_a_paused_engine_makes_no_progress(start):
    contestant = start()
    pid = contestant._child.pid
    wait_for(lambda: state_of(pid) == "T")
    before = contestant.footprint().cpu_seconds
    contestant.submit(a_request(0))
    assert contestant.events(0.3) == []
    assert contestant.footprint().cpu_seconds == before
    contestant.resume()
    assert len(hear(contestant, 0)[0]) == 3
    contestant.pause()
    wait_for(lambda: state_of(pid) == "T")


def test_it_sleeps_again_when_it_is_prepared(start):
    contestant = start()
    stream = RequestStream((a_request(0, passages=[(1, 2), (3,)]), a_request(1, passages=[(3,)])), "")
    with awake(contestant):
        prepared = contestant.prepare(stream)
    assert (prepared.tokens, prepared.seconds) == (3001, 0.5)
    assert contestant.footprint().disk == pytest.approx(1 << 20, abs=1 << 16)
    wait_for(lambda: state_of(contestant._child.pid) == "T")


def test_dropped_requests_say_nothing_afterwards(start):
    contestant = start()
    contestant.cancel()
    contestant.resume()
    for number in range(5):
        contestant.submit(a_request(number, output=100_000))
    assert contestant.events(10.0)
    contestant.cancel()
    assert contestant.events(0.2) == []
    assert [event.tokens for event in ask(contestant, a_request(9))] == [(5,), (6,), (1,)]


def test_what_the_pipe_cannot_hold_is_sent_later(start):
    contestant = start()
    for number in range(20):  # it stands still, so that nobody reads them
        contestant.submit(a_request(number, tokens=range(100, 10_000)))
    contestant.resume()
    assert all(len(one) == 3 for one in hear(contestant, *range(20)).values())


def test_too_few_tokens_and_errors_of_one_request(start):
    contestant = start()
    short = ask(contestant, a_request(0, SHORT))
    assert (sum(event.count for event in short), short[-1].done, short[-1].error) == (2, True, "")
    assert ask(contestant, a_request(1, REFUSE))[-1].error == "ValueError: too long"
    contestant.submit(a_request(2, output=10**9))
    contestant.submit(a_request(3, FAIL))
    heard = hear(contestant, 2, 3)
    assert {one[-1].error for one in heard.values()} == {"RuntimeError: broken step"}
    assert len(ask(contestant, a_request(4))) == 3, "it does not go on after a failure"


def test_an_engine_that_dies_is_gone_for_good(start):
    contestant = start(print="hello")
    contestant.resume()
    contestant.submit(a_request(0, DIE))
    with pytest.raises(PeerError, match=r"ended \(exit code 7\); the last that it printed: out of luck"):
        hear(contestant, 0)
    for use in (contestant.cancel, lambda: contestant.events(1.0), lambda: contestant.submit(a_request(1))):
        with pytest.raises(PeerError, match="ended"):
            use()
    contestant.pause()
    assert contestant.footprint().memory is None
    contestant.close()


def test_an_engine_that_hangs_is_ended(start, monkeypatch):
    contestant = start()
    monkeypatch.setattr(processes, "CANCEL_SECONDS", 0.3)
    contestant.resume()
    contestant.submit(a_request(0, HANG))
    assert contestant.events(0.5) == [], "how long it may be silent is for who drives to judge"
    with pytest.raises(PeerError, match="no answer for 0 seconds and was ended"):
        contestant.cancel()
    contestant._child._process.wait(10)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="process states are read from /proc")
def test_what_an_engine_leaves_behind_when_it_dies_is_ended(adapters, start):
    helper = (
        f"import subprocess, sys; p = subprocess.Popen([{sys.executable!r}, '-c', 'import time; time.sleep(60)'])\n"
    )
    script = (adapters / "batching_adapter.py").read_text()
    script = script.replace('version, detail = "1.0", "fake"', 'version, detail = "1.0", str(p.pid)')
    (adapters / "batching_adapter.py").write_text(helper + script)
    contestant = start()
    pid = int(contestant.detail)
    contestant.resume()
    contestant.submit(a_request(0, DIE))
    with pytest.raises(PeerError, match="exit code 7"):
        hear(contestant, 0)
    assert state_of(pid) != "Z"
    contestant.close()
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or state_of(pid) == "Z")


@pytest.mark.parametrize("said", ["not json", "[1]", '{"number": 0, "colour": "red"}', '{"number": 0}', '{"done": 1}'])
def test_an_engine_that_talks_nonsense(adapters, start, said):
    script = f"import time; input(); print({said!r}, flush=True); time.sleep(60)"
    hello = 'print(\'{"version": "1", "detail": ""}\', flush=True)'
    (adapters / "child.py").write_text(f"{hello}\n{script}")
    contestant = start()
    contestant.resume()
    contestant.submit(a_request(0))
    with pytest.raises(PeerError, match=r"toy.*(no message|no sense)"):
        hear_for(contestant, 10.0)


def test_a_module_that_our_own_engine_lacks():
    told = reason("preread-exact", {}, PeerMissingError("no module engine"))
    assert told == f"no module engine; install preread, with all that it needs, into {sys.executable}"


def test_an_engine_that_does_not_start(start):
    with pytest.raises(PeerMissingError, match="no_such_package_at_all"):
        start("absent")
    with pytest.raises(PeerError, match="RuntimeError: no such file"):
        start(broken=True)


def test_closing_twice_and_in_the_middle(start):
    contestant = start()
    contestant.resume()
    contestant.submit(a_request(0, output=10**9))
    contestant.events(5.0)
    contestant.close()
    assert contestant._child._process.poll() == 0
    contestant.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a stopped process stays")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("state", ["paused", "awake"])
def test_nothing_is_left_when_the_benchmark_is_ended(adapters, tmp_path, number, state):
    work_dir = tmp_path / "work"
    arguments = [sys.executable, "-c", OWNER, str(adapters / "child.py"), str(work_dir), state]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as owner:
        pid = int(owner.stdout.readline())
        assert list(work_dir.iterdir())
        owner.send_signal(number)
        owner.wait(10)
    wait_for(lambda: not list(work_dir.iterdir()))
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or state_of(pid) == "Z")


def _sleepers(group):
    """The processes of a group that are no Python."""
    names = {int(one.name): (one / "comm").read_text().strip() for one in processes._members(group)}
    return {pid for pid, name in names.items() if name in ("sh", "dash", "sleep")}


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from /proc")
def test_what_a_process_group_holds():
    script = "import time; x = bytearray(1 << 26); x[::99] = x[::99]; print(1, flush=True); time.sleep(60)"
    shell = f"{sys.executable} -c '{script}' & sleep 60"
    with subprocess.Popen(["/bin/sh", "-c", shell], process_group=0, stdout=subprocess.PIPE) as group:
        group.stdout.readline()
        found = group_footprint(group.pid, disk=5)
        [big] = {int(one.name) for one in processes._members(group.pid)} - {group.pid, *_sleepers(group.pid)}
        os.kill(big, signal.SIGKILL)
        wait_for(lambda: not Path(f"/proc/{big}").exists() or state_of(big) == "Z")
        later = group_footprint(group.pid)
        os.killpg(group.pid, signal.SIGKILL)
    assert 1 << 26 < found.memory <= 1 << 28, "shared pages count once, however many processes have them"
    assert later.memory < 1 << 26
    assert found.disk == 5
    assert found.cpu_seconds > 0
    gone = group_footprint(group.pid)
    assert (gone.memory, gone.disk, gone.cpu_seconds) == (None, 0, None)
