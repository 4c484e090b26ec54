"""API keys: what is stored of them, what they may do, when they are refused."""

import re
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rag import key_store as module
from rag.errors import InvalidKeyError, UnknownKeyError
from rag.key_store import KeyStore
from rag.keys import WIDTH, Grants, Scope, parse_scopes
from retriever.errors import StoreError
from retriever.store import Store

READ_DOCS = parse_scopes(["read:docs"])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "library.sqlite3")
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("scopes", "asked", "allowed"),
    [
        (["read:docs"], ("read", "docs"), True),
        (["read:docs"], ("read", "other"), False),
        (["read:docs"], ("write", "docs"), False),
        (["write:docs"], ("read", "docs"), True),
        (["admin:docs"], ("write", "docs"), True),
        (["admin:docs"], ("admin", "docs"), True),
        (["admin:docs"], ("admin", None), False),
        (["admin:*"], ("admin", None), True),
        (["admin"], ("admin", "any"), True),
        (["write:*"], ("admin", "any"), False),
        (["read:*", "write:docs"], ("write", "docs"), True),
        (["write:*", "read:docs"], ("write", "docs"), True),
        (["read:docs"], ("read", None), True),
        (["read:docs"], ("write", None), False),
        (["write:docs"], ("write", None), True),
    ],
)
def test_a_wider_scope_includes_the_narrower_ones(
    scopes: list[str], asked: tuple[Scope, str | None], allowed: bool
) -> None:
    assert parse_scopes(scopes).may(*asked) is allowed


def test_of_two_scopes_on_a_collection_the_wider_one_counts() -> None:
    assert parse_scopes(["write:docs", "read:docs"]) == parse_scopes(["read:docs", "write:docs"])
    assert str(parse_scopes(["write:docs", "read"])) == "read:* write:docs"


@pytest.mark.parametrize("scopes", [[], ["own:docs"], ["read:"], ["read:a/b"], ["READ:docs"], ["read:**"]])
def test_what_is_no_scope_is_refused(scopes: list[str]) -> None:
    with pytest.raises(InvalidKeyError, match="scope"):
        parse_scopes(scopes)


def test_no_grants_allow_nothing() -> None:
    assert not any(Grants().may(scope, name) for scope in WIDTH for name in (None, "docs", "*"))


def test_a_token_is_its_key_until_it_is_revoked(store: Store) -> None:
    keys = KeyStore(store)
    assert not keys.is_on
    key, token = keys.create("reader", READ_DOCS)
    assert keys.is_on
    assert re.fullmatch(rf"prk_{key.id}_[0-9a-f]{{48}}", token)
    assert keys.authenticate(token) == key
    assert KeyStore(store).authenticate(token) == key, "a server that starts again knows it"
    assert keys.revoke("reader").revoked_at is not None
    assert keys.authenticate(token) is None
    assert KeyStore(store).authenticate(token) is None
    assert keys.is_on, "revoking the last key does not open the server"
    assert KeyStore(store).is_on


def test_a_wrong_token_is_nobodys(store: Store) -> None:
    keys = KeyStore(store)
    key, token = keys.create("reader", READ_DOCS)
    other, other_token = keys.create("other", READ_DOCS)
    secret, other_secret = token.rpartition("_")[2], other_token.rpartition("_")[2]
    wrong = [
        "", "prk", "prk__", f"prk_{key.id}", f"prk_{key.id}_", f"prk_{key.id}_{other_secret}",
        f"prk_{other.id}_{secret}",
        f"PRK_{key.id}_{secret}", f"prk_000000000000_{secret}", token[:-1], token + "0", f"_{token}",
        token.upper(), "prk_000000000000_" + "0" * 48, "prk_é_\udcff",
    ]  # fmt: skip
    assert [keys.authenticate(text) for text in wrong] == [None] * len(wrong)


def test_an_unknown_id_costs_the_same_comparison(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = KeyStore(store)
    key, token = keys.create("reader", READ_DOCS)
    compared: list[tuple[int, int]] = []
    real = module.hmac.compare_digest

    def watched(left: bytes, right: bytes) -> bool:
        compared.append((len(left), len(right)))
        return bool(real(left, right))

    monkeypatch.setattr(module.hmac, "compare_digest", watched)
    for text in (token, f"prk_{key.id}_0", "prk_000000000000_0", "nonsense", ""):
        keys.authenticate(text)
    assert compared == [(32, 32)] * 5


def test_the_secret_is_nowhere_on_disk(tmp_path: Path) -> None:
    store = Store(tmp_path / "library.sqlite3")
    _, token = KeyStore(store).create("reader", READ_DOCS)
    secret = token.rpartition("_")[2].encode()
    files = [file.read_bytes() for file in tmp_path.iterdir()]
    store.close()
    assert any(b"reader" in data for data in files)
    assert not any(secret in data or bytes.fromhex(secret.decode()) in data for data in files)


def test_a_key_expires(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = KeyStore(store)
    end = datetime.now(UTC) + timedelta(days=1)
    _, token = keys.create("short", READ_DOCS, expires_at=end)
    assert keys.authenticate(token)

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return end

    monkeypatch.setattr(module, "datetime", Later)
    assert keys.authenticate(token) is None
    with pytest.raises(InvalidKeyError, match="a time to come"):
        keys.create("past", READ_DOCS, expires_at=end - timedelta(seconds=1))


def test_a_name_is_free_again_once_its_key_is_revoked(store: Store) -> None:
    keys = KeyStore(store)
    first, _ = keys.create("app", READ_DOCS)
    with pytest.raises(InvalidKeyError, match="already"):
        keys.create("app", READ_DOCS)
    with pytest.raises(InvalidKeyError, match="name"):
        keys.create("a\nb", READ_DOCS)
    keys.revoke(first.id)
    second, _ = keys.create("app", READ_DOCS)
    assert keys.find("app") == second
    assert keys.revoke(first.id).id == first.id, "a revoked one stays so"
    assert [key.revoked_at is None for key in keys.list()] == [False, True]
    with pytest.raises(UnknownKeyError, match="no key 'nobody'"):
        keys.revoke("nobody")


def test_the_last_use_is_noted_at_once_and_written_down_later(store: Store) -> None:
    keys = KeyStore(store)
    _, token = keys.create("app", READ_DOCS)
    assert keys.list()[0].last_used_at is None
    keys.authenticate(token)
    noted = keys.list()[0].last_used_at
    assert noted is not None
    assert KeyStore(store).list()[0].last_used_at is None
    keys.flush()
    written = KeyStore(store).list()[0].last_used_at
    assert written == noted.replace(microsecond=0)
    keys.flush()
    assert keys.list()[0].last_used_at == noted


def test_a_key_is_revoked_even_where_the_disk_does_not_take_it(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keys = KeyStore(store)
    _, token = keys.create("app", READ_DOCS)
    with monkeypatch.context() as full:

        def refuse() -> None:
            raise StoreError("the disk is full")

        full.setattr(store, "write", refuse)
        revoked = keys.revoke("app")
        assert revoked.revoked_at is not None
        assert not revoked.is_written
        assert keys.authenticate(token) is None
        keys.flush()
        assert not keys.list()[0].is_written
    assert caplog.text.count("the disk is full") == 2
    assert KeyStore(store).authenticate(token) is not None, "a restart would bring it back: that is why it is told"
    keys.flush()
    assert keys.list()[0].is_written
    assert KeyStore(store).authenticate(token) is None
    assert keys.revoke(revoked.id).revoked_at == revoked.revoked_at


def test_access_to_a_collection_is_changed_for_all_keys_at_once(store: Store) -> None:
    keys = KeyStore(store)
    one, _ = keys.create("one", parse_scopes(["read:docs", "write:other"]))
    two, token = keys.create("two", parse_scopes(["write:*"]))
    assert keys.access("docs") == {one.id: "read"}
    keys.set_access("docs", {two.id: "admin"})
    for reopened in (keys, KeyStore(store)):
        assert reopened.access("docs") == {two.id: "admin"}
        assert not reopened.find("one").grants.may("read", "docs")
        assert reopened.find("one").grants.may("write", "other")
        found = reopened.authenticate(token)
        assert found is not None
        assert found.grants.may("admin", "docs")
    with pytest.raises(UnknownKeyError):
        keys.set_access("docs", {"000000000000": "read"})
    assert keys.access("docs") == {two.id: "admin"}, "nothing changed"


def test_a_database_of_the_version_before_gets_the_tables(tmp_path: Path) -> None:
    from retriever.store import migrate, migrations

    path = tmp_path / "library.sqlite3"
    before = sqlite3.connect(path, isolation_level=None)
    migrate(before, migrations()[:2])
    before.close()
    store = Store(path)
    assert KeyStore(store).list() == []
    store.close()
