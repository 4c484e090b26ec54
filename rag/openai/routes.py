"""Every OpenAI route."""

from fastapi import APIRouter

from rag.openai import chat, models

__all__ = ["ROUTERS"]

ROUTERS: tuple[APIRouter, ...] = (models.router, chat.router)
