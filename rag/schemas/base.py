"""What requests and results have in common: strictness, and types that several topics use."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, PlainSerializer, StringConstraints, WithJsonSchema

__all__ = ["MAX_PASSAGES", "CollectionName", "PassageId", "Question", "Request", "Result"]

PassageId = Annotated[
    int,
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^-?\d+$", "description": "64-bit integer"}),
]
Question = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
CollectionName = Annotated[str, StringConstraints(min_length=1, max_length=200)]

MAX_PASSAGES = 100


class Result(BaseModel):
    """What Preread sends: it does not change once it was made."""

    model_config = ConfigDict(frozen=True)


class Request(BaseModel):
    """What Preread is sent: unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")
