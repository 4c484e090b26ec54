"""`/v1/embeddings`: what the collections' embedder makes of texts."""

import base64
from typing import Annotated, Literal

from anyio import to_thread
from fastapi import APIRouter, Request
from pydantic import Field

from rag.openai.documentation import JSON_BODY, error_responses
from rag.openai.fields import ONE_OR_SEVERAL, Ignored, ModelName, OpenAIRequest
from rag.openai.results import Result
from rag.openai.vectors import embed, require_embedder
from rag.server.access import AccessDep
from rag.server.feed import until_gone
from rag.server.problems import ProblemError
from rag.server.state import ReadyState
from retriever.embedder import Vectors

__all__ = [
    "Embedding",
    "EmbeddingList",
    "EmbeddingsRequest",
    "EmbeddingsUsage",
    "router",
]

router = APIRouter(prefix="/v1", tags=["openai"], dependencies=[JSON_BODY])

MAX_TEXTS = 2048
ItemKind = Literal["document", "query"]


class EmbeddingsRequest(OpenAIRequest):
    """Texts to embed.

    Attributes:
        input: one or several texts; not token ids, which are those of another tokenizer.
        encoding_format: numbers, or base64 of little-endian float32 numbers.
        dimensions: the embedder's own; it makes no others.
        input_type: what the texts are, where the embedder treats documents and questions differently. A document
            longer than its window is embedded window by window, and the vector is that of their mean.
    """

    model: ModelName
    input: Annotated[list[str], Field(fail_fast=True), ONE_OR_SEVERAL, Field(min_length=1, max_length=MAX_TEXTS)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1)
    input_type: ItemKind = "document"
    user: Ignored = None


class Embedding(Result):
    """The unit vector of a text."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(Result):
    """Tokens embedded, as the embedder counts them."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Result):
    """The vectors of the texts, in their order."""

    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: EmbeddingsUsage


@router.post("/embeddings", responses=error_responses())
async def embeddings(body: EmbeddingsRequest, request: Request, state: ReadyState, access: AccessDep) -> EmbeddingList:
    """Embed texts with the embedder that the collections have."""
    embedder = await to_thread.run_sync(require_embedder, body.model, state, access)
    if body.dimensions not in (None, embedder.dimension):
        raise ProblemError(
            422, "invalid-request", f"{body.model} makes vectors of {embedder.dimension} dimensions alone; leave it out"
        )
    telemetry = state.service.components.telemetry()

    def count(num_tokens: int) -> None:
        telemetry.count(access.caller, pipeline="embeddings", model=body.model, prompt_tokens=num_tokens)

    texts = {"queries" if body.input_type == "query" else "documents": body.input}
    embedded = await until_gone(request.receive, embed(embedder, state.embedding, count, **texts))
    as_base64 = body.encoding_format == "base64"
    data = [
        Embedding(index=index, embedding=_base64(vector) if as_base64 else vector.tolist())
        for index, vector in enumerate(embedded.means)
    ]
    usage = EmbeddingsUsage(prompt_tokens=embedded.num_tokens, total_tokens=embedded.num_tokens)
    return EmbeddingList(model=body.model, data=data, usage=usage)


def _base64(vector: Vectors) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
