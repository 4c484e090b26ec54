"""What OpenAI's routes have in common for the OpenAPI document, and the kind of body that they take."""

from http import HTTPStatus
from typing import Any

from fastapi import Depends
from pydantic import BaseModel

from rag.openai.errors import ErrorBody
from rag.server.answers import require_json
from rag.server.sse import event_content

__all__ = ["JSON_BODY", "error_responses", "event_stream"]

JSON_BODY = Depends(require_json)
STATUSES = (400, 401, 403, 404, 413, 429, 500, 503, 504)


def error_responses(*more: int) -> dict[int | str, dict[str, Any]]:
    """Document that a route answers with errors of OpenAI's form."""
    return {
        status: {"description": HTTPStatus(status).phrase, "model": ErrorBody} for status in sorted({*STATUSES, *more})
    }


def event_stream(kind: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Document that a route may answer with events of a kind."""
    described = f"The whole; with `stream: true` events, each a {kind.__name__}, and `[DONE]` at the end."
    return {200: {"description": described, "content": event_content()}}
