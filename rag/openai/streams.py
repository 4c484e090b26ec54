"""Server-sent events as OpenAI's clients read them."""

from fastapi.sse import format_sse_event
from pydantic import BaseModel

from rag.openai.errors import error_body
from rag.server.problems import Problem

__all__ = ["DataFrames"]

DONE = format_sse_event(data_str="[DONE]")


class DataFrames:
    """Events without names; `[DONE]` follows the last one."""

    def event(self, event: BaseModel) -> bytes:
        """Write an event."""
        return format_sse_event(data_str=event.model_dump_json())

    def failure(self, problem: Problem) -> bytes:
        """Write the error that ends a stream."""
        return format_sse_event(data_str=error_body(problem).model_dump_json()) + DONE

    def end(self) -> bytes:
        """Write what follows the last event."""
        return DONE
