"""What users say of documents, and conditions on it; `retriever.metadata` says what a condition may be."""

from typing import Annotated, Any

from pydantic import AfterValidator, WithJsonSchema

from retriever.errors import FilterError, MetadataError
from retriever.metadata import check_metadata, parse_filter

__all__ = ["Condition", "DocumentMetadata"]

NAME = "^[A-Za-z_][A-Za-z0-9_.-]{0,63}$"
SCALAR: list[dict[str, Any]] = [{"type": "string"}, {"type": "number"}, {"type": "boolean"}]
LIST = {"type": "array", "items": {"anyOf": SCALAR}}


def _checked_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    try:
        check_metadata(metadata)
    except MetadataError as error:
        raise ValueError(str(error)) from error
    return metadata


def _checked_condition(condition: dict[str, Any]) -> dict[str, Any]:
    try:
        parse_filter(condition)
    except FilterError as error:
        raise ValueError(str(error)) from error
    return condition


def _condition_schema() -> dict[str, Any]:
    single: dict[str, Any] = {"anyOf": SCALAR}
    properties = dict.fromkeys(("eq", "ne", "gt", "gte", "lt", "lte"), single)
    properties |= {key: {**LIST, "minItems": 1} for key in ("in", "nin")}
    operators = {
        "type": "object",
        "properties": {**properties, "exists": {"type": "boolean"}},
        "additionalProperties": False,
        "minProperties": 1,
    }
    parts = {"type": "array", "items": {"type": "object"}, "minItems": 1}
    return {
        "type": "object",
        "properties": {"and": parts, "or": parts, "not": {"type": "object"}},
        "propertyNames": {"pattern": NAME},
        "additionalProperties": {"anyOf": [*SCALAR, operators]},
        "description": "A condition on documents' metadata; every name in it must fit. `and` and `or` take lists of "
        "conditions, `not` takes one; a list of values fits where one of its items does.",
        "examples": [{"year": {"gte": 2020}, "tag": {"in": ["sea", "ice"]}}],
    }


DocumentMetadata = Annotated[
    dict[str, Any],
    AfterValidator(_checked_metadata),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": NAME},
            "additionalProperties": {"anyOf": [*SCALAR, LIST]},
            "description": "Names with a text, a number, true, false, or a list of them.",
            "examples": [{"year": 2024, "tag": ["sea", "ice"]}],
        }
    ),
]
Condition = Annotated[dict[str, Any], AfterValidator(_checked_condition), WithJsonSchema(_condition_schema())]
