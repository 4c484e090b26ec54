"""Log lines with fields: as JSON that a machine reads, one object a line, or after the message for people.

What is told of an answer has no text of question or answer, unless the settings ask for the question.
"""

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rag.telemetry.served import Served

__all__ = ["FIELDS", "JsonFormatter", "TextFormatter", "configure_logs", "fields_of", "request_id"]

FIELDS = "fields"  # `logger.info("...", extra={FIELDS: {...}})`

request_id: ContextVar[str] = ContextVar("request_id", default="")  # of the HTTP request that is worked on


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return time, level, logger, message, the request's id, then the record's own fields."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": time.removesuffix("+00:00") + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if current := request_id.get():
            line["request_id"] = current
        line |= getattr(record, FIELDS, {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """Writes a record as one line for people, its fields after the message."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return level, message, and the record's own fields that are not empty."""
        fields = getattr(record, FIELDS, {})
        told = [f"{name}={_plain(value)}" for name, value in fields.items() if value != ""]
        return " ".join([super().formatMessage(record), *told])


def configure_logs(log_format: Literal["text", "json"]) -> None:
    """Make every handler of the root logger write lines with fields; as JSON, from level info on."""
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.StreamHandler())
    for handler in root.handlers:
        handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    if log_format == "json":
        root.setLevel(min(root.level or logging.INFO, logging.INFO))
    logging.getLogger("uvicorn.access").disabled = True  # our own line of a request says more


def fields_of(served: "Served") -> dict[str, Any]:
    """Return what is worth a line about an answer; milliseconds, tokens."""
    fields: dict[str, Any] = {
        "request_id": served.caller.request_id,
        "key_id": served.caller.principal,
        "pipeline": served.pipeline,
        "model": served.model,
        "collection": served.collection,
        "ending": served.ending,
        "cache": served.outcome,
        "prompt_tokens": served.prompt_tokens,
        "cached_tokens": served.cache.cached_tokens,
        "output_tokens": served.output_tokens,
        "total_ms": round(1e3 * (served.ended - served.started), 2),
    }
    if served.error:
        fields["error"] = served.error
    if (found := served.retrieval) is not None:
        fields |= {"embed_ms": round(1e3 * found.embed_seconds, 2), "search_ms": round(1e3 * found.search_seconds, 2)}
    if served.stages is not None:
        fields |= {f"{name}_ms": round(1e3 * seconds, 2) for name, seconds in served.stages.durations.items()}
        fields["ttft_ms"] = round(1e3 * (served.stages.first_token - served.started), 2)
    if served.question is not None:
        fields["question"] = served.question
    return fields


def _plain(value: Any) -> str:
    """Write a value so that it does not end the line or look like the next field."""
    text = str(value)
    return text if text.isprintable() and " " not in text else json.dumps(text)
