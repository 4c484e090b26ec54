"""API keys: who may ask, for what, and how much. How they are kept is not known here."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, get_args

from rag.errors import InvalidKeyError

__all__ = ["EVERY", "Grants", "Key", "Scope", "parse_scopes"]

Scope = Literal["read", "write", "admin"]
EVERY = "*"  # collections, those to come included
WIDTH: dict[Scope, int] = {"read": 1, "write": 2, "admin": 3}
COLLECTION = re.compile(r"\*|[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Grants:
    """What a key may do: the widest scope by collection; a wider one includes the narrower ones."""

    scopes: Mapping[str, Scope] = field(default_factory=dict)

    def may(self, scope: Scope, collection: str | None = None) -> bool:
        """Return whether a scope is granted.

        Args:
            scope: admin of no collection in particular is that of the server; reading or writing of none in particular
                is granted to who may do so anywhere.
            collection: its name.
        """
        if collection is None and scope != "admin":
            return any(WIDTH[held] >= WIDTH[scope] for held in self.scopes.values())
        held = self.widest(collection or EVERY)
        return held is not None and WIDTH[held] >= WIDTH[scope]

    def widest(self, collection: str) -> Scope | None:
        """Return the widest scope on a collection, by its own name or as one of all; None where there is none."""
        held = [self.scopes[name] for name in (collection, EVERY) if name in self.scopes]
        return max(held, key=WIDTH.__getitem__, default=None)

    @property
    def collections(self) -> frozenset[str] | None:
        """The names of those that may at least be read; None is every one."""
        return None if EVERY in self.scopes else frozenset(self.scopes)

    def __str__(self) -> str:
        return " ".join(f"{scope}:{name}" for name, scope in sorted(self.scopes.items()))


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its secret.

    Attributes:
        id: names it; never used again.
        name: for people.
        grants: what it may do.
        questions_per_minute: its own limit; None is the server's.
        tokens_per_day: the same.
        created_at: when it was made.
        expires_at: from when on it is refused; None is never.
        revoked_at: since when it is refused for good.
        last_used_at: when it was last presented.
        is_written: whether its revocation is on the disk, if it is revoked.
    """

    id: str
    name: str
    grants: Grants
    created_at: datetime
    questions_per_minute: int | None = None
    tokens_per_day: int | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    is_written: bool = True

    def is_valid(self, now: datetime) -> bool:
        """Return whether it is accepted at a time."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def parse_scopes(texts: Iterable[str]) -> Grants:
    """Read grants such as `read:handbook` or `write:*`; a scope alone is that of every collection.

    Raises:
        InvalidKeyError: one is none, or there is none.
    """
    scopes: dict[str, Scope] = {}
    for text in texts:
        scope, colon, collection = text.partition(":")
        collection = collection if colon else EVERY
        if scope not in get_args(Scope) or not COLLECTION.fullmatch(collection):
            raise InvalidKeyError(
                f"{text!r} is no scope; write read, write or admin, a colon and a collection's name, or * for every one"
            )
        known: Scope = scope  # type: ignore[assignment]  # one of Scope's values, as checked
        scopes[collection] = max(known, scopes.get(collection, known), key=WIDTH.__getitem__)
    if not scopes:
        raise InvalidKeyError("a key needs a scope; name what it may do, such as read:handbook or write:*")
    return Grants(scopes)
