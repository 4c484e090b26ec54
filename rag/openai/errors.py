"""Errors as OpenAI's clients expect them: which routes speak so, and how a problem is told there.

Statuses are those by which the clients choose an exception: what is wrong with a request is 400 whatever it is, since
they take a 409 for something to be tried again.
"""

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from rag.server.problems import Problem

__all__ = ["ErrorBody", "ErrorDetail", "error_body", "error_status", "speaks_openai"]

ROUTES = ("chat/completions", "completions", "embeddings", "models", "rerank", "responses")
CODES = {
    "question-too-long": "context_length_exceeded",
    "unknown-collection": "model_not_found",
    "unknown-model": "model_not_found",
    "key-required": "invalid_api_key",
}

ErrorType = Literal[
    "invalid_request_error", "authentication_error", "permission_error", "rate_limit_error", "server_error"
]


class ErrorDetail(BaseModel):
    """What went wrong; `param` names the field of the request, where there is one."""

    model_config = ConfigDict(frozen=True)

    message: str
    type: ErrorType
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of a response that tells an error."""

    model_config = ConfigDict(frozen=True)

    error: ErrorDetail


def speaks_openai(path: str) -> bool:
    """Return whether a path is one of OpenAI's routes."""
    version, _, route = path.removeprefix("/").partition("/")
    return version == "v1" and any(route == known or route.startswith(f"{known}/") for known in ROUTES)


def error_status(status: int) -> int:
    """Return the status that OpenAI's API has for a problem's."""
    return 400 if status in (409, 415, 422) else status


def error_body(problem: "Problem") -> ErrorBody:
    """Tell a problem as an OpenAI error object."""
    status, slug = error_status(problem.status), problem.type.rpartition(":")[2]
    param = _param(problem.errors[0].pointer) if problem.errors else None
    code = CODES.get(slug, slug.replace("-", "_"))
    return ErrorBody(error=ErrorDetail(message=problem.detail, type=_type(status), param=param, code=code))


def _type(status: int) -> ErrorType:
    known: dict[int, ErrorType] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return known.get(status, "server_error" if status >= 500 else "invalid_request_error")


def _param(pointer: str) -> str | None:
    """Turn a JSON pointer such as `#/messages/0/role` into OpenAI's `messages[0].role`."""
    parts = pointer.removeprefix("#").strip("/").split("/")
    named = "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in parts)
    return named.lstrip(".") or None
