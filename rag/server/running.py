"""The server's process: where it listens, when it is ready, how it ends."""

import asyncio
import gc
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil

import uvicorn
from fastapi import FastAPI

from rag.data_dir import OwnedDataDir
from rag.errors import AddressError
from rag.server.state import ServerState
from rag.server.watchdog import watch
from rag.service import Service

__all__ = ["Server", "listen", "stop_signals_ignored", "url_of"]

BACKLOG = 2048
LAST_RESORT_SECONDS = 10  # for what neither ends nor notices that the engine has stopped


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket; port 0 takes a free one.

    Raises:
        AddressError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise AddressError(
            f"cannot listen on {host} port {port} ({error.strerror or error}); stop what uses it, or choose another "
            "address with --port (0 takes a free one) or --host"
        ) from error
    # Connections have it from the listener; asyncio sets it only where the protocol is named. Without it, a body that
    # follows its headers waits 40 ms for the client's acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the address at which this machine reaches a listening socket."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def stop_signals_ignored() -> Iterator[None]:
    """Make SIGINT and SIGTERM harmless outside uvicorn, which raises them once more after it has shut down.

    The default action would end the process before the data directory is let go.
    """
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda *_: None) for number in signals}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Server(uvicorn.Server):
    """Loads the models while it listens already, announces itself when it is ready, ends what runs when it stops.

    Args:
        app: made by `create_app`.
        owned: the data directory, where the address is announced.
        listener: the socket to listen on.
    """

    def __init__(self, app: FastAPI, owned: OwnedDataDir, listener: socket.socket) -> None:
        state: ServerState = app.state.preread
        state.owner_token = owned.token
        patience = ceil(state.settings.shutdown_seconds) + LAST_RESORT_SECONDS
        super().__init__(
            uvicorn.Config(app, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=patience)
        )
        _let_go_of_the_deaf(listener, state.settings.send_seconds)
        self.url = url_of(listener)
        self.failure: Exception | None = None
        self._state = state
        self._owned = owned
        self._preparing: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and begin to load."""
        await super().startup(sockets)
        self._preparing = asyncio.create_task(self._prepare())
        self._watching = asyncio.create_task(watch(self._state))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening; let answers end for a while, then end them with an error."""
        self._owned.withdraw()
        self._state.stop()
        ending = asyncio.create_task(self._end_answers())
        await super().shutdown(sockets)
        await self._state.jobs.stop()
        ending.cancel()
        self._watching.cancel()

    async def _prepare(self) -> None:
        try:
            await asyncio.to_thread(_prepare, self._state.service)
        except Exception as error:  # noqa: BLE001 - `serve` raises it after the server has ended
            self.failure = error
            self.should_exit = True
            return
        if not self.should_exit:
            await self._state.jobs.resume()
            self._owned.announce(self.url)
            sys.stderr.write(_welcome(self.url, self._state.service))
            sys.stderr.flush()

    async def _end_answers(self) -> None:
        """Stop the engine after the time of grace: who still reads gets `EngineStoppedError`."""
        await asyncio.sleep(self._state.settings.shutdown_seconds)
        worker = self._state.service.components.worker.if_made
        if worker is not None:
            await asyncio.to_thread(worker.close)


def _let_go_of_the_deaf(listener: socket.socket, seconds: float) -> None:
    """Have the system close connections whose other end takes nothing for so long, where it can (Linux).

    What was already written for such a client would stay in memory otherwise, after the answer itself is forgotten.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, ceil(1e3 * seconds))


def _prepare(service: Service) -> None:
    """Load everything that a question needs; what cannot work is told now, not to the first client."""
    service.collections()
    service.load()
    _ = service.components.layout().head
    service.work_while_idle()
    gc.collect()
    gc.freeze()  # what lives as long as the server is not walked through by every later collection


def _welcome(url: str, service: Service) -> str:
    config = service.config
    names = [collection.name for collection in service.collections()]
    held = f"collections: {', '.join(names)}" if names else "no collections yet; add documents with `rag ingest PATH`"
    body = '{"question": "..."}'
    return (
        f"Preread serves {config.data_dir} at {url} ({config.model}, {config.embedder}; {held})\n"
        f"  {url}/ in a browser shows what the cache does for each answer\n"
        f'  rag ask "..."      the other commands use this server\n'
        f"  curl {url}/v1/answer --json '{body}'\n"
        f"  {url}/openapi.json\n"
        "Stop it with Ctrl-C.\n"
    )
