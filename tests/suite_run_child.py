"""`rag bench run` with scripted engines, in a process of its own; the engine `slow` takes its time in earnest."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from scripted_contestants import Clock, Scripted, ScriptedParts

import rag.bench.suite.parts
from rag.bench.suite.contestant import Event
from rag.cli.main import main

CLOCK = Clock()


class Stuck(Scripted):
    """Says that it works, and does not come back."""

    def events(self, timeout: float) -> Sequence[Event]:
        if self.name == "openvino" and len(self.seen) > 2:
            print("working", flush=True)
            time.sleep(60)
        return super().events(timeout)

    def close(self) -> None:
        Path(f"{self.name}.closed").touch()
        super().close()


def engines() -> list[Scripted]:
    return [Stuck(name, CLOCK, lambda _request: 0.1) for name in ("preread-exact", "openvino")]


rag.bench.suite.parts.make_parts = lambda _options, _config: ScriptedParts(CLOCK, engines).parts
sys.argv = ["rag", *sys.argv[1:]]
main()
