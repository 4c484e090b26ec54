"""What an answer has to be: JSON by a schema, any JSON object, what a regular expression or a Lark grammar allows.

Only says so; `constraint.py` holds an answer to it.
"""

from dataclasses import dataclass

__all__ = ["Grammar", "JsonObject", "JsonSchema", "Lark", "Regex"]


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """JSON that a schema accepts.

    Attributes:
        schema: the JSON schema, as JSON text.
    """

    schema: str


@dataclass(frozen=True, slots=True)
class JsonObject:
    """Any JSON object."""


@dataclass(frozen=True, slots=True)
class Regex:
    """Text that a regular expression matches from its first character to its last.

    Attributes:
        pattern: in the syntax of Rust's `regex` crate; no look-around, no back-references.
    """

    pattern: str


@dataclass(frozen=True, slots=True)
class Lark:
    """Text of a context-free language.

    Attributes:
        grammar: in llguidance's variant of Lark's syntax; the rule `start` is the whole answer.
    """

    grammar: str


Grammar = JsonSchema | JsonObject | Regex | Lark
