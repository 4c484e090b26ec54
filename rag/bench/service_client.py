"""The service benchmark's side of the wire: a server process, and clients that ask it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import IO, TYPE_CHECKING, Any

from rag.bench.engine_serve import free_port, wait_until_ready
from rag.bench.service_report import Inspection
from rag.config import RagConfig
from rag.errors import ServerError

if TYPE_CHECKING:
    import httpx

__all__ = ["Asked", "ServerProcess", "ask", "serving"]

STOP_SECONDS = 60.0
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class ServerProcess:
    """A server that runs.

    Args:
        process: its process.
        url: its address.
        said: what it writes to stderr.
        result: what it writes to stdout.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", url: str, said: IO[str], result: IO[str]) -> None:
        self.url = url
        self._process = process
        self._said = said
        self._result = result

    @property
    def memory_mib(self) -> float:
        """Its resident memory; 0 where the system does not tell."""
        try:
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text("utf-8").split()[1])
        except OSError:
            return 0.0
        return pages * PAGE_BYTES / 2**20

    def stop(self) -> Inspection:
        """End it as an operator would, and return what it found of itself.

        Raises:
            ServerError: it did not end in time, or not well.
        """
        self._process.terminate()
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise ServerError(f"the server did not end within {STOP_SECONDS:.0f} s") from None
        if code:
            self._said.seek(0)
            raise ServerError(f"the server ended with code {code}: {' '.join(self._said.read().split())[-300:]}")
        self._result.seek(0)
        return Inspection.model_validate_json(self._result.read())

    def kill(self) -> None:
        """End it, if it has not ended."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@contextmanager
def serving(config: RagConfig, *, module: str = "rag.bench.service_child") -> Iterator[ServerProcess]:
    """Serve a data directory from another process until the block ends.

    Args:
        config: of the server.
        module: what the process runs (tests have an embedder of their own).
    """
    port = free_port()
    settings = config.model_dump(mode="json") | {"host": "127.0.0.1", "port": port}
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as result:
        command = [sys.executable, "-m", module, json.dumps(settings)]
        process = subprocess.Popen(command, stdout=result, stderr=said)  # noqa: S603 - our own command
        server = ServerProcess(process, f"http://127.0.0.1:{port}", said, result)
        try:
            wait_until_ready(process, f"{server.url}/readyz", perf_counter())
            yield server
        finally:
            server.kill()


@dataclass(frozen=True, slots=True)
class Asked:
    """A streamed answer as its reader saw it; times in seconds from the request.

    Attributes:
        status: of the response.
        first_token: when the first piece of text came; None where none did.
        total: when the last event came.
        end: name of the last event.
    """

    status: int
    first_token: float | None
    total: float
    end: str


async def ask(http: "httpx.AsyncClient", body: dict[str, Any], *, leave_after: int | None = None) -> Asked:
    """Ask for a streamed answer and read it; go after so many events, if so wished."""
    began, first, end, events = perf_counter(), None, "", 0
    async with http.stream("POST", "/v1/answer", json=body | {"stream": True}) as response:
        async for line in response.aiter_lines():
            if not line.startswith("event: "):
                continue
            end = line.removeprefix("event: ")
            events += 1
            if end == "delta" and first is None:
                first = perf_counter() - began
            if events == leave_after:
                end = "left"
                break
        return Asked(response.status_code, first, perf_counter() - began, end)
