"""Every OpenAI route."""

from fastapi import APIRouter

from rag.openai import chat, completions, embeddings, models, rerank

__all__ = ["ROUTERS"]

ROUTERS: tuple[APIRouter, ...] = (models.router, chat.router, completions.router, embeddings.router, rerank.router)
