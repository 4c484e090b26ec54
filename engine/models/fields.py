"""Typed reading of config.json: every wrong or missing value is named together with its file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import ModelFileError

__all__ = ["ConfigFields"]


class ConfigFields:
    """The fields of one config.json.

    A field that is absent or null takes the default; without a default it must be there.
    """

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        self._values = values
        self._path = path

    @classmethod
    def read(cls, path: Path) -> "ConfigFields":
        """Read a file; raise `ModelFileError` when it is missing or not a JSON object."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ModelFileError(f"{path} cannot be read ({error.strerror}); is this a model folder?") from error
        except ValueError as error:
            raise ModelFileError(f"{path} is not valid JSON ({error}); pull the model again") from error
        if not isinstance(values, dict):
            raise ModelFileError(f"{path} holds a {type(values).__name__}, not a JSON object; pull the model again")
        return cls(values, path)

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def has(self, name: str) -> bool:
        """Return whether the field is written, even as null."""
        return name in self._values

    def integer(self, name: str, default: int | None = None) -> int:
        """Return a positive integer."""
        value = self._get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._wrong(name, value, "a positive integer")
        return value

    def count(self, name: str, default: int) -> int:
        """Return an integer that may be 0."""
        value = self._get(name, default)
        return 0 if value == 0 and not isinstance(value, bool) else self.integer(name, default)

    def number(self, name: str, default: float | None = None) -> float:
        """Return a positive number."""
        value = self._get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise self._wrong(name, value, "a positive number")
        return float(value)

    def flag(self, name: str) -> bool:
        """Return true or false, false when absent."""
        value = self._get(name, default=False)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """Return a string."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        return value

    def strings(self, name: str) -> list[str]:
        """Return a list of strings, empty when absent."""
        value = self._get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(name, value, "a list of strings")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """Return an object, empty when absent."""
        value = self._get(name, {})
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object")
        return dict(value)

    def _get(self, name: str, default: Any) -> Any:
        value = self._values.get(name)
        value = default if value is None else value
        if value is None:
            raise ModelFileError(f"{self._path} lacks {name!r}, which this architecture needs; pull the model again")
        return value

    def _wrong(self, name: str, value: Any, expected: str) -> ModelFileError:
        return ModelFileError(f"{self._path} has {name} = {value!r}, which is not {expected}; correct it there")
