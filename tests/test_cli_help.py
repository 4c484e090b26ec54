"""Help is quick because nothing heavy is imported for it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "transformers",
    "faiss",
    "sentence_transformers",
    "numpy",
    "fastapi",
    "tokenizers",
    "httpx",
)
PROBE = """
import sys
sys.argv = ["rag", *sys.argv[1:]]
from rag.cli.main import main
try:
    main()
except SystemExit as end:
    print("code", end.code)
print("loaded", [name for name in {heavy!r} if name in sys.modules])
"""
COMMANDS = (
    *("ingest", "ask", "search", "serve", "demo", "doctor"),
    *("collections", "documents", "jobs", "keys", "model", "usage", "bench"),
)


@pytest.mark.parametrize(
    "command",
    [(), ("ask",), ("ingest",), ("model",), ("documents", "list"), ("bench",), ("usage",), ("serve",), ("keys",)],
)
def test_help_loads_nothing_heavy(command: tuple[str, ...]) -> None:
    code = PROBE.format(heavy=HEAVY)
    ran = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert ran.stderr == ""
    assert "code 0\nloaded []\n" in ran.stdout


def test_help_is_quick_and_lists_every_command() -> None:
    script = Path(sys.executable).with_name("rag")
    times = []
    for _ in range(3):
        started = time.perf_counter()
        ran = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - started)
    assert all(f" {command} " in ran.stdout for command in COMMANDS)
    assert "130 interrupted" in " ".join(ran.stdout.split())
    # 0.5 s on a quiet machine; tests share theirs
    assert min(times) < 1.5
