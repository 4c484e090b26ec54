"""A peer in a process of its own, which stands still while it is not its turn."""

import json
import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rag.bench.peers.errors import PeerError, PeerMissingError, UnsupportedCaseError

__all__ = ["PeerProcess"]

CHILD = Path(__file__).with_name("child.py")
START_SECONDS = 1800.0  # some convert the weights first
ANSWER_SECONDS = 600.0
STOP_SECONDS = 10.0
# set for our process, or for code that a peer must not find
DROPPED_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


class PeerProcess:
    """A contestant: an adapter of this folder, run by the Python that has its packages.

    Args:
        name: of the adapter.
        python: that runs it.
        settings: what the adapter is told.

    Raises:
        PeerMissingError: this Python has no such package.
        PeerError: it does not start, or not in time.
    """

    def __init__(self, name: str, python: Path, settings: Mapping[str, Any]) -> None:
        self.name = name
        environment = {key: value for key, value in os.environ.items() if key not in DROPPED_VARIABLES}
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own script
                [str(python), str(CHILD), name, json.dumps(dict(settings))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
                process_group=0,  # stopped with its children; continued by the system when we are gone
            )
        except OSError as error:
            raise PeerError(f"{python} cannot be run: {error.strerror}") from error
        try:
            hello = self._receive(START_SECONDS)
            if "missing" in hello:
                raise PeerMissingError(f"{python} has no module {hello['missing']}")
            self._refuse_errors(hello)
        except PeerError:
            self.close()
            raise
        self.version, self.detail = str(hello["version"]), str(hello["detail"])
        self._signal(signal.SIGSTOP)

    def first_token(self, prompt: Sequence[int], cached: int) -> float:
        """Return the seconds to the first token of a prompt whose first `cached` tokens it has in its cache."""
        return self._ask({"do": "first_token", "prompt": list(prompt), "cached": cached})

    def decode(self, prompts: Sequence[Sequence[int]], cached: int, steps: int) -> float:
        """Return the seconds of a decode step of prompts that run together."""
        return self._ask({"do": "decode", "prompts": [list(p) for p in prompts], "cached": cached, "steps": steps})

    def close(self) -> None:
        """End the process and what it started."""
        self._signal(signal.SIGCONT)
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # of work that a dead process has not read
                self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _ask(self, work: Mapping[str, Any]) -> float:
        """Let it run for one piece of work.

        Raises:
            UnsupportedCaseError: it does not do that.
            PeerError: it failed, it is gone, or it hung and was ended.
        """
        assert self._process.stdin is not None, "opened with a pipe"
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(work) + "\n")
            self._process.stdin.flush()
            answer = self._receive(ANSWER_SECONDS)
        except BrokenPipeError as error:
            raise PeerError(f"the process of {self.name} ended") from error
        finally:
            self._signal(signal.SIGSTOP)
        self._refuse_errors(answer)
        return float(answer["seconds"])

    def _receive(self, seconds: float) -> dict[str, Any]:
        """Read one line; a process that says nothing for so long is ended, since its answer would come too late."""
        assert self._process.stdout is not None, "opened with a pipe"
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            self._signal(signal.SIGKILL)
            raise PeerError(
                f"{self.name} gave no answer for {seconds:.0f} seconds and was ended; leave it out, or measure smaller "
                "cases with --only, --batch and --context"
            )
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(f"the process of {self.name} ended without an answer (exit code {self._process.poll()})")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _refuse_errors(self, answer: Mapping[str, Any]) -> None:
        if "unsupported" in answer:
            raise UnsupportedCaseError(str(answer["unsupported"]))
        if "error" in answer:
            raise PeerError(f"{self.name}: {answer['error']}")

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)
