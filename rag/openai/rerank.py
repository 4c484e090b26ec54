"""`/v1/rerank`: texts by how close they are to a query, in the form that Jina's, Cohere's and vLLM's clients know.

There is no cross-encoder here, which would read query and text together: the score is the cosine between the vectors of
the collections' embedder, and the response says so.
"""

from typing import Annotated, Literal

import numpy as np
from anyio import to_thread
from fastapi import APIRouter, Request
from pydantic import Field

from rag.openai.documentation import JSON_BODY, error_responses
from rag.openai.fields import Ignored, ModelName, OpenAIRequest, Refused
from rag.openai.results import Result, new_id, sparse
from rag.openai.vectors import embed, require_embedder
from rag.server.access import AccessDep
from rag.server.feed import until_gone
from rag.server.state import ReadyState

__all__ = [
    "Ranked",
    "RerankMeta",
    "RerankRequest",
    "RerankText",
    "RerankUsage",
    "Reranked",
    "router",
]

router = APIRouter(prefix="/v1", tags=["openai"], dependencies=[JSON_BODY])

MAX_TEXTS = 2048
SCORING: Literal["embedding-cosine"] = "embedding-cosine"


class RerankText(OpenAIRequest):
    """A text among those to put in order."""

    text: str


class RerankRequest(OpenAIRequest):
    """Texts to put in order.

    Attributes:
        query: what they should be about.
        documents: the texts.
        top_n: how many are returned; all by default.
        return_documents: return their texts too.
    """

    model: ModelName
    query: Annotated[str, Field(min_length=1)]
    documents: Annotated[list[str | RerankText], Field(fail_fast=True, min_length=1, max_length=MAX_TEXTS)]
    top_n: int | None = Field(default=None, ge=1)
    return_documents: bool | None = None
    max_tokens_per_doc: Ignored = None
    user: Ignored = None
    rank_fields: Refused = None


class Ranked(Result):
    """One of the texts, by its number among those sent, and the cosine of its closest window, from -1 to 1."""

    index: int
    relevance_score: float
    document: RerankText | None = sparse()


class RerankUsage(Result):
    """Tokens embedded, as the embedder counts them."""

    total_tokens: int


class RerankMeta(Result):
    """How the scores come about."""

    scoring: Literal["embedding-cosine"] = SCORING


class Reranked(Result):
    """The texts, closest first."""

    id: str
    object: Literal["list"] = "list"
    model: str
    results: list[Ranked]
    usage: RerankUsage
    meta: RerankMeta = RerankMeta()


@router.post("/rerank", responses=error_responses())
async def rerank(body: RerankRequest, request: Request, state: ReadyState, access: AccessDep) -> Reranked:
    """Put texts in order by how close the embedder's vectors are to the query's; no model reads both together."""
    embedder = await to_thread.run_sync(require_embedder, body.model, state, access)
    texts = [item if isinstance(item, str) else item.text for item in body.documents]
    telemetry = state.service.components.telemetry()

    def count(num_tokens: int) -> None:
        telemetry.count(access.caller, pipeline="rerank", model=body.model, prompt_tokens=num_tokens)

    work = embed(embedder, state.embedding, count, queries=[body.query], documents=texts)
    embedded = await until_gone(request.receive, work)
    query, *documents = embedded.windows
    scores = np.array([float((windows @ query[0]).max()) for windows in documents])
    order = np.argsort(-scores, kind="stable")[: body.top_n]
    with_text = body.return_documents is not False
    results = [
        Ranked(
            index=int(index),
            relevance_score=float(scores[index]),
            document=RerankText(text=texts[index]) if with_text else None,
        )
        for index in order
    ]
    usage = RerankUsage(total_tokens=embedded.num_tokens)
    return Reranked(id=new_id("rerank-"), model=body.model, results=results, usage=usage)
