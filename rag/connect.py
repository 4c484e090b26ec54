"""Finds who does the work: the server that owns the data directory, or this process."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

from rag.client import Client
from rag.config import RagConfig
from rag.data_dir import Owner, find_owner, open_owned
from rag.operations import Operations

__all__ = ["connect"]

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
    owner = _wait_for_owner(config.data_dir)
    if owner is not None and owner.url:
        client = Client(owner.url, wanted=config.retriever)
        try:
            _warn_of_other_models(client, config)
            yield client
        finally:
            client.close()
        return
    with open_owned(config.data_dir):
        from rag.service import Service

        with Service(config) as service:
            yield service


def _wait_for_owner(path: Path) -> Owner | None:
    """Return the owner once it has a URL, or None once there is none; an owner without URL when patience is over."""
    deadline = monotonic() + PATIENCE_SECONDS
    owner = find_owner(path)
    if owner is not None and not owner.url:
        logger.info("waiting for process %d, which uses %s", owner.pid, path)
    while owner is not None and not owner.url and monotonic() < deadline:
        sleep(POLL_SECONDS)
        owner = find_owner(path)
    return owner


def _warn_of_other_models(client: Client, config: RagConfig) -> None:
    """Say so where the server was started with other models than those asked for here."""
    health = client.health()
    for name in ("model", "embedder"):
        wanted, running = getattr(config, name), health.get(name, getattr(config, name))
        if wanted != running:
            logger.warning("the server at %s runs with %s %r, not with %r", client.url, name, running, wanted)
