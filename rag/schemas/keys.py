"""API keys, as they are asked for and shown: never with their secret, save once."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints

from rag.schemas.base import Request, Result

__all__ = ["AccessEntry", "AccessList", "AccessRequest", "CreatedKey", "KeyInfo", "KeyList", "KeyRequest"]

ScopeName = Literal["read", "write", "admin"]
ScopeText = Annotated[
    str,
    StringConstraints(pattern=r"^(read|write|admin)(:(\*|[A-Za-z0-9][A-Za-z0-9._-]{0,63}))?$"),
    Field(description="`read`, `write` or `admin`, a colon, and a collection's name or `*`.", examples=["read:docs"]),
]
MAX_SCOPES = 1000
FIRST_YEAR, LAST_YEAR = 2000, 9998  # those at the ends of the calendar are not in it in all time zones


def _in_utc(moment: datetime) -> datetime:
    if not FIRST_YEAR <= moment.year <= LAST_YEAR:
        raise ValueError(
            f"a key expires between the years {FIRST_YEAR} and {LAST_YEAR}; leave the time out for one that never does"
        )
    return moment.astimezone(UTC)


ExpiryTime = Annotated[AwareDatetime, AfterValidator(_in_utc)]


class KeyRequest(Request):
    """A key to make.

    Attributes:
        name: for people; no two living keys have the same.
        scopes: what it may do. A wider scope includes the narrower ones; `admin:*` is everything, keys included.
        questions_per_minute: its own limit instead of the server's.
        tokens_per_day: the same, of prompt and answer tokens.
        expires_at: from when on it is refused; kept in UTC.
    """

    name: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    scopes: Annotated[list[ScopeText], Field(fail_fast=True, min_length=1, max_length=MAX_SCOPES)]
    questions_per_minute: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    tokens_per_day: Annotated[int, Field(ge=1, lt=2**63)] | None = None
    expires_at: ExpiryTime | None = None


class KeyInfo(Result):
    """A key without its secret; times are ISO 8601 in UTC, null where they have not come.

    `is_written` is false where the key is revoked but the disk does not take that: it is tried again, and the key is
    accepted again if the server ends before.
    """

    id: str
    name: str
    scopes: list[str]
    questions_per_minute: int | None
    tokens_per_day: int | None
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None
    is_written: bool


class CreatedKey(KeyInfo):
    """A new key with its token, which is shown this once."""

    key: str


class KeyList(Result):
    """Every key, revoked ones included; `on` tells whether requests need one."""

    on: bool
    keys: list[KeyInfo]


class AccessEntry(Result):
    """That a key may do something with a collection; `everywhere` where it may with every one."""

    key_id: str
    name: str
    scope: ScopeName
    everywhere: bool


class AccessList(Result):
    """Which living keys may do what with a collection."""

    collection: str
    entries: list[AccessEntry]


class AccessRequest(Request):
    """Which keys, by id, may do what with one collection; keys that are not named lose what they had by its name."""

    scopes: Annotated[dict[str, ScopeName], Field(fail_fast=True, max_length=MAX_SCOPES)]
