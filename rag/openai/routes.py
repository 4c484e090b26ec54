"""Every OpenAI route."""

from fastapi import APIRouter

from rag.openai import chat, completions, embeddings, models, rerank, responses

__all__ = ["ROUTERS"]

ROUTERS: tuple[APIRouter, ...] = tuple(
    module.router for module in (models, chat, completions, responses, embeddings, rerank)
)
