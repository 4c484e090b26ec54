"""What can be asked about keys, whoever does it: this process, or a running server."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol
from urllib.parse import quote

import httpx

from rag.key_store import KeyStore
from rag.keys import Key, parse_scopes
from rag.schemas.keys import AccessEntry, AccessList, AccessRequest, CreatedKey, KeyInfo, KeyList, KeyRequest

__all__ = ["KeyOperations", "RemoteKeys", "StoredKeys"]


class KeyOperations(Protocol):
    """Makes, shows and revokes keys."""

    def create(self, wanted: KeyRequest) -> CreatedKey:
        """Make a key; its token is shown this once."""

    def list(self) -> KeyList:
        """Return every key, oldest first."""

    def revoke(self, name_or_id: str) -> KeyInfo:
        """Refuse a key from now on, for good."""


class StoredKeys:
    """The keys of this process's data directory.

    Args:
        store: has them.
    """

    def __init__(self, store: KeyStore) -> None:
        self._store = store

    def create(self, wanted: KeyRequest) -> CreatedKey:
        """Make a key.

        Raises:
            InvalidKeyError: its name is taken, or it would have expired already.
        """
        key, token = self._store.create(
            wanted.name,
            parse_scopes(wanted.scopes),
            questions_per_minute=wanted.questions_per_minute,
            tokens_per_day=wanted.tokens_per_day,
            expires_at=wanted.expires_at,
        )
        return CreatedKey(**_info(key).model_dump(), key=token)

    def list(self) -> KeyList:
        """Return every key, oldest first."""
        return KeyList(on=self._store.is_on, keys=[_info(key) for key in self._store.list()])

    def revoke(self, name_or_id: str) -> KeyInfo:
        """Refuse a key from now on.

        Raises:
            UnknownKeyError: there is none.
        """
        return _info(self._store.revoke(name_or_id))

    def access(self, collection: str) -> AccessList:
        """Return which living keys may do what with a collection."""
        return AccessList(collection=collection, entries=_entries(self._store, collection))

    def set_access(self, collection: str, wanted: AccessRequest) -> AccessList:
        """Grant scopes on a collection by its name, and take away all others of this name.

        Raises:
            UnknownKeyError: a key does not exist or is revoked.
        """
        self._store.set_access(collection, wanted.scopes)
        return self.access(collection)


class RemoteKeys:
    """The keys of a running server.

    Args:
        call: sends a request and checks the response.
    """

    def __init__(self, call: Callable[..., httpx.Response]) -> None:
        self._call = call

    def create(self, wanted: KeyRequest) -> CreatedKey:
        """Make a key."""
        return CreatedKey.model_validate(self._call("POST", "/v1/keys", json=wanted.model_dump(mode="json")).json())

    def list(self) -> KeyList:
        """Return every key, oldest first."""
        return KeyList.model_validate(self._call("GET", "/v1/keys").json())

    def revoke(self, name_or_id: str) -> KeyInfo:
        """Refuse a key from now on."""
        return KeyInfo.model_validate(self._call("DELETE", f"/v1/keys/{quote(name_or_id, safe='')}").json())


def _entries(store: KeyStore, collection: str) -> "list[AccessEntry]":
    now = datetime.now(UTC)
    own = store.access(collection)
    entries = []
    for key in store.list():
        scope = key.grants.widest(collection)
        if scope is not None and key.is_valid(now):
            everywhere = own.get(key.id) != scope
            entries.append(AccessEntry(key_id=key.id, name=key.name, scope=scope, everywhere=everywhere))
    return entries


def _info(key: Key) -> KeyInfo:
    return KeyInfo(
        id=key.id,
        name=key.name,
        scopes=str(key.grants).split(),
        questions_per_minute=key.questions_per_minute,
        tokens_per_day=key.tokens_per_day,
        created_at=key.created_at.isoformat(),
        expires_at=_text(key.expires_at),
        revoked_at=_text(key.revoked_at),
        last_used_at=_text(key.last_used_at),
        is_written=key.is_written,
    )


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="seconds")
