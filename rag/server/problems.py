"""Problem documents (RFC 9457): which error gets which status, and how it is told; to OpenAI's clients in their way.

Every detail says what to do. What no rule names is a defect of ours: it is logged with the request's id, and the client
gets that id instead of the reason.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from errno import ENOSPC
from http import HTTPStatus
from math import ceil
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import BaseRoute, Match

from engine import errors as engine_errors
from rag import errors as rag_errors
from rag.openai.errors import error_body, error_status, speaks_openai
from rag.schemas import SkippedDocument
from retriever import errors as retriever_errors

__all__ = [
    "CLIENT_GONE",
    "FieldError",
    "Problem",
    "ProblemError",
    "Rule",
    "add_handlers",
    "describe",
    "problem_response",
    "problem_responses",
    "refused",
]

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:problem-type:preread:"
CLIENT_GONE = 499  # nobody reads it; proxies' logs know the number
MAX_NAMED = 3
MAX_ERRORS = 20


class FieldError(BaseModel):
    """What is wrong with one field; `pointer` is a JSON pointer into the body, such as `#/documents/0/uri`."""

    model_config = ConfigDict(frozen=True)

    pointer: str
    detail: str


class Problem(BaseModel):
    """An error, as RFC 9457 lays it down; `errors` (20 at most), `skipped`, `request_id` are there where they help."""

    model_config = ConfigDict(frozen=True)

    type: str
    title: str
    status: int
    detail: str
    request_id: str | None = None
    errors: list[FieldError] | None = None
    skipped: list[SkippedDocument] | None = None


class ProblemError(HTTPException):
    """Ends a request with a problem. FastAPI lets an HTTP exception pass where it would hide another one.

    Args:
        status: of the response.
        slug: last part of the problem's type.
        detail: what is wrong and what to do.
        headers: sent with the response.
        skipped: documents that were not taken.
    """

    def __init__(
        self,
        status: int,
        slug: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        skipped: Sequence[SkippedDocument] | None = None,
    ) -> None:
        super().__init__(status, detail, dict(headers or {}))
        self.rule = Rule(status, slug)
        self.skipped = skipped


@dataclass(frozen=True, slots=True)
class Rule:
    """How a kind of error is told.

    Attributes:
        status: of the response.
        slug: end of the problem's type.
        retry_after: seconds to wait before another try.
        instead: what is told in the place of the error's own words, which are logged; None tells those.
    """

    status: int
    slug: str
    retry_after: int | None = None
    instead: str | None = None

    def problem(self, detail: str, **more: Any) -> Problem:
        """Make the problem document."""
        title = self.slug.replace("-", " ").capitalize()
        return Problem(type=TYPE_PREFIX + self.slug, title=title, status=self.status, detail=detail, **more)


DEFECT = (
    "the server failed on this request; ask again, and report request {request} with the server's log if it fails again"
)
DISK_FULL = (
    "the server's disk is full, and nothing was changed; send it again once its operator has made room (the server's "
    "log says of request {request} where)"
)
DAMAGED = (
    "the server's library is damaged; its operator can restore it from a backup (the server's log says of request "
    "{request} what is wrong)"
)
INTERNAL = Rule(500, "internal-error", instead=DEFECT)
RULES: dict[type[Exception], Rule] = {
    rag_errors.InvalidKeyError: Rule(422, "invalid-request"),
    rag_errors.UnknownKeyError: Rule(404, "unknown-key"),
    rag_errors.InvalidRequestError: Rule(422, "invalid-request"),
    rag_errors.NoKVStoreError: Rule(409, "no-kv-store"),
    rag_errors.NoPassagesError: Rule(409, "no-passages"),
    rag_errors.PrecomputeRunningError: Rule(409, "precompute-running", retry_after=10),
    rag_errors.PurgeError: Rule(500, "not-purged"),
    rag_errors.QuestionTooLongError: Rule(422, "question-too-long"),
    rag_errors.UnknownJobError: Rule(404, "unknown-job"),
    rag_errors.KeyInUseError: Rule(409, "idempotency-key-in-use", retry_after=1),
    rag_errors.KeyReusedError: Rule(422, "idempotency-key-reused"),
    rag_errors.TemplateError: Rule(422, "invalid-request"),
    rag_errors.NotReadyError: Rule(503, "not-ready", retry_after=2),
    engine_errors.ConfigError: Rule(422, "invalid-request"),
    engine_errors.PromptTooLongError: Rule(422, "question-too-long"),
    engine_errors.ReuseNotCertifiedError: Rule(422, "reuse-not-certified"),
    engine_errors.GrammarError: Rule(422, "unusable-grammar"),
    engine_errors.QueueFullError: Rule(503, "queue-full", retry_after=5),
    engine_errors.ShareFullError: Rule(429, "queue-full", retry_after=5),
    engine_errors.DeadlineExceededError: Rule(504, "deadline-exceeded"),
    engine_errors.StepFailedError: Rule(500, "step-failed", instead=DEFECT),
    engine_errors.EngineStoppedError: Rule(503, "stopping", retry_after=10),
    retriever_errors.DiskFullError: Rule(507, "disk-full", instead=DISK_FULL),
    retriever_errors.DamagedStoreError: Rule(500, "library-damaged", instead=DAMAGED),
    retriever_errors.SourceError: Rule(422, "unusable-documents"),
    retriever_errors.UnknownCollectionError: Rule(404, "unknown-collection"),
    retriever_errors.UnknownDocumentError: Rule(404, "unknown-document"),
    retriever_errors.CollectionError: Rule(409, "collection-conflict"),
    retriever_errors.EmbedderMismatchError: Rule(409, "embedder-mismatch"),
    retriever_errors.QueryError: Rule(422, "invalid-request"),
    retriever_errors.SettingsError: Rule(422, "invalid-request"),
}


def describe(error: Exception, request_id: str) -> Problem:
    """Turn an error into a problem document; what is a defect of ours is logged and not told.

    Nor are the names of other collections: whoever reads it may not be allowed to know of them.
    """
    if isinstance(error, retriever_errors.UnknownCollectionError) and error.known:
        error = retriever_errors.UnknownCollectionError(error.name, is_gone=True)
    return _described(error, request_id)


def _described(error: Exception, request_id: str) -> Problem:
    if isinstance(error, ProblemError):
        return error.rule.problem(error.detail, skipped=error.skipped)
    rule = _rule_of(error) or INTERNAL
    if rule.instead is None:
        return rule.problem(str(error))
    logger.error("request %s failed", request_id, exc_info=error)
    return rule.problem(rule.instead.format(request=request_id), request_id=request_id)


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None, *, path: str) -> JSONResponse:
    """Make the response of a problem: a problem document, or an OpenAI error where the request's path is OpenAI's."""
    if speaks_openai(path):
        return JSONResponse(error_body(problem).model_dump(mode="json"), error_status(problem.status), headers)
    content = problem.model_dump(mode="json", exclude_none=True)
    return JSONResponse(content, problem.status, headers, media_type=MEDIA_TYPE)


def refused(error: ValidationError) -> RequestValidationError:
    """Turn what our own code found wrong with a request into what FastAPI raises where it finds it."""
    found = error.errors(include_url=False, include_input=False)
    return RequestValidationError([{**item, "loc": ("body", *item["loc"])} for item in found])


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Document for OpenAPI that a route answers with problems of these statuses, besides those of any route."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        for status in sorted({*statuses, 401, 403, 413, 422, 500, 503, 507})
    }


def add_handlers(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Make an app answer every error with a problem document; a wrong method is told those of the `routes`."""
    app.state.routes = [*app.router.routes, *routes]
    for kind in (ProblemError, rag_errors.RagError, engine_errors.EngineError, retriever_errors.RetrieverError):
        app.add_exception_handler(kind, _expected)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _gone)


def _rule_of(error: Exception) -> Rule | None:
    if isinstance(error, OSError) and error.errno == ENOSPC:
        return RULES[retriever_errors.DiskFullError]
    return next((RULES[kind] for kind in type(error).__mro__ if kind in RULES), None)


async def _expected(request: Request, error: Exception) -> Response:
    if isinstance(error, retriever_errors.UnknownCollectionError) and error.known:  # some of which he may not see
        error = retriever_errors.UnknownCollectionError(error.name, request.state.access.visible(error.known))
    problem = _described(error, request.state.request_id)
    headers = dict(error.headers or {}) if isinstance(error, ProblemError) else {}
    rule = _rule_of(error)
    if rule is not None and rule.retry_after is not None:
        estimate = error.retry_after if isinstance(error, engine_errors.QueueFullError) else None
        headers["Retry-After"] = str(rule.retry_after if estimate is None else ceil(estimate))
    return problem_response(problem, headers, path=request.url.path)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError), f"registered for validation errors, got {error!r}"
    found = error.errors()
    if any(item["type"] == "json_invalid" for item in found):
        reason = found[0].get("ctx", {}).get("error", found[0]["msg"])
        position = next((part for part in found[0]["loc"] if isinstance(part, int)), None)
        place = "" if position is None else f" at character {position}"
        problem = Rule(400, "invalid-json").problem(f"the body is not JSON: {reason}{place}; correct it")
        return problem_response(problem, path=request.url.path)
    errors = [FieldError(pointer=_pointer(item["loc"]), detail=_message(item)) for item in found[:MAX_ERRORS]]
    named = "; ".join(f"{item.pointer.removeprefix('#/') or 'body'}: {item.detail}" for item in errors[:MAX_NAMED])
    more = f"; and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    more += f", of which errors lists {MAX_ERRORS - MAX_NAMED}" if len(found) > MAX_ERRORS else ""
    detail = f"the request cannot be used: {named}{more}. Correct it; the fields are described at /openapi.json"
    return problem_response(Rule(422, "invalid-request").problem(detail, errors=errors), path=request.url.path)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), f"registered for HTTP errors, got {error!r}"
    called = f"{request.method} {request.url.path}"
    headers = dict(error.headers or {})
    if error.status_code == 404:
        problem = Rule(404, "unknown-route").problem(f"there is no {called}; see /openapi.json for what there is")
    elif error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request))
        problem = Rule(405, "wrong-method").problem(f"there is no {called}; use {headers['Allow']} with this path")
    elif error.status_code == 400:
        detail = f"the body cannot be read ({error.detail}); send what its Content-Type says, in UTF-8"
        problem = Rule(400, "unreadable-body").problem(detail)
    else:
        slug = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
        problem = Rule(error.status_code, slug).problem(f"{error.detail}; correct the request")
    return problem_response(problem, headers, path=request.url.path)


async def _gone(request: Request, error: Exception) -> Response:  # noqa: ARG001 - a handler's signature
    return Response(status_code=CLIENT_GONE)


def _methods(request: Request) -> list[str]:
    """Return every method of the request's path; the router itself knows only those of the first route."""
    routes: list[BaseRoute] = request.app.state.routes
    matching = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for route in matching for method in getattr(route, "methods", None) or ()})


def _pointer(location: Sequence[str | int]) -> str:
    parts = [str(part).replace("~", "~0").replace("/", "~1") for part in location if part != "body"]
    return "#/" + "/".join(parts) if parts else "#"


def _message(item: Mapping[str, Any]) -> str:
    text: str = item["msg"]
    if item["type"] == "extra_forbidden":
        return "there is no such field; leave it out"
    return text[:1].lower() + text[1:]
