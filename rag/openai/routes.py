"""Every OpenAI route."""

from fastapi import APIRouter

from rag.openai import chat, completions, models

__all__ = ["ROUTERS"]

ROUTERS: tuple[APIRouter, ...] = (models.router, chat.router, completions.router)
