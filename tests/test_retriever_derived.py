"""Keys of derived data live and die with their passages, in the same commit, whatever ends a passage."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from retriever_helpers import CountingEmbedder, WordEncoder

from retriever.config import CollectionSettings
from retriever.derived import Claim, DeadKey
from retriever.document import Passage, TextSource
from retriever.errors import StoreError, UnknownDocumentError
from retriever.retriever import Library
from retriever.store import Store, migrate, migrations

TEXT = "Owls hunt at night. They hear a mouse below the snow."


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    with Library.open(tmp_path, embedder=CountingEmbedder()) as library:
        library.ensure_collection("c")
        yield library


def put(library: Library, uri: str, text: str, encoder: WordEncoder | None = None, collection: str = "c") -> Passage:
    """Ingest a document of one passage and return it."""
    library.ensure_collection(collection)
    library.ingest(collection, [TextSource(uri, text, "title")], encoder or WordEncoder())
    return next(p for p in library.passages(collection) if p.uri == uri)


def claim(library: Library, passage: Passage, key: bytes, collection: str = "c") -> None:
    row = library.collection(collection)
    assert library.derived.claim([Claim(key, row.id, passage.id)]) == {key}


def dead(library: Library) -> set[bytes]:
    return {item.key for item in library.derived.dead()}


def test_a_key_dies_with_its_last_passage(library: Library) -> None:
    one, two = put(library, "u:1", TEXT), put(library, "u:2", TEXT)
    for passage in (one, two):
        claim(library, passage, b"shared")
    claim(library, one, b"own")
    library.delete_document("c", one.document_id)
    assert library.derived.living([b"shared", b"own"]) == {b"shared"}
    assert dead(library) == {b"own"}
    library.delete_document("c", two.document_id)
    assert dead(library) == {b"own", b"shared"}
    library.derived.forget([b"own"])
    assert library.derived.dead() == [DeadKey(b"shared", erase=False)]


def test_a_passage_may_have_several_keys(library: Library) -> None:
    passage = put(library, "u:1", TEXT)
    for key in (b"template 1", b"template 2"):
        claim(library, passage, key)
        claim(library, passage, key)
    library.delete_document("c", passage.document_id)
    assert dead(library) == {b"template 1", b"template 2"}


def test_a_changed_text_ends_the_keys_of_the_passages_that_it_replaces(library: Library) -> None:
    old = put(library, "u:1", TEXT)
    claim(library, old, b"old")
    new = put(library, "u:1", "Bats sleep by day.")
    assert new.id != old.id
    assert dead(library) == {b"old"}


def test_other_tokens_end_the_keys_of_a_passage_that_stays(library: Library) -> None:
    passage = put(library, "u:1", TEXT)
    claim(library, passage, b"words")

    class Shifted(WordEncoder):
        def encode(self, passages):
            return [[token + 1 for token in tokens] for tokens in super().encode(passages)]

    encoder = Shifted("words-2")
    assert put(library, "u:1", TEXT, encoder).id == passage.id
    assert dead(library) == {b"words"}
    claim(library, passage, b"shifted")
    put(library, "u:1", TEXT)
    assert dead(library) == {b"words", b"shifted"}


def test_the_same_tokens_again_end_nothing(library: Library) -> None:
    passage = put(library, "u:1", TEXT)
    claim(library, passage, b"key")
    put(library, "u:1", TEXT, WordEncoder("another name"))
    assert library.derived.living([b"key"]) == {b"key"}
    assert not dead(library)


def test_a_collection_ends_its_own_keys_and_those_of_its_passages(library: Library) -> None:
    passage = put(library, "u:1", TEXT)
    other = put(library, "u:1", TEXT, collection="other")
    claim(library, passage, b"passage")
    claim(library, other, b"other", "other")
    row = library.collection("c")
    assert library.derived.claim([Claim(b"template", row.id, None)] * 2) == {b"template"}
    library.delete_collection("c")
    assert dead(library) == {b"passage", b"template"}
    assert library.derived.living([b"other"]) == {b"other"}


def test_a_prune_ends_keys(library: Library) -> None:
    claim(library, put(library, "u:1", TEXT), b"key")
    library.ingest("c", [TextSource("u:2", TEXT, "title")], WordEncoder(), prune=True)
    assert dead(library) == {b"key"}


def test_what_is_deleted_claims_nothing(library: Library) -> None:
    passage = put(library, "u:1", TEXT)
    collection = library.collection("c").id
    library.delete_document("c", passage.document_id)
    gone = Claim(b"gone", collection, passage.id)
    elsewhere = Claim(b"elsewhere", collection + 1, None)
    assert library.derived.claim([gone, elsewhere]) == set()
    assert not dead(library)


def test_a_key_that_is_needed_again_leaves_the_queue(library: Library) -> None:
    passage = put(library, "u:1", TEXT)
    claim(library, passage, b"key")
    library.delete_document("c", passage.document_id)
    assert dead(library) == {b"key"}
    claim(library, put(library, "u:1", TEXT), b"key")
    assert not dead(library)


def test_an_erasure_is_asked_for_in_the_commit_that_deletes(library: Library) -> None:
    passage = put(library, "u:1", TEXT)
    claim(library, passage, b"key")
    erasure = library.delete_document("c", passage.document_id, erase=True)
    assert erasure.passages == (passage,)
    assert erasure.document.uri == "u:1"
    assert library.derived.dead() == [DeadKey(b"key", erase=True)]
    claim(library, put(library, "u:1", TEXT), b"key")
    assert library.derived.dead() == [DeadKey(b"key", erase=True)], "its old copies must still go"
    with pytest.raises(UnknownDocumentError):
        library.delete_document("c", "no such", erase=True)


def test_an_erasure_names_passages_with_the_same_tokens(library: Library) -> None:
    class Unlabelled(WordEncoder):
        def encode(self, passages):
            return [[len(word) for word in p.text.split()] for p in passages]

    one = put(library, "u:1", TEXT, Unlabelled())
    two = put(library, "u:2", TEXT, Unlabelled())
    three = put(library, "u:3", "Bats sleep by day.", Unlabelled())
    for passage in (one, two):
        claim(library, passage, b"shared")
    assert library.delete_document("c", three.document_id, erase=True).twins == {}
    assert library.delete_document("c", one.document_id, erase=True).twins == {one.id: two}
    assert not dead(library), "the other passage needs it"


def test_passages_found_often_come_first_and_then_central_ones(library: Library) -> None:
    texts = {"u:1": "owl owl mouse", "u:2": "owl mouse snow", "u:3": "owl mouse night", "u:4": "zebra crossing road"}
    passages = {uri: put(library, uri, text).id for uri, text in texts.items()}
    ranking = library.popularity.ranking("c")
    assert sorted(ranking) == sorted(passages.values())
    assert ranking[-1] == passages["u:4"], "far from all the others"
    library.popularity.note([passages["u:4"], 12345])
    library.popularity.note([passages["u:4"], passages["u:3"]])
    assert library.popularity.ranking("c")[:2] == [passages["u:4"], passages["u:3"]]
    library.create_collection("empty")
    assert library.popularity.ranking("empty") == []


def test_counted_retrievals_survive_the_end_of_the_process(tmp_path: Path) -> None:
    with Library.open(tmp_path, embedder=CountingEmbedder()) as library:
        one, two = (put(library, uri, text).id for uri, text in (("u:1", TEXT), ("u:2", "Bats sleep by day.")))
        last = library.popularity.ranking("c")[-1]
        library.popularity.note([last])
    with Library.open(tmp_path) as library:
        assert library.popularity.ranking("c") == [last, {one: two, two: one}[last]]


def test_a_library_of_the_first_version_is_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "library.sqlite3"
    connection = sqlite3.connect(path, isolation_level=None)
    migrate(connection, migrations()[:1])
    settings = CollectionSettings().to_json()
    connection.execute("INSERT INTO collections (name, settings) VALUES ('c', ?)", (settings,))
    connection.close()
    with Library.open(tmp_path) as library:
        row = library.collection("c")
        assert library.derived.claim([Claim(b"key", row.id, None)]) == {b"key"}


def test_a_delete_that_fails_ends_no_key(tmp_path: Path) -> None:
    store = Store(tmp_path / "library.sqlite3")
    with store.write() as writer:
        row = writer.add_collection("c", CollectionSettings())
        writer.claim_keys([(b"key", row.id, None)])
    for error in (sqlite3.OperationalError("the disk is full"), KeyboardInterrupt()):
        with pytest.raises((StoreError, KeyboardInterrupt)):
            delete_and_fail(store, error)
        with store.read() as reader:
            assert reader.live_keys([b"key"]) == {b"key"}
            assert reader.dead_keys() == []
    store.close()


def delete_and_fail(store: Store, error: BaseException) -> None:
    with store.write() as writer:
        writer.delete_collection(writer.collection("c"))
        assert writer.dead_keys() == [(b"key", False)]
        raise error


def test_a_full_disk_keeps_the_library_from_nothing_but_the_counts(tmp_path, monkeypatch, caplog):
    library = Library.open(tmp_path / "full", embedder=CountingEmbedder())
    library.ensure_collection("c")
    passage = put(library, "u:1", TEXT)
    library.popularity.note([passage.id])
    monkeypatch.setattr("retriever.changes.Writer.count_retrievals", full_disk)
    with pytest.raises(StoreError, match="full"):
        library.popularity.flush()
    monkeypatch.undo()
    library.popularity.flush()
    with library.store.read() as reader:
        assert reader.retrievals(reader.collection("c")) == {passage.id: 1}, "what could not be written is not lost"
    library.popularity.note([passage.id])
    monkeypatch.setattr("retriever.changes.Writer.count_retrievals", full_disk)
    library.close()
    assert "not written down" in caplog.text
    assert list((tmp_path / "full" / "indexes").glob("*.faiss"))
    with pytest.raises(StoreError, match="closed"), library.store.read():
        pass


def full_disk(*_: object) -> None:
    raise sqlite3.OperationalError("database or disk is full")
