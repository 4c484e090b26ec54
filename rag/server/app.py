"""The HTTP API as an app, and `rag serve`, which runs it.

| part | knows |
|---|---|
| `rag.openai` | OpenAI's routes |
| `collections`, `documents`, `answers`, `jobs`, `cache`, `keys`, `health` | routes |
| `document_bodies`, `idempotent` | what documents come in; requests that may be sent twice |
| `ingestions`, `job_runner` | work that takes long |
| `feed`, `sse` | an answer that is sent while it is made, to a client that may leave |
| `problems`, `middleware`, `body_pace` | errors as problem documents, request ids, the size and pace of a body |
| `hosts` | which hosts and web pages are refused |
| `authentication`, `access`, `limits`, `quotas` | whose key a request has, what it may do, and how much |
| `deadlines` | how long an answer is waited for |
| `metrics`, `request_log`, `usage` | what an operator sees |
| `page` | the web page at `/` |
| `state` | what the routes share: service, settings, ingestions |
| `running`, `watchdog` | the process: address, signals, start and end; an engine that hangs |
"""

import sys
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from pydantic import TypeAdapter

from rag.config import RagConfig, ServerSettings
from rag.data_dir import open_owned
from rag.openai import routes as openai_routes
from rag.openai.errors import speaks_openai
from rag.prices import PriceBook
from rag.schemas import AnswerEvent, PrecomputeProgress
from rag.schemas.jobs import JobEvent
from rag.server import answers, cache, collections, documents, health, jobs, keys, metrics, usage
from rag.server.authentication import SECURITY, SECURITY_SCHEMES, Authentication
from rag.server.body_pace import BodyPace
from rag.server.deadlines import Deadlines
from rag.server.hosts import HostGuard, allowed_hosts, is_loopback
from rag.server.limits import Limits
from rag.server.middleware import BodyLimit, RequestIds
from rag.server.page import web_page
from rag.server.problems import Problem, add_handlers
from rag.server.request_log import RequestLog
from rag.server.running import Server, listen, stop_signals_ignored
from rag.server.state import ServerState
from rag.service import Service
from rag.telemetry.logs import configure_logs

__all__ = ["create_app", "serve"]

DESCRIPTION = (
    "Answers questions over your documents, and reads each passage once. Errors are problem documents (RFC 9457)."
)
NO_KEYS = (
    "there are no keys: whoever reaches {host} can read, add and delete documents; make one with `rag keys create`, or "
    "let only those reach it who may, and name the hosts that it goes by with PREREAD_SERVER__ALLOWED_HOSTS"
)


BEYOND_ROUTES: dict[str, Any] = {
    "Problem": Problem,
    "AnswerEvent": AnswerEvent,
    "JobEvent": JobEvent,
    "PrecomputeProgress": PrecomputeProgress,
}


class _Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI description, with the schemas of problems and events, which FastAPI does not know of."""
        schema = super().openapi()
        schema["components"]["securitySchemes"] = SECURITY_SCHEMES
        schema["security"] = SECURITY
        for name, kind in BEYOND_ROUTES.items():
            own = TypeAdapter(kind).json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
            parts = own.pop("$defs", {}) | {name: own}
            schema["components"]["schemas"] = parts | schema["components"]["schemas"]
        for path, operations in schema["paths"].items():
            for operation in operations.values() if speaks_openai(path) else ():
                operation["responses"].pop("422", None)  # FastAPI's own; what is wrong with a request is 400 there
        return schema


def create_app(service: Service, settings: ServerSettings | None = None) -> FastAPI:
    """Make the HTTP API of a service.

    Args:
        service: does the work; until it is loaded (`Service.load`), routes that need its models answer 503.
        settings: of the server; those of the service's configuration by default.
    """
    settings = settings or service.config.server
    app = _Api(title="Preread", version=version("preread"), description=DESCRIPTION, redirect_slashes=False)
    app.state.preread = ServerState(service, settings)
    routers = (
        answers.router,
        collections.router,
        documents.router,
        jobs.router,
        cache.router,
        keys.router,
        health.router,
        metrics.router,
        usage.router,
        web_page.router,
        *openai_routes.ROUTERS,
    )
    add_handlers(app, [route for router in routers for route in router.routes])
    app.add_middleware(BodyPace, patience_seconds=settings.body_seconds)
    app.add_middleware(BodyLimit, settings=settings)
    app.add_middleware(Deadlines, max_seconds=settings.answer_seconds)
    app.add_middleware(Limits, state=app.state.preread)
    app.add_middleware(Authentication, state=app.state.preread)
    app.add_middleware(HostGuard, hosts=allowed_hosts(service.config.host, settings))
    app.add_middleware(RequestLog, state=app.state.preread)
    app.add_middleware(RequestIds)
    for router in routers:
        app.include_router(router)
    return app


def serve(config: RagConfig) -> None:
    """Serve the HTTP API until SIGINT or SIGTERM; prints its address to stderr once it takes questions.

    Raises:
        DataDirError: another process owns the data directory, or it cannot be used.
        AddressError: the address cannot be listened on.
        RagError: a model is missing or cannot be used, or the price book.
    """
    configure_logs(config.server.log_format)
    if config.server.price_book:
        PriceBook.load(config.server.price_book)  # one that cannot be used is told now
    with open_owned(config.data_dir) as owned, listen(config.host, config.port) as listener, Service(config) as service:
        sys.stderr.write(f"loading {config.model} and {config.embedder}\n")
        if not (is_loopback(config.host) or config.server.require_keys or service.components.keys().is_on):
            sys.stderr.write(f"WARNING: {NO_KEYS.format(host=config.host)}\n")
        server = Server(create_app(service), owned, listener)
        with stop_signals_ignored():
            server.run(sockets=[listener])
    if server.failure is not None:
        raise server.failure
