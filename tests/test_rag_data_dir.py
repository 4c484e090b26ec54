"""One process owns a data directory, and what a killed one left behind is not believed."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rag.config import load_config
from rag.connect import connect
from rag.data_dir import OWNER_NAME, find_owner, open_owned
from rag.errors import DataDirBusyError, DataDirError, ServerError
from rag.service import Service

HOLD = """
import sys, time
from pathlib import Path
from rag.data_dir import open_owned
with open_owned(Path(sys.argv[1])) as owned:
    owned.announce(sys.argv[2] or None)
    print("held", flush=True)
    time.sleep(60)
"""


def hold(path: Path, url: str = "") -> subprocess.Popen[str]:
    """Another process that owns the directory."""
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), url], stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_a_directory_is_owned_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "data"
    assert find_owner(path) is None
    with open_owned(path) as owned:
        owned.announce("http://127.0.0.1:8000")
        owner = json.loads((path / OWNER_NAME).read_text())
        assert (owner["pid"], owner["url"]) == (os.getpid(), "http://127.0.0.1:8000")
    assert find_owner(path) is None
    assert not (path / OWNER_NAME).exists()


def test_a_second_process_is_refused_with_the_pid_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag.connect.PATIENCE_SECONDS", 0.3)
    process = hold(tmp_path)
    try:
        owner = find_owner(tmp_path)
        assert owner is not None
        assert (owner.pid, owner.url) == (process.pid, None)
        with pytest.raises(DataDirBusyError, match=f"process {process.pid}.*--data-dir"), open_owned(tmp_path):
            pass
        with pytest.raises(DataDirBusyError), connect(load_config(data_dir=tmp_path)):
            pass
    finally:
        end(process)


def test_a_command_waits_for_another_to_end(tmp_path: Path) -> None:
    process = hold(tmp_path)
    threading.Timer(0.5, process.kill).start()
    try:
        with connect(load_config(data_dir=tmp_path)) as operations:
            assert isinstance(operations, Service)
    finally:
        end(process)


def test_who_loses_the_race_for_the_directory_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process takes the directory after it was seen to be free, and keeps it longer than a lock is tried."""
    monkeypatch.setattr("rag.data_dir.PROBE_SECONDS", 0.1)
    process = hold(tmp_path)
    monkeypatch.setattr("rag.connect.find_owner", lambda _path: None)
    threading.Timer(0.7, process.kill).start()
    try:
        with connect(load_config(data_dir=tmp_path)) as operations:
            assert isinstance(operations, Service)
    finally:
        end(process)


def test_who_loses_the_race_to_a_server_asks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag.data_dir.PROBE_SECONDS", 0.1)
    process = hold(tmp_path, "http://127.0.0.1:9")
    answers = iter([None, find_owner(tmp_path)])
    monkeypatch.setattr("rag.connect.find_owner", lambda _path: next(answers))
    try:
        with pytest.raises(ServerError, match="does not answer"), connect(load_config(data_dir=tmp_path)):
            pass
    finally:
        end(process)


def test_a_killed_owner_is_forgotten(tmp_path: Path) -> None:
    process = hold(tmp_path, "http://127.0.0.1:9")
    process.send_signal(signal.SIGKILL)
    end(process)
    assert (tmp_path / OWNER_NAME).exists()
    assert find_owner(tmp_path) is None
    with connect(load_config(data_dir=tmp_path)) as operations:
        assert isinstance(operations, Service)
        assert json.loads((tmp_path / OWNER_NAME).read_text())["pid"] == os.getpid()


def test_a_server_that_does_not_answer_is_told(tmp_path: Path) -> None:
    process = hold(tmp_path, "http://127.0.0.1:9")
    try:
        with (
            pytest.raises(ServerError, match=r"http://127.0.0.1:9 does not answer"),
            connect(load_config(data_dir=tmp_path)),
        ):
            pass
    finally:
        end(process)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataDirError, match="cannot be used"), open_owned(tmp_path / "file" / "data"):
        pass
