"""Texts to vectors, for the routes that give away what the embedder can do."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from threading import Event
from typing import NamedTuple

import numpy as np
from anyio import CapacityLimiter, to_thread

from rag.openai.targets import embedder_id, unknown_model
from rag.server.access import Access
from rag.server.problems import ProblemError
from rag.server.state import ServerState
from retriever.embedder import TextEmbedder, Vectors

__all__ = ["MAX_CHARACTERS", "MAX_TEXT_CHARACTERS", "Embedded", "embed", "require_embedder"]

MAX_TEXT_CHARACTERS = 100_000
MAX_CHARACTERS = 1_000_000  # of all texts of a request
BATCH_TEXTS, BATCH_CHARACTERS = 32, 32_000  # some 32 windows; a client that goes away is noticed between two batches


class Embedded(NamedTuple):
    """Vectors of texts, in their order, and the texts' tokens.

    Attributes:
        windows: float32 unit vectors [windows, dimension] of each text.
        num_tokens: of all texts.
    """

    windows: list[Vectors]
    num_tokens: int

    @property
    def means(self) -> list[Vectors]:
        """One float32 unit vector [dimension] for each text: the direction of its windows' mean."""
        sums = [windows.sum(axis=0, dtype=np.float32) for windows in self.windows]
        return [total / max(float(np.linalg.norm(total)), 1e-12) for total in sums]


def require_embedder(model: str, state: ServerState, access: Access) -> TextEmbedder:
    """Return the embedder where this model id is its own and the request may use it.

    Raises:
        ProblemError: 401 or 403 where it may not; 404 for another model.
    """
    access.require("read")
    if model != embedder_id(state.service.config):
        raise unknown_model(model, state.service, access)
    return state.service.components.embedder()


async def embed(
    embedder: TextEmbedder,
    limiter: CapacityLimiter,
    count: Callable[[int], None],
    *,
    queries: Sequence[str] = (),
    documents: Sequence[str] = (),
) -> Embedded:
    """Embed questions and documents, in batches; a task that is cancelled lets the batch end that runs.

    Args:
        embedder: makes the vectors.
        limiter: held while a batch is embedded, whoever waits for it.
        count: given the number of tokens that were embedded, once, even where nobody waits any more.
        queries: their vectors come first.
        documents: long ones have several vectors.

    Raises:
        ProblemError: a text is empty, or they are too long.
    """
    _check(queries)
    _check(documents)
    gone = Event()
    work = asyncio.ensure_future(_embed(embedder, limiter, count, gone, [(False, queries), (True, documents)]))
    try:
        return await asyncio.shield(work)  # a thread cannot be ended, so its place must not be given away
    except asyncio.CancelledError:
        gone.set()
        raise


async def _embed(
    embedder: TextEmbedder,
    limiter: CapacityLimiter,
    count: Callable[[int], None],
    gone: Event,
    given: Sequence[tuple[bool, Sequence[str]]],
) -> Embedded:
    windows: list[Vectors] = []
    num_tokens = 0

    def run(texts: Sequence[str], *, are_documents: bool) -> None:
        nonlocal num_tokens
        if gone.is_set():
            return
        num_tokens += embedder.num_tokens(texts)
        if are_documents:
            windows.extend(embedder.embed_documents(texts))
        else:
            windows.extend(embedder.embed_query(text)[None] for text in texts)

    try:
        for are_documents, texts in given:
            for batch in _batches(texts):
                await to_thread.run_sync(partial(run, batch, are_documents=are_documents), limiter=limiter)
    finally:
        count(num_tokens)
    return Embedded(windows, num_tokens)


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Cut texts into batches that take about as long; a text that is longer than one is one."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        if batch and (len(batch) == BATCH_TEXTS or characters + len(text) > BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch


def _check(texts: Sequence[str]) -> None:
    for number, text in enumerate(texts):
        if not text.strip():
            raise ProblemError(422, "invalid-request", f"text number {number} is empty; leave it out")
        if len(text) > MAX_TEXT_CHARACTERS:
            raise ProblemError(
                422,
                "invalid-request",
                f"text number {number} has {len(text)} characters, above {MAX_TEXT_CHARACTERS}; send it in parts",
            )
    total = sum(map(len, texts))
    if total > MAX_CHARACTERS:
        raise ProblemError(
            422,
            "invalid-request",
            f"the texts have {total} characters, above {MAX_CHARACTERS}; send them in several requests",
        )
