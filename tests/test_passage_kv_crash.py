"""Killed at random points of ingestion, reading ahead, update, delete and purge: no wrong answer, nothing left over."""

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.context import ForkServerContext
from pathlib import Path

import passage_kv_child as child
import pytest
from rag_helpers import make_chat_model

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def processes() -> Iterator[ForkServerContext]:
    """Makes processes quickly: they are forked from one that has imported everything and has started no thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["passage_kv_child", "engine.worker", "safetensors.torch", "rag.prompt_layout"])
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        yield context


def run(processes: ForkServerContext, function: Callable[[Path, Path], None], folder: Path, model: Path) -> None:
    process = processes.Process(target=function, args=(folder, model))
    process.start()
    process.join(60)
    assert process.exitcode == 0, f"{function.__name__} failed; its traceback is on stderr"


def count_steps(processes: ForkServerContext, folder: Path, model: Path) -> int:
    """Let the work come to its end, and return how often it is heard of."""
    receiving, sending = processes.Pipe(duplex=False)
    process = processes.Process(target=child.work_in_child, args=(folder, model, 0, sending))
    process.start()
    sending.close()
    steps = 0
    while receiving.poll(60):
        try:
            receiving.recv()
        except EOFError:
            break
        steps += 1
    process.join(60)
    receiving.close()
    assert process.exitcode == 0, "the work failed; its traceback is on stderr"
    return steps


def run_and_kill(processes: ForkServerContext, folder: Path, model: Path, rng: random.Random, steps: int) -> int | None:
    """Start the work, kill it at a random moment, and return how it ended."""
    receiving, sending = processes.Pipe(duplex=False)
    process = processes.Process(target=child.work_in_child, args=(folder, model, rng.randrange(2**32), sending))
    process.start()
    sending.close()
    with suppress(EOFError):
        for _ in range(rng.randrange(steps)):
            receiving.recv()
        time.sleep(rng.random() * 0.02)
    process.kill()
    process.join()
    receiving.close()
    return process.exitcode


@pytest.mark.parametrize("kills", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_random_points(processes: ForkServerContext, kills: int, tmp_path: Path) -> None:
    model = make_chat_model(tmp_path / "model")
    seed = random.randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")
    rng = random.Random(seed)
    steps = count_steps(processes, tmp_path / "undisturbed", model)
    ends = []
    for _ in range(kills):
        ends.append(run_and_kill(processes, tmp_path / "data", model, rng, steps))
        run(processes, child.check, tmp_path / "data", model)
    assert -signal.SIGKILL in ends, f"it always ended before it was killed: {ends}"
    run(processes, child.complete, tmp_path / "data", model)
