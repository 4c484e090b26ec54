"""Texts to vectors, for the routes that give away what the embedder can do."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from anyio import CapacityLimiter, to_thread

from rag.openai.targets import embedder_id, unknown_model
from rag.server.access import Access
from rag.server.problems import ProblemError
from rag.server.state import ServerState
from retriever.embedder import TextEmbedder, Vectors

__all__ = ["Embedded", "documents_of", "queries_of", "require_embedder"]

BATCH = 32  # texts; a client that goes away is noticed between two


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


async def documents_of(embedder: TextEmbedder, texts: Sequence[str], limiter: CapacityLimiter) -> Embedded:
    """Embed texts as documents."""
    return await _embed(partial(_documents, embedder), embedder, texts, limiter)


async def queries_of(embedder: TextEmbedder, texts: Sequence[str], limiter: CapacityLimiter) -> Embedded:
    """Embed texts as questions."""
    return await _embed(partial(_queries, embedder), embedder, texts, limiter)


async def _embed(
    embed: "partial[list[Vectors]]", embedder: TextEmbedder, texts: Sequence[str], limiter: CapacityLimiter
) -> Embedded:
    blank = next((number for number, text in enumerate(texts) if not text.strip()), None)
    if blank is not None:
        raise ProblemError(422, "invalid-request", f"text number {blank} is empty; leave it out")
    windows: list[Vectors] = []
    for start in range(0, len(texts), BATCH):
        windows += await to_thread.run_sync(embed, texts[start : start + BATCH], limiter=limiter)
    return Embedded(windows, await to_thread.run_sync(embedder.num_tokens, texts, limiter=limiter))


def _documents(embedder: TextEmbedder, texts: Sequence[str]) -> list[Vectors]:
    return embedder.embed_documents(texts)


def _queries(embedder: TextEmbedder, texts: Sequence[str]) -> list[Vectors]:
    return [embedder.embed_query(text)[None] for text in texts]
