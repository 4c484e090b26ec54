"""What a request may do: decided by its key, never by its body."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Depends, Request

from rag.caller import Caller
from rag.key_store import KeyStore
from rag.keys import EVERY, Grants, Scope
from rag.server.problems import ProblemError

__all__ = ["EVERYTHING", "Access", "AccessDep", "key_required", "require_still"]

EVERYTHING = Grants({EVERY: "admin"})


def key_required(detail: str, *, error: str = "") -> ProblemError:
    """Make the refusal of a request that has no key that is accepted; `error` is one of RFC 6750's."""
    challenge = f'Bearer realm="preread", error="{error}"' if error else 'Bearer realm="preread"'
    return ProblemError(401, "key-required", detail, headers={"WWW-Authenticate": challenge})


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who asks, and what they may do.

    Attributes:
        key_id: of the key; empty for the owner of the data directory, and for everyone while there are no keys.
        name: of the key.
        caller: goes with a question to the engine.
        grants: what the key may do.
        questions_per_minute: of the key; None is the server's own limit.
        tokens_per_day: the same.
        is_proven: whether a key, or the data directory's own token, was presented.
    """

    key_id: str = ""
    name: str = ""
    caller: Caller
    grants: Grants
    questions_per_minute: int | None = None
    tokens_per_day: int | None = None
    is_proven: bool = False

    def may(self, scope: Scope, collection: str | None = None) -> bool:
        """Return whether a scope is granted; see `Grants.may`."""
        return self.grants.may(scope, collection)

    def require(self, scope: Scope, collection: str | None = None) -> None:
        """Go on only where a scope is granted, whether or not the collection exists.

        Raises:
            ProblemError: 401 without a key, 403 with one that may not.
        """
        if self.may(scope, collection):
            return
        wanted = f"{scope}:{collection or EVERY}"
        if not self.is_proven:
            raise key_required(f"this needs a key with the scope {wanted}; send it as Authorization: Bearer KEY")
        raise ProblemError(
            403,
            "not-allowed",
            f"the key {self.name!r} has not the scope {wanted}; use another one, or have an administrator make it: "
            f"`rag keys create NAME --scope {wanted}`",
        )

    def visible(self, names: Iterable[str]) -> list[str]:
        """Return those of the collections that the key may read."""
        return [name for name in names if self.may("read", name)]


def require_still(keys: KeyStore, access: Access, scope: Scope, collection: str | None) -> None:
    """Go on only where a scope is granted now: a key may be revoked or narrowed while it is answered.

    Raises:
        ProblemError: 401 without a key that is still accepted, 403 with one that may no more.
    """
    if access.key_id:
        key = keys.valid(access.key_id)
        if key is None:
            raise key_required("the key has expired or was revoked meanwhile; use another one", error="invalid_token")
        access = replace(access, grants=key.grants)
    elif keys.is_on and not access.is_proven:
        raise key_required("this server needs a key by now; ask again with one")
    access.require(scope, collection)


async def _access(request: Request) -> Access:
    access: Access = request.state.access
    return access


AccessDep = Annotated[Access, Depends(_access)]
