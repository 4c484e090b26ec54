"""Transactions, snapshots and migrations of the database."""

import sqlite3
import threading
from pathlib import Path

import pytest

from retriever.changes import DocumentRow
from retriever.config import CollectionSettings
from retriever.errors import CollectionExistsError, SettingsError, StoreError, StoreVersionError, UnknownCollectionError
from retriever.store import Store, migrate, migrations


@pytest.fixture
def store(tmp_path: Path):
    store = Store(tmp_path / "library.sqlite3")
    yield store
    store.close()


def row(number: int) -> DocumentRow:
    return DocumentRow(f"id{number}", f"uri/{number}", "Title", b"hash", "text", "encoder")


def test_an_empty_database_is_brought_to_the_last_version_once():
    connection = sqlite3.connect(":memory:", isolation_level=None)
    assert migrate(connection, migrations()) == 0
    assert connection.execute("PRAGMA user_version").fetchone() == (len(migrations()),)
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    assert {"collections", "documents", "passages", "vectors"} <= tables
    assert migrate(connection, migrations()) == len(migrations())
    connection.close()


def test_a_later_migration_keeps_what_is_stored(tmp_path: Path):
    store = Store(tmp_path / "library.sqlite3")
    with store.write() as writer:
        writer.put_document(writer.add_collection("c", CollectionSettings()), row(1))
    store.close()
    connection = sqlite3.connect(tmp_path / "library.sqlite3", isolation_level=None)
    script = "-- a comment; with a semicolon\nALTER TABLE documents ADD COLUMN note TEXT DEFAULT 'a;b';\n"
    assert migrate(connection, [*migrations(), script]) == len(migrations())
    assert connection.execute("SELECT uri, note FROM documents").fetchall() == [("uri/1", "a;b")]
    connection.close()
    with pytest.raises(StoreVersionError, match="upgrade"):
        Store(tmp_path / "library.sqlite3")


def test_a_failing_migration_changes_nothing():
    connection = sqlite3.connect(":memory:", isolation_level=None)
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, [*migrations(), "CREATE TABLE extra (x INTEGER);\nCREATE NONSENSE;\n"])
    assert connection.execute("PRAGMA user_version").fetchone() == (len(migrations()),)
    assert not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'extra'").fetchall()
    connection.close()


def test_write_ahead_log_foreign_keys_and_full_sync_are_on(store: Store):
    with store.read() as reader:
        values = [
            reader._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "foreign_keys", "synchronous")
        ]
    assert values == ["wal", 1, 2]


def test_a_transaction_that_fails_leaves_nothing(store: Store):
    def fail_after_a_change() -> None:
        with store.write() as writer:
            writer.put_document(writer.add_collection("c", CollectionSettings()), row(1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_a_change()
    with store.read() as reader:
        assert reader.collections() == []
    with store.write() as writer:
        writer.add_collection("c", CollectionSettings())
    with store.read() as reader:
        assert reader.collection("c").num_documents == 0


def test_a_reader_sees_one_snapshot(store: Store):
    with store.write() as writer:
        collection = writer.add_collection("c", CollectionSettings())
    with store.read() as reader:
        assert reader.documents(collection) == []
        with store.write() as writer:
            writer.put_document(collection, row(1))
        assert reader.documents(collection) == []
    with store.read() as reader:
        assert [document.uri for document in reader.documents(collection)] == ["uri/1"]


def test_many_threads_write_and_read(store: Store):
    with store.write() as writer:
        collection = writer.add_collection("c", CollectionSettings())
    errors: list[Exception] = []

    def work(number: int) -> None:
        try:
            for step in range(10):
                with store.write() as writer:
                    writer.put_document(collection, row(number * 100 + step))
                with store.read() as reader:
                    reader.document(collection, f"id{number * 100 + step}")
        except Exception as error:  # noqa: BLE001 - handed to the test's thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    with store.read() as reader:
        assert len(reader.documents(collection)) == 120
        assert len(reader._connection.execute("PRAGMA foreign_key_check").fetchall()) == 0


def test_deleting_a_collection_deletes_all_of_it_and_its_id_is_not_used_again(store: Store):
    with store.write() as writer:
        first = writer.add_collection("c", CollectionSettings())
        writer.put_document(first, row(1))
    with store.write() as writer:
        writer.delete_collection(first)
        second = writer.add_collection("c", CollectionSettings())
    assert second.id > first.id
    with store.read() as reader:
        assert reader.documents(second) == []
        with pytest.raises(UnknownCollectionError, match="deleted meanwhile"):
            reader.refresh(first)


def test_named_errors(store: Store):
    with store.write() as writer:
        writer.add_collection("c", CollectionSettings())
    with pytest.raises(CollectionExistsError, match="'c' exists"), store.write() as writer:
        writer.add_collection("c", CollectionSettings())
    with store.read() as reader, pytest.raises(UnknownCollectionError, match="'d'; choose one of: c"):
        reader.collection("d")
    store.close()
    with pytest.raises(StoreError, match="closed"), store.read():
        pass
    with pytest.raises(StoreError, match="closed"), store.write():
        pass


def test_a_file_that_is_no_database(tmp_path: Path):
    (tmp_path / "x.sqlite3").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(tmp_path / "x.sqlite3")


def test_settings_survive_and_unknown_ones_are_refused():
    settings = CollectionSettings(index_factory="HNSW32", index_parameters="efSearch=99")
    assert CollectionSettings.from_json(settings.to_json()) == settings
    with pytest.raises(SettingsError, match="shape"):
        CollectionSettings.from_json('{"shape": 1, "split": {}}')
