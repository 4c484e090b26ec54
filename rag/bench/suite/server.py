"""A contestant that is a server of its own on this machine, started for the run: vLLM."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rag.bench.peers.errors import PeerError, PeerMissingError
from rag.bench.peers.process import DROPPED_VARIABLES, end_group
from rag.bench.suite.contestant import Event, Footprint, Prepared
from rag.bench.suite.http import UrlContestant
from rag.bench.suite.processes import group_footprint
from rag.bench.suite.requests import RequestStream
from rag.bench.suite.watcher import Watcher

__all__ = ["ServerContestant", "open_vllm"]

HOST = "127.0.0.1"
PORT = "{port}"  # among arguments: one that was free
START_SECONDS = 1800.0  # some compile the model first
LOOK_SECONDS = 30.0
LONGEST_PAUSE = 86_400  # seconds that it may stand still in the middle of a step without taking it for a failure
STOP_SECONDS = 20.0
POLL_SECONDS = 0.2
LAST_WORDS = 20_000  # bytes of what it printed last
REASON = 300  # characters of it that are told
REAP_SECONDS = 1.0  # from a connection that is closed to the end of its process


class ServerContestant(UrlContestant):
    """Starts a server in a process group of its own, drives it over HTTP, and ends it.

    Args:
        name: of the contestant.
        python: that runs the server.
        arguments: of that Python; `PORT` among them is the one to listen on.
        variables: of its environment, besides ours.

    Raises:
        PeerError: it does not start, or not in time, or cannot be driven.
    """

    def __init__(self, name: str, python: Path, arguments: Sequence[str], variables: Mapping[str, str]) -> None:
        self._label = name
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        port = _free_port()
        command = [str(python), *(str(port) if one == PORT else one for one in arguments)]
        inherited = {key: value for key, value in os.environ.items() if key not in DROPPED_VARIABLES}
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the server that the user asked for
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._printed,
                stderr=subprocess.STDOUT,
                env={**inherited, **variables},
                process_group=0,  # stopped with its children
            )
        except OSError as error:
            self._printed.close()
            raise PeerError(f"{python} cannot be run: {error.strerror}") from error
        self._watcher = Watcher(self._process.pid)
        try:
            self._wait_for(f"http://{HOST}:{port}/health")
            with self._explained():
                super().__init__(name, f"http://{HOST}:{port}")
        except BaseException:
            self._end()
            raise
        self.pause()

    def prepare(self, stream: RequestStream) -> Prepared:
        """See `Contestant.prepare`."""
        with self._explained():
            return super().prepare(stream)

    def events(self, timeout: float) -> Sequence[Event]:
        """See `Contestant.events`."""
        with self._explained():
            found = super().events(timeout)
        if not found and self._process.poll() is not None:
            raise self._gone()
        return found

    def footprint(self) -> Footprint:
        """See `Contestant.footprint`."""
        return group_footprint(self._process.pid)

    def pause(self) -> None:
        """See `Contestant.pause`."""
        self._tell_running(signal.SIGSTOP)

    def resume(self) -> None:
        """See `Contestant.resume`."""
        self._tell_running(signal.SIGCONT)

    def close(self) -> None:
        """See `Contestant.close`."""
        super().close()
        if not self._printed.closed:
            self._end()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Where it fails because the server has ended, say why that was."""
        try:
            yield
        except PeerError as error:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(REAP_SECONDS)
            if self._process.poll() is None:
                raise
            raise self._gone() from error

    def _wait_for(self, health: str) -> None:
        import httpx

        until = time.monotonic() + START_SECONDS
        with httpx.Client(trust_env=False, timeout=LOOK_SECONDS) as client:
            while time.monotonic() < until:
                if self._process.poll() is not None:
                    raise self._gone()
                try:
                    if client.get(health).is_success:
                        return
                except httpx.HTTPError:
                    pass  # not yet
                time.sleep(POLL_SECONDS)
        raise PeerError(f"{self._label} did not start in {START_SECONDS:.0f} seconds")

    def _end(self) -> None:
        """End the server and what it started."""
        self._signal(signal.SIGCONT)
        if self._process.poll() is None:
            self._process.terminate()
        end_group(self._process, STOP_SECONDS)
        self._watcher.close()
        self._printed.close()

    def _tell_running(self, number: signal.Signals) -> None:
        """Send a signal to its group, if it has not ended."""
        if self._process.poll() is None:
            self._signal(number)

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to its group; nothing happens where nobody is left."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _gone(self) -> PeerError:
        size = self._printed.seek(0, os.SEEK_END)
        self._printed.seek(max(size - LAST_WORDS, 0))
        lines = [line.strip() for line in self._printed.read().decode(errors="replace").splitlines() if line.strip()]
        told = [line for line in lines if "Error" in line] or lines
        last = f"; it printed: {told[-1][:REASON]}" if told else ""
        return PeerError(f"the server {self._label} ended (exit code {self._process.poll()}){last}")


def open_vllm(
    name: str, python: Path, folder: Path, *, context: int, kv_gib: int, threads: int, dtype: str
) -> ServerContestant:
    """Start vLLM with prefix caching and its defaults, told to compute with so many processors.

    Args:
        name: of the contestant.
        python: that has vLLM.
        folder: of the model.
        context: tokens of the longest prompt with its answer.
        kv_gib: memory for KV.
        threads: to compute with; by itself it leaves a processor to its scheduler.
        dtype: of weights and KV.

    Raises:
        PeerMissingError: this Python has no vLLM.
        PeerError: it does not start.
    """
    _look_for_vllm(python)
    arguments = [
        "-m", "vllm.entrypoints.openai.api_server", "--host", HOST, "--port", PORT, "--model", str(folder),
        "--served-model-name", folder.name,
        "--dtype", dtype, "--max-model-len", str(context), "--enable-prefix-caching", "--enable-prompt-tokens-details",
        "--enable-per-request-metrics", "--disable-uvicorn-access-log", "--generation-config", "vllm",
    ]  # fmt: skip
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(threads)
    processors = sorted(allowed)[:threads]
    variables = {
        "VLLM_CPU_KVCACHE_SPACE": str(kv_gib),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, processors)),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_ENGINE_READY_TIMEOUT_S": f"{START_SECONDS:.0f}",
        "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": str(LONGEST_PAUSE),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_SERVER_DEV_MODE": "1",  # for emptying its cache
        "HF_HUB_OFFLINE": "1",
    }
    server = ServerContestant(name, python, arguments, variables)
    server.detail = f"dtype {dtype}, {threads} threads, prefix caching, its server; {server.detail}"
    return server


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


def _look_for_vllm(python: Path) -> None:
    """Raise `PeerMissingError` unless a Python has vLLM; importing it would take seconds."""
    look = (  # a folder of that name, where we run, has no origin
        "import importlib.util, sys; "
        "found = importlib.util.find_spec('vllm'); sys.exit(found is None or found.origin is None)"
    )
    try:
        found = subprocess.run([str(python), "-c", look], capture_output=True, check=False, timeout=LOOK_SECONDS)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"{python} cannot be run: {error}") from error
    if found.returncode:
        raise PeerMissingError(f"{python} has no module vllm")
