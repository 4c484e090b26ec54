"""API keys as they are kept. Nobody knows a key's secret but its owner.

A key is written `prk_ID_SECRET`. The id is public: it names the key in lists, logs and the ledger. The secret is 192
random bits, so that its SHA-256 hash, which alone is stored, cannot be searched for: slow hashes and salts are for
secrets that people choose. Keys are few and read at every request, so all of them are held in memory; the process that
owns the data directory is the only one that changes them.
"""

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from threading import Lock

from rag.errors import InvalidKeyError, UnknownKeyError
from rag.keys import Grants, Key, Scope
from retriever.errors import StoreError
from retriever.store import Store

__all__ = ["KeyStore"]

logger = logging.getLogger(__name__)

PREFIX = "prk"
ID_BYTES, SECRET_BYTES = 6, 24
NAME = re.compile(r"[^\x00-\x1f\x7f]{1,100}")
NO_HASH = bytes(hashlib.sha256().digest_size)


class KeyStore:
    """The keys of one data directory; every method may be called from any thread.

    Args:
        store: the library's database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = Lock()
        self._keys: dict[str, Key] = {}
        self._hashes: dict[str, bytes] = {}
        self._used: dict[str, datetime] = {}
        self._load()

    @property
    def is_on(self) -> bool:
        """Whether there is, or ever was, a key. Revoking the last one does not open what keys have closed."""
        return bool(self._keys)

    def authenticate(self, token: str) -> Key | None:
        """Return the key of a token, None where it is wrong, expired or revoked.

        The secret is compared in constant time, and an unknown id costs the same.
        """
        prefix, _, rest = token.partition("_")
        key_id, _, secret = rest.partition("_")
        given = hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
        matches = hmac.compare_digest(given, self._hashes.get(key_id, NO_HASH))
        key, now = self._keys.get(key_id), datetime.now(UTC)
        if not matches or prefix != PREFIX or key is None or not key.is_valid(now):
            return None
        self._used[key_id] = now
        return key

    def valid(self, key_id: str) -> Key | None:
        """Return a key that was presented before; None where it is accepted no more."""
        key = self._keys.get(key_id)
        return key if key is not None and key.is_valid(datetime.now(UTC)) else None

    def create(
        self,
        name: str,
        grants: Grants,
        *,
        questions_per_minute: int | None = None,
        tokens_per_day: int | None = None,
        expires_at: datetime | None = None,
    ) -> tuple[Key, str]:
        """Make a key, and return it with its token, which nobody can show again.

        Raises:
            InvalidKeyError: the name is taken or cannot be used, or it would have expired already.
        """
        now = datetime.now(UTC).replace(microsecond=0)
        if not NAME.fullmatch(name):
            raise InvalidKeyError(f"{name!r} cannot be a key's name; use 1 to 100 printable characters")
        if expires_at is not None and expires_at <= now:
            raise InvalidKeyError(f"the key would have expired at {expires_at.isoformat()}; choose a time to come")
        secret = secrets.token_hex(SECRET_BYTES)
        digest = hashlib.sha256(secret.encode()).digest()
        with self._lock:
            if any(key.name == name and key.revoked_at is None for key in self._keys.values()):
                raise InvalidKeyError(f"there is a key {name!r} already; revoke it or choose another name")
            key_id = next(found for found in iter(_new_id, None) if found not in self._keys)
            key = Key(
                key_id,
                name,
                grants,
                now,
                questions_per_minute=questions_per_minute,
                tokens_per_day=tokens_per_day,
                expires_at=expires_at,
            )
            self._insert(key, digest)
            self._hashes[key_id] = digest
            self._keys = {**self._keys, key_id: key}
        return key, f"{PREFIX}_{key_id}_{secret}"

    def list(self) -> Sequence[Key]:
        """Return every key, revoked ones included, oldest first."""
        found = sorted(self._keys.values(), key=lambda key: (key.created_at, key.name))
        return [replace(key, last_used_at=self._used.get(key.id, key.last_used_at)) for key in found]

    def find(self, name_or_id: str) -> Key:
        """Return a key by its id, or the living one of a name.

        Raises:
            UnknownKeyError: there is none.
        """
        by_name = (key for key in self._keys.values() if key.name == name_or_id and key.revoked_at is None)
        key = self._keys.get(name_or_id) or next(by_name, None)
        if key is None:
            raise UnknownKeyError(f"there is no key {name_or_id!r}; `rag keys list` shows them")
        return key

    def revoke(self, name_or_id: str) -> Key:
        """Refuse a key from now on, for good; nothing happens to one that is revoked already.

        A disk that does not take it keeps no key alive: `is_written` tells so, and `flush` tries again.

        Raises:
            UnknownKeyError: there is none of this id, and none that lives of this name.
        """
        with self._lock:
            key = self.find(name_or_id)
            if key.revoked_at is not None:
                return key
            key = replace(key, revoked_at=datetime.now(UTC).replace(microsecond=0), is_written=False)
            self._keys = {**self._keys, key.id: key}
            self._write_revoked()
            return self._keys[key.id]

    def _write_revoked(self) -> None:
        """Write down which keys are revoked that are not on the disk as such; needs the lock."""
        pending = [key for key in self._keys.values() if not key.is_written]
        if not pending:
            return
        try:
            with self._store.write() as writer:
                rows = [(_text(key.revoked_at), key.id) for key in pending]
                writer.connection.executemany("UPDATE api_keys SET revoked_at = ? WHERE id = ?", rows)
        except StoreError as error:
            names = ", ".join(key.name for key in pending)
            logger.warning(
                "that these keys are revoked is not written down yet, and is tried again: %s: %s", names, error
            )
        else:
            self._keys = {**self._keys, **{key.id: replace(key, is_written=True) for key in pending}}

    def access(self, collection: str) -> dict[str, Scope]:
        """Return which living keys are granted what on a collection by its own name, by key id."""
        return {
            key.id: key.grants.scopes[collection]
            for key in self._keys.values()
            if key.revoked_at is None and collection in key.grants.scopes
        }

    def set_access(self, collection: str, scopes: Mapping[str, Scope]) -> None:
        """Grant the keys these scopes on a collection, and all others nothing by its own name.

        Raises:
            UnknownKeyError: a key does not exist or is revoked.
        """
        with self._lock:
            living = {key.id for key in self._keys.values() if key.revoked_at is None}
            if unknown := sorted(scopes.keys() - living):
                raise UnknownKeyError(f"there is no living key {unknown[0]!r}; `rag keys list` shows them")
            with self._store.write() as writer:
                writer.connection.execute("DELETE FROM api_key_grants WHERE collection = ?", (collection,))
                rows = [(key_id, collection, scope) for key_id, scope in scopes.items()]
                writer.connection.executemany("INSERT INTO api_key_grants VALUES (?, ?, ?)", rows)
            self._keys = {key.id: _granted(key, collection, scopes.get(key.id)) for key in self._keys.values()}

    def flush(self) -> None:
        """Write down when the keys were last used; presenting one only notes it, so that nobody waits for the disk.

        What the disk does not take is noted again. So are revocations that it has not taken before.
        """
        with self._lock:
            self._write_revoked()
        used: dict[str, datetime] = {}
        while self._used:
            key_id, moment = self._used.popitem()  # others note uses meanwhile
            used[key_id] = moment
        if not used:
            return
        with self._lock:
            try:
                with self._store.write() as writer:
                    rows = [(_text(moment), key_id) for key_id, moment in used.items()]
                    writer.connection.executemany("UPDATE api_keys SET last_used_at = ? WHERE id = ?", rows)
            except StoreError as error:
                logger.warning("when keys were used is not written down yet, and it is tried again: %s", error)
                self._used = {**used, **self._used}
                return
            changed = {key_id: replace(self._keys[key_id], last_used_at=moment) for key_id, moment in used.items()}
            self._keys = {**self._keys, **changed}

    def _load(self) -> None:
        with self._store.read() as reader:
            scopes: dict[str, dict[str, Scope]] = {}
            for key_id, collection, scope in reader.connection.execute("SELECT * FROM api_key_grants"):
                scopes.setdefault(key_id, {})[collection] = scope
            for row in reader.connection.execute(
                "SELECT id, secret_hash, name, questions_per_minute, tokens_per_day, created_at, expires_at, "
                "revoked_at, last_used_at FROM api_keys"
            ):
                key_id, digest, name, questions, tokens, created, *moments = row
                expires, revoked, used = map(_moment, moments)
                made = datetime.fromisoformat(created)
                grants = Grants(scopes.get(key_id, {}))
                self._keys[key_id] = Key(key_id, name, grants, made, questions, tokens, expires, revoked, used)
                self._hashes[key_id] = digest

    def _insert(self, key: Key, digest: bytes) -> None:
        with self._store.write() as writer:
            limits = (key.questions_per_minute, key.tokens_per_day)
            moments = (_text(key.created_at), _text(key.expires_at))
            writer.connection.execute(
                "INSERT INTO api_keys (id, name, secret_hash, questions_per_minute, tokens_per_day, created_at, "
                "expires_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (key.id, key.name, digest, *limits, *moments),
            )
            rows = [(key.id, collection, scope) for collection, scope in key.grants.scopes.items()]
            writer.connection.executemany("INSERT INTO api_key_grants VALUES (?, ?, ?)", rows)


def _granted(key: Key, collection: str, scope: Scope | None) -> Key:
    """Return a key with this scope on a collection, or with none."""
    others = {name: held for name, held in key.grants.scopes.items() if name != collection}
    return replace(key, grants=Grants(others if scope is None else {**others, collection: scope}))


def _new_id() -> str:
    return secrets.token_hex(ID_BYTES)


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
