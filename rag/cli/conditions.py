"""Metadata and conditions as people type them."""

import json
import re
from typing import Annotated, Any

import typer

__all__ = ["MetadataOption", "WhereOption", "parse_metadata", "parse_where"]

MetadataOption = Annotated[
    list[str] | None,
    typer.Option("--metadata", metavar="NAME=VALUE", help="What is known of all these documents. Repeatable."),
]
WhereOption = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="CONDITION",
        help="Only documents whose metadata fits: year>=2020, tag=sea, or JSON. Repeatable: all must fit.",
    ),
]

TEST = re.compile(r"\s*([^\s=!<>]+)\s*(!=|>=|<=|=|>|<)(.*)", re.DOTALL)
OPERATORS = {"=": "eq", "!=": "ne", ">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}


def parse_metadata(given: list[str] | None) -> dict[str, Any] | None:
    """Return metadata of `name=value` pairs, a name that comes again as a list; None without any.

    Raises:
        typer.BadParameter: one of them is no pair.
    """
    found: dict[str, Any] = {}
    for text in given or []:
        name, sign, value = text.partition("=")
        if not sign:
            raise typer.BadParameter(f"--metadata {text!r} has no value; write NAME=VALUE")
        before = found.get(name.strip())
        scalar = _scalar(value)
        if before is None:
            found[name.strip()] = scalar
        else:
            found[name.strip()] = [*before, scalar] if isinstance(before, list) else [before, scalar]
    return found or None


def parse_where(given: list[str] | None) -> dict[str, Any] | None:
    """Return a condition that all of those given make together; None without any.

    Raises:
        typer.BadParameter: one of them is no condition.
    """
    parts = [_condition(text) for text in given or []]
    if len(parts) > 1:
        return {"and": parts}
    return parts[0] if parts else None


def _condition(text: str) -> dict[str, Any]:
    if text.lstrip().startswith("{"):
        try:
            found: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise typer.BadParameter(f"--where {text!r} is not JSON: {error}") from error
        return found
    match = TEST.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"--where {text!r} is no condition; write for example year>=2020 or tag=sea")
    name, sign, value = match.groups()
    return {name: {OPERATORS[sign]: _scalar(value)}}


def _scalar(text: str) -> str | int | float | bool:
    """Read a number, true or false as what it is, and all else as text; quotes keep a text that looks like one."""
    try:
        found = json.loads(text)
    except ValueError:
        return text.strip()
    return found if isinstance(found, (str, int, float, bool)) else text.strip()
