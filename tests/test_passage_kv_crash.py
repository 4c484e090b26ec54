"""Killed at random points of ingestion, reading ahead, update, delete and purge: no wrong answer, nothing left over."""

import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import passage_kv_child as child
import pytest
from rag_helpers import make_chat_model

TESTS = Path(__file__).parent
STEPS = 40  # about as many as there are, from opening to the end


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


def run_and_kill(processes: ForkServerContext, folder: Path, model: Path, rng: random.Random) -> str:
    """Start the work, kill it at a random moment, and return the last that was heard of it."""
    receiving, sending = processes.Pipe(duplex=False)
    process = processes.Process(target=child.work_in_child, args=(folder, model, rng.randrange(2**32), sending))
    process.start()
    sending.close()
    heard = "nothing"
    try:
        for _ in range(rng.randrange(STEPS)):
            heard = receiving.recv()
        time.sleep(rng.random() * 0.02)
    except EOFError:
        pass
    process.kill()
    process.join()
    receiving.close()
    return heard


@pytest.mark.parametrize("kills", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_random_points(processes: ForkServerContext, kills: int, tmp_path: Path) -> None:
    model = make_chat_model(tmp_path / "model")
    seed = random.randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")
    rng = random.Random(seed)
    heard = [run_and_check(processes, tmp_path / "data", model, rng) for _ in range(kills)]
    assert sum(step != "done" for step in heard) >= kills // 2, f"it ended before it was killed: {heard}"
    run(processes, child.complete, tmp_path / "data", model)


def run_and_check(processes: ForkServerContext, folder: Path, model: Path, rng: random.Random) -> str:
    heard = run_and_kill(processes, folder, model, rng)
    run(processes, child.check, folder, model)
    return heard
