"""What an OpenAI request may say of retrieval, which OpenAI's own fields have no place for."""

from typing import Literal

from pydantic import Field

from rag.openai.fields import OpenAIRequest
from rag.schemas.base import MAX_PASSAGES
from rag.schemas.metadata import Condition

__all__ = ["RetrievalOptions"]


class RetrievalOptions(OpenAIRequest):
    """How a collection answers; each as in the native `/v1/answer`, and of no effect on the bare model.

    Attributes:
        k: passages to retrieve.
        where: a condition on the metadata of the documents that passages are looked for in.
        extractive: quote the best sentence when the model's answer cites nothing.
        reuse: which cached KV of passages may serve.
        order: of the passages in the prompt.
    """

    k: int | None = Field(default=None, ge=1, le=MAX_PASSAGES)
    where: Condition | None = None
    extractive: bool | None = None
    reuse: Literal["auto", "exact", "chunk"] | None = None
    order: Literal["score", "cache"] | None = None
