"""A store whose process is killed with SIGKILL has what was finished, and nothing wrong of what was not."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import kv_store_child as child
import pytest
from kv_helpers import MIB, holds, key_of, raw_bytes

from engine.kv_store import ExtentStore


def run_and_kill(folder: Path, generator: random.Random) -> list[list[str]]:
    """Let a child work for a random while, kill it, and return the lines it has written."""
    command = [sys.executable, child.__file__, str(folder), str(generator.randrange(2**32))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        time.sleep(generator.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        lines = process.stdout.read().splitlines(keepends=True)
    assert process.returncode == -signal.SIGKILL
    return [line.split() for line in lines if line.endswith("\n")]


def apply(lines: list[list[str]], present: set[int]) -> set[int]:
    """Change what is present by what was finished; return the numbers of what was not."""
    unfinished: set[int] = set()
    verb = ""
    for word, *rest in lines:
        if word == "begin":
            verb, unfinished = rest[0], set(map(int, rest[1:]))
        elif verb == "put":
            present |= unfinished
            unfinished = set()
        else:
            present -= unfinished
            unfinished = set()
    return unfinished


@pytest.mark.parametrize("kills", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_random_points(kills, tmp_path):
    seed = random.randrange(2**32)
    generator = random.Random(seed)
    sys.stdout.write(f"seed {seed}\n")
    present: set[int] = set()
    operations = 0
    for _ in range(kills):
        lines = run_and_kill(tmp_path, generator)
        operations += len(lines) // 2
        unfinished = apply(lines, present)
        store = ExtentStore(tmp_path, capacity_bytes=MIB)
        found = {n for n in range(child.NUMBERS) if holds(store, n)}
        assert found - unfinished == present - unfinished
        assert store.stats().bad_records == 0
        store.close()
        raw = raw_bytes(tmp_path)
        assert not any(key_of(n) in raw for n in range(child.NUMBERS) if n not in found)
        present = found
    assert operations > kills, "the children did hardly anything"
