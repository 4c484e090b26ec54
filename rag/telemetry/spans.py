"""Spans of answers for OpenTelemetry, made once an answer has ended, from what is known of it then.

They are made by a thread that nobody waits for. Names of attributes are those of OpenTelemetry's conventions for
generative AI where there is one, and begin with `preread.` otherwise. Where they are sent, OpenTelemetry's own
environment variables say (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME` and others).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter_ns, time_ns
from typing import TYPE_CHECKING, Any

from rag.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import TracerProvider

    from rag.telemetry.served import Served

__all__ = ["Tracing"]

OPERATIONS = {"completion": "text_completion"}  # by pipeline; the others are chats


class Tracing:
    """Turns answers into spans.

    Args:
        embedder: name of the model that embeds questions.
        provider: takes the spans; by default the one that the process has been given, or else one that exports them
            over OTLP.

    Raises:
        ConfigurationError: OpenTelemetry is not installed.
    """

    def __init__(self, embedder: str, provider: "TracerProvider | None" = None) -> None:
        self._embedder = embedder
        self._own = None if provider else _exporting()
        chosen = provider or self._own
        from opentelemetry import trace

        self._tracer = trace.get_tracer("preread", tracer_provider=chosen)

    def parent(self) -> "Context":
        """Return what an answer that begins now belongs to."""
        from opentelemetry import context

        return context.get_current()

    @contextmanager
    def belonging_to(self, headers: Mapping[str, str]) -> Iterator[None]:
        """Make answers that begin in this block belong to a client's trace, as its `traceparent` header says."""
        from opentelemetry import context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        token = context.attach(TraceContextTextMapPropagator().extract(headers))
        try:
            yield
        finally:
            context.detach(token)

    def record(self, served: "Served") -> None:
        """Make the spans of an answer."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        epoch = time_ns() - perf_counter_ns()

        def when(seconds: float) -> int:
            return epoch + round(seconds * 1e9)

        name = f"{_operation(served)} {served.model}"
        root = self._tracer.start_span(
            name, served.parent, SpanKind.INTERNAL, attributes=_attributes(served), start_time=when(served.started)
        )
        inside = set_span_in_context(root, served.parent)
        for stage, start, end in _stages(served):
            attributes = self._stage_attributes(stage, served)
            span = self._tracer.start_span(stage, inside, attributes=attributes, start_time=when(start))
            span.end(when(end))
        if served.ending == "error":
            root.set_status(Status(StatusCode.ERROR, served.error))
        root.end(when(served.ended))

    def close(self) -> None:
        """Send what waits to be sent, where the exporter is our own."""
        if self._own is not None:
            self._own.shutdown()

    def _stage_attributes(self, stage: str, served: "Served") -> dict[str, Any]:
        if stage == "embed":
            return {"gen_ai.operation.name": "embeddings", "gen_ai.request.model": self._embedder}
        if stage == "search":
            return {"gen_ai.operation.name": "retrieval", "gen_ai.data_source.id": served.collection}
        return {"gen_ai.request.model": served.model}


def _exporting() -> Any:
    """Return a provider that exports over OTLP, or None where the process has one already."""
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigurationError(
            "server.tracing needs OpenTelemetry; install it with `pip install 'preread[tracing]'`, or unset "
            "PREREAD_SERVER__TRACING"
        ) from error
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    named = Resource.create()  # with what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say
    if str(named.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        named = named.merge(Resource({SERVICE_NAME: "preread"}))
    provider = TracerProvider(resource=named)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _operation(served: "Served") -> str:
    return OPERATIONS.get(served.pipeline, "chat")


def _attributes(served: "Served") -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": _operation(served),
        "gen_ai.provider.name": "preread",
        "gen_ai.request.model": served.model,
        "gen_ai.response.model": served.model,
        "gen_ai.response.finish_reasons": (served.ending,),
        "gen_ai.usage.input_tokens": served.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": served.cache.cached_tokens,
        "gen_ai.usage.output_tokens": served.output_tokens,
        "preread.pipeline": served.pipeline,
        "preread.cache": served.outcome,
        "preread.request_id": served.caller.request_id,
    }
    if served.collection:
        attributes["gen_ai.data_source.id"] = served.collection
    if served.stages is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = served.stages.first_token - served.started
    if served.error:
        attributes["error.type"] = served.error
    if served.question is not None:
        attributes["preread.question"] = served.question
    return attributes


def _stages(served: "Served") -> Sequence[tuple[str, float, float]]:
    """Return name, start and end of each stage that there was."""
    stages = []
    if (found := served.retrieval) is not None:
        embedded = found.started + found.embed_seconds
        stages += [("embed", found.started, embedded), ("search", embedded, embedded + found.search_seconds)]
    if (engine := served.stages) is not None:
        stages += [
            ("queue", engine.arrival, engine.queued),
            ("load", engine.queued, engine.loaded),
            ("prefill", engine.loaded, engine.first_token),
            ("decode", engine.first_token, engine.finished),
        ]
    return stages
