"""Exit codes, and which exceptions are expected failures. Knows no command."""

from typing import TypeVar

import typer

__all__ = ["FAILED", "OK", "PARTLY", "USAGE", "expected_errors", "validated"]

OK, FAILED, USAGE, PARTLY = 0, 1, 2, 3

T = TypeVar("T")


def expected_errors(error: Exception) -> int | None:
    """Return the exit code of a failure that its message explains, or None for a defect of ours."""
    from data.errors import DataError
    from engine.errors import ConfigError, EngineError
    from rag.errors import ConfigurationError, InvalidRequestError, RagError
    from retriever.errors import QueryError, RetrieverError, SettingsError

    if isinstance(error, (ConfigurationError, InvalidRequestError, ConfigError, SettingsError, QueryError)):
        return USAGE
    if isinstance(error, (RagError, RetrieverError, EngineError, DataError, OSError)):
        return FAILED
    return None


def validated(kind: type[T], /, **fields: object) -> T:
    """Make a request; a field that cannot work is a usage error that names it.

    Raises:
        typer.BadParameter: the message has field, value and what is wanted.
    """
    from pydantic import ValidationError

    try:
        return kind(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        wanted = first["msg"][0].lower() + first["msg"][1:]
        raise typer.BadParameter(f"{name} is {_short(first['input'])}: {wanted}") from error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
