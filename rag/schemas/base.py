"""What requests and results have in common: strictness, and types that several topics use."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainSerializer, StringConstraints, WithJsonSchema
from pydantic import model_validator as check_model

__all__ = ["MAX_PASSAGES", "CollectionName", "PassageId", "Question", "Request", "Result"]

PassageId = Annotated[
    int,
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^-?\d+$", "description": "64-bit integer"}),
]
Question = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
CollectionName = Annotated[str, StringConstraints(min_length=1, max_length=200)]

MAX_PASSAGES = 100
MAX_FIELDS = 100


class Result(BaseModel):
    """What Preread sends: it does not change once it was made."""

    model_config = ConfigDict(frozen=True)


class Request(BaseModel):
    """What Preread is sent: unknown fields are refused.

    Lists and mappings in it end at their first error (`fail_fast`), and too many fields are one error: what cannot be
    used must not take longer than what can.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @check_model(mode="before")
    @classmethod
    def _few_fields(cls, given: Any) -> Any:
        if isinstance(given, dict) and len(given) > MAX_FIELDS:
            raise ValueError(f"there are {len(given)} fields here, most of them unknown; leave those out")
        return given
