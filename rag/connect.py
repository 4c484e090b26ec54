"""Finds who does the work: the server that owns the data directory, or this process."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic, sleep

from rag.client import Client
from rag.config import RagConfig
from rag.data_dir import Owner, find_owner, open_owned, owner_token
from rag.errors import DataDirBusyError, ServerError
from rag.operations import Operations

__all__ = ["connect", "connect_to_server"]

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 15.0  # for another command to end, or a server to begin
POLL_SECONDS = 0.2


@contextmanager
def connect(config: RagConfig) -> Iterator[Operations]:
    """Yield the owner's HTTP API where there is one; otherwise own the data directory until the block ends.

    Raises:
        DataDirBusyError: a process without HTTP API owns it, and goes on for long.
        ServerError: the server that owns it does not answer.
    """
    with ExitStack() as held:
        owner = _own_or_find(config.data_dir, held)
        if owner is None:
            from rag.service import Service

            yield held.enter_context(Service(config))
            return
        client = _client_of(owner, config)
        held.callback(client.close)
        _warn_of_other_models(client, config)
        yield client


@contextmanager
def connect_to_server(config: RagConfig) -> Iterator[Client]:
    """Yield the HTTP API of the server that owns the data directory.

    Raises:
        ServerError: there is none.
    """
    owner = find_owner(config.data_dir)
    if owner is None or not owner.url:
        raise ServerError(
            f"no server runs over {config.data_dir}; start one with `rag serve`, since this asks a server"
        )
    client = _client_of(owner, config)
    try:
        yield client
    finally:
        client.close()


def _client_of(owner: Owner, config: RagConfig) -> Client:
    assert owner.url, "an owner that cannot be asked is waited for"
    key = config.api_key.get_secret_value() if config.api_key else owner_token(config.data_dir)
    return Client(owner.url, wanted=config.retriever, key=key)


def _own_or_find(path: Path, held: ExitStack) -> Owner | None:
    """Return the owner that has a URL, or own the directory until `held` is closed and return None.

    Who finds no owner may still lose to another process that finds none: only the lock decides, so both start again.

    Raises:
        DataDirBusyError: an owner without URL goes on until patience is over.
    """
    deadline = monotonic() + PATIENCE_SECONDS
    told = False
    while True:
        owner = find_owner(path)
        if owner is not None and owner.url:
            return owner
        try:
            held.enter_context(open_owned(path))
        except DataDirBusyError:
            if monotonic() >= deadline:
                raise
            if owner is not None and not told:
                logger.info("waiting for process %d, which uses %s", owner.pid, path)
                told = True
            sleep(POLL_SECONDS)
        else:
            return None


def _warn_of_other_models(client: Client, config: RagConfig) -> None:
    """Say so where the server was started with other models than those asked for here."""
    health = client.health()
    for name in ("model", "embedder"):
        wanted, running = getattr(config, name), health.get(name, getattr(config, name))
        if wanted != running:
            logger.warning("the server at %s runs with %s %r, not with %r", client.url, name, running, wanted)
