"""How long `rag serve` takes from its start until it is ready."""

import os
import socket
import subprocess
import sys
import tempfile
from statistics import median
from time import perf_counter, sleep

from rag.bench.engine_report import ServerStart
from rag.config import RagConfig
from rag.errors import ServerError

__all__ = ["free_port", "measure_start", "wait_until_ready"]

POLL_SECONDS = 0.02
PATIENCE_SECONDS = 180.0
STOP_SECONDS = 15.0


def measure_start(config: RagConfig, *, repeats: int) -> ServerStart:
    """Start the server on an empty data directory and wait until it answers that it is ready; then stop it.

    Raises:
        ServerError: it ends, or is not ready in time.
    """
    seconds = [_start_once(config) for _ in range(repeats)]
    return ServerStart(seconds=seconds, median=median(seconds))


def _start_once(config: RagConfig) -> float:
    with tempfile.TemporaryDirectory(prefix="preread-bench-") as folder, tempfile.TemporaryFile("w+") as said:
        port = free_port()
        options = {
            "--data-dir": folder,
            "--models-dir": str(config.models_dir),
            "--model": config.model,
            "--embedder": config.embedder,
            "--host": "127.0.0.1",
            "--port": str(port),
        }
        arguments = [word for option in options.items() for word in option]
        command = [sys.executable, "-c", "from rag.cli.main import main; main()", "serve", *arguments]
        began = perf_counter()
        server = subprocess.Popen(command, stdout=said, stderr=said, env=dict(os.environ))  # noqa: S603 - our own command
        try:
            wait_until_ready(server, f"http://127.0.0.1:{port}/readyz", began)
            return perf_counter() - began
        except ServerError as error:
            said.seek(0)
            raise ServerError(f"{error}: {' '.join(said.read().split())[-300:]}") from None
        finally:
            server.terminate()
            try:
                server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_ready(server: "subprocess.Popen[bytes]", url: str, began: float) -> None:
    """Return when the server says that it is ready; it answers before that, and listens not at all at first."""
    import httpx

    with httpx.Client(trust_env=False) as client:
        while perf_counter() - began < PATIENCE_SECONDS:
            if server.poll() is not None:
                raise ServerError(f"`rag serve` ended with code {server.returncode}")
            try:
                if client.get(url).is_success:
                    return
            except httpx.TransportError:
                pass
            sleep(POLL_SECONDS)
    raise ServerError(f"`rag serve` was not ready after {PATIENCE_SECONDS:.0f} s")
