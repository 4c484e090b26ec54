"""A peer in a process of its own, which stands still while it is not its turn."""

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rag.bench.peers.errors import PeerError, PeerMissingError, UnsupportedCaseError
from rag.bench.peers.serving import LineReader

__all__ = ["DROPPED_VARIABLES", "Child", "PeerProcess", "end_group"]

CHILD = Path(__file__).with_name("child.py")
START_SECONDS = 1800.0  # some convert the weights first
ANSWER_SECONDS = 600.0
STOP_SECONDS = 10.0
# set for our process, or for code that a peer must not find
DROPPED_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
LAST_WORDS = 2000  # bytes of what it printed last


class Child:
    """An adapter of this folder, run by the Python that has its packages; messages to and from it are JSON lines.

    It leads a process group of its own and runs until it is stopped.

    Args:
        adapter: its name.
        python: that runs it.
        settings: what the adapter is told.
        name: for messages; the adapter's, where there is no other.
        variables: of its environment, besides ours.

    Raises:
        PeerMissingError: this Python has no such package.
        PeerError: it does not start, or not in time.
    """

    def __init__(
        self,
        adapter: str,
        python: Path,
        settings: Mapping[str, Any],
        *,
        name: str = "",
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name or adapter
        environment = {key: value for key, value in os.environ.items() if key not in DROPPED_VARIABLES}
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own script
                [str(python), str(CHILD), adapter, json.dumps(dict(settings))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._printed,
                bufsize=0,
                env={**environment, **(variables or {})},
                process_group=0,  # stopped with its children
            )
        except OSError as error:
            self._printed.close()
            raise PeerError(f"{python} cannot be run: {error.strerror}") from error
        assert self._process.stdin is not None, "opened with a pipe"
        assert self._process.stdout is not None, "opened with a pipe"
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        self._unsent = bytearray()
        self._reader = LineReader(self._stdout.fileno())
        self._received: deque[dict[str, Any]] = deque()
        try:
            hello = self.receive(START_SECONDS)
            if "missing" in hello:
                raise PeerMissingError(f"{python} has no module {hello['missing']}")
            self.version, self.detail = str(hello["version"]), str(hello["detail"])
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Its process, and the group that it leads."""
        return self._process.pid

    def send(self, message: Mapping[str, Any]) -> None:
        """Hand a message over; returns at once, and sends what the pipe cannot hold while messages are waited for.

        Raises:
            PeerError: it is gone.
        """
        self._unsent += json.dumps(message).encode() + b"\n"
        self._flush()

    def messages(self, timeout: float) -> list[dict[str, Any]]:
        """Return what it said, waiting up to so many seconds for the first of it.

        Raises:
            PeerError: it is gone, and everything that it said has been returned; or what it says makes no sense.
        """
        until = time.monotonic() + timeout
        while not self._received:
            wait = max(until - time.monotonic(), 0.0)
            if self._unsent:
                select.select([self._stdout], [self._stdin], [], wait)
                self._flush()
                wait = 0.0
            self._received += [self._parse(line) for line in self._reader.lines(wait)]
            if self._reader.ended and not self._received:
                raise self._gone()
            if time.monotonic() >= until:
                break
        found = list(self._received)
        self._received.clear()
        return found

    def receive(self, seconds: float) -> dict[str, Any]:
        """Return the next message; a process that says nothing for so long is ended: its answer would come too late.

        Raises:
            PeerError: it says that something failed, it is gone, or it hung and was ended.
            UnsupportedCaseError: it does not do that.
        """
        found = self.messages(seconds)
        if not found:
            raise self.hangs(seconds)
        answer, *rest = found
        self._received.extendleft(reversed(rest))
        if "unsupported" in answer:
            raise UnsupportedCaseError(str(answer["unsupported"]))
        if answer.get("error") and "number" not in answer:
            raise PeerError(f"{self.name}: {answer['error']}")
        return answer

    def hangs(self, seconds: float) -> PeerError:
        """End it for its silence, and return what to raise."""
        return self.end(
            f"gave no answer for {seconds:.0f} seconds and was ended; leave it out, or measure smaller cases"
        )

    def end(self, problem: str) -> PeerError:
        """End it at once, and return what to raise."""
        self.signal(signal.SIGKILL)
        return PeerError(f"{self.name} {problem}")

    def stop(self) -> None:
        """Let it stand still, with its children."""
        self.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run again."""
        self.signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its group; nothing happens when it has ended."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def close(self) -> None:
        """End the process, and its children."""
        if self._stdin.closed:
            return
        self.go_on()
        self._stdin.close()
        end_group(self._process, STOP_SECONDS)
        self._stdout.close()
        self._printed.close()

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: os.write(self._stdin.fileno(), self._unsent)]
        except BlockingIOError:
            pass  # the pipe is full
        except OSError as error:
            raise self._gone() from error

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise self.end(f"says {line[:100]!r}, which is no message, and was ended")
        return message

    def _gone(self) -> PeerError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        size = self._printed.seek(0, os.SEEK_END)
        self._printed.seek(max(size - LAST_WORDS, 0))
        words = self._printed.read().decode(errors="replace").strip().splitlines()
        last = f"; the last that it printed: {words[-1][:300]}" if words else ""
        return PeerError(f"the process of {self.name} ended (exit code {self._process.poll()}){last}")


def end_group(leader: subprocess.Popen[bytes], seconds: float) -> None:
    """Give the leader of a process group so long to end, then kill what is left of the group.

    Args:
        leader: told to end; it may have ended before, and left its children behind.
        seconds: that it may take.
    """
    with suppress(subprocess.TimeoutExpired):
        leader.wait(seconds)
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()


class PeerProcess:
    """A peer whose cases are timed one by one; it stands still between them.

    Args:
        name: of the adapter.
        python: that runs it.
        settings: what the adapter is told.

    Raises:
        PeerMissingError: this Python has no such package.
        PeerError: it does not start, or not in time.
    """

    def __init__(self, name: str, python: Path, settings: Mapping[str, Any]) -> None:
        self.child = Child(name, python, settings)
        self.name, self.version, self.detail = name, self.child.version, self.child.detail
        self.child.stop()

    def first_token(self, prompt: Sequence[int], cached: int) -> float:
        """Return the seconds to the first token of a prompt whose first `cached` tokens it has in its cache."""
        return self._ask({"do": "first_token", "prompt": list(prompt), "cached": cached})

    def decode(self, prompts: Sequence[Sequence[int]], cached: int, steps: int) -> float:
        """Return the seconds of a decode step of prompts that run together."""
        return self._ask({"do": "decode", "prompts": [list(p) for p in prompts], "cached": cached, "steps": steps})

    def close(self) -> None:
        """End the process and what it started."""
        self.child.close()

    def _ask(self, work: Mapping[str, Any]) -> float:
        """Let it run for one piece of work.

        Raises:
            UnsupportedCaseError: it does not do that.
            PeerError: it failed, it is gone, or it hung and was ended.
        """
        self.child.go_on()
        try:
            self.child.send(work)
            return float(self.child.receive(ANSWER_SECONDS)["seconds"])
        finally:
            self.child.stop()
