"""Stored KV lives and dies with its passages: rows first, records of dead keys removed, nothing left behind."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from retriever_helpers import CountingEmbedder, WordEncoder

from engine.kv_store import ExtentStore
from engine.prompt import Segment, SegmentKind
from rag.errors import PurgeError
from rag.living_store import EXPECTED_CLAIMS, LivingStore, claims_of, namespace_of
from retriever.derived import Claim, DeadKey
from retriever.document import Passage, TextSource
from retriever.errors import StoreError
from retriever.retriever import Library

TOKENS = (1, 2, 3)
PAYLOAD = bytes(range(256)) * 20
TEXTS = {"u:1": "Owls hunt at night.", "u:2": "Bats sleep by day."}


def key_of(name: str) -> bytes:
    return name.encode().ljust(32, b"\0")


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    with Library.open(tmp_path / "library", embedder=CountingEmbedder()) as library:
        library.ensure_collection("c")
        library.ingest("c", [TextSource(uri, text, "t") for uri, text in TEXTS.items()], WordEncoder())
        yield library


@pytest.fixture
def records(tmp_path: Path) -> Iterator[ExtentStore]:
    store = ExtentStore(tmp_path / "kv", capacity_bytes=2**22)
    yield store
    store.close()


@pytest.fixture
def store(library: Library, records: ExtentStore) -> LivingStore:
    return LivingStore(records, library.derived)


def passage_at(library: Library, uri: str) -> Passage:
    return next(passage for passage in library.passages("c") if passage.uri == uri)


def claim(library: Library, uri: str, name: str) -> Claim:
    return Claim(key_of(name), library.collection("c").id, passage_at(library, uri).id)


def put(store: LivingStore, name: str) -> bool:
    return store.put(key_of(name), TOKENS, memoryview(PAYLOAD), "float16")


def test_what_a_passage_is_expected_to_need_is_kept_and_claimed(library: Library, store: LivingStore) -> None:
    store.expect([claim(library, "u:1", "a")])
    assert not library.derived.living([key_of("a")]), "no answer waits for the database"
    assert put(store, "a")
    assert library.derived.living([key_of("a")])
    found = bytearray(len(PAYLOAD))
    assert store.get(key_of("a"), TOKENS, [memoryview(found)])
    assert found == PAYLOAD
    assert key_of("a") in store
    assert store.keys() == [key_of("a")]
    assert store.stats().records == 1


def test_what_nobody_needs_is_declined(library: Library, store: LivingStore) -> None:
    assert not put(store, "stranger")
    store.expect([claim(library, "u:1", "late")])
    library.delete_document("c", passage_at(library, "u:1").document_id)
    assert not put(store, "late"), "its passage was deleted while its KV was computed"
    assert store.keys() == []


def test_a_key_that_was_claimed_before_needs_no_expectation(library: Library, store: LivingStore) -> None:
    library.derived.claim([claim(library, "u:1", "a")])
    assert put(store, "a")


def test_records_of_deleted_passages_are_removed(library: Library, store: LivingStore) -> None:
    store.expect([claim(library, "u:1", "a"), claim(library, "u:2", "b"), claim(library, "u:1", "both")])
    assert all(put(store, name) for name in ("a", "b", "both"))
    library.derived.claim([claim(library, "u:2", "both")])
    library.delete_document("c", passage_at(library, "u:1").document_id)
    assert len(store.keys()) == 3, "not yet"
    store.clean()
    assert set(store.keys()) == {key_of("b"), key_of("both")}
    assert library.derived.dead() == []


def test_what_must_be_erased_leaves_no_copy(library: Library, store: LivingStore, tmp_path: Path) -> None:
    store.expect([claim(library, "u:1", "a"), claim(library, "u:2", "b")])
    assert put(store, "a")
    assert put(store, "b")
    report = store.erase(library.delete_document("c", passage_at(library, "u:1").document_id, erase=True).keys)
    assert (report.erased, report.absent) == (1, True)
    assert report.scanned_bytes >= len(PAYLOAD)
    content = b"".join(file.read_bytes() for file in (tmp_path / "kv").iterdir() if file.is_file())
    assert key_of("a") not in content
    assert key_of("b") in content
    assert library.derived.dead() == []


class FullDisk(ExtentStore):
    """A store on a disk that fails while `fails` is set."""

    fails = True

    def delete(self, *keys: bytes) -> int:
        if self.fails:
            raise OSError("the disk has failed")
        return super().delete(*keys)

    def purge(self, keys):
        if self.fails:
            raise OSError("the disk has failed")
        return super().purge(keys)


def test_what_the_disk_does_not_let_go_is_tried_again(library: Library, tmp_path: Path, caplog) -> None:
    disk = FullDisk(tmp_path / "bad", capacity_bytes=2**22)
    store = LivingStore(disk, library.derived)
    store.expect([claim(library, "u:1", "a"), claim(library, "u:2", "b")])
    assert put(store, "a")
    assert put(store, "b")
    library.delete_document("c", passage_at(library, "u:1").document_id)
    store.clean()
    assert "tried again" in caplog.text
    erasure = library.delete_document("c", passage_at(library, "u:2").document_id, erase=True)
    assert erasure.keys == {key_of("b")}
    with pytest.raises(PurgeError, match="tried again with every delete"):
        store.erase(erasure.keys)
    assert set(library.derived.dead()) == {DeadKey(key_of("a"), erase=False), DeadKey(key_of("b"), erase=True)}
    store.sweep()
    assert len(store.keys()) == 2
    disk.fails = False
    store.clean()
    assert store.keys() == []
    assert library.derived.dead() == []
    disk.close()


def test_what_is_to_be_erased_is_not_forgotten_before_every_file_was_read(library: Library, tmp_path: Path) -> None:
    """Neither by the purge, nor by a later clean-up, nor as an orphan after the disk was mended."""
    folder = tmp_path / "other"
    disk = ExtentStore(folder, capacity_bytes=2**22)
    store = LivingStore(disk, library.derived)
    store.expect([claim(library, "u:1", "a")])
    assert put(store, "a")
    disk.close()
    (extent,) = folder.glob("extent-*")
    content = extent.read_bytes()
    extent.unlink()
    extent.symlink_to("nowhere")  # cannot be opened
    disk = ExtentStore(folder, capacity_bytes=2**22)
    store = LivingStore(disk, library.derived)
    assert not store.erase(library.delete_document("c", passage_at(library, "u:1").document_id, erase=True).keys).absent
    store.clean()
    assert library.derived.dead() == [DeadKey(key_of("a"), erase=True)]
    disk.close()

    extent.unlink()
    extent.write_bytes(content)
    disk = ExtentStore(folder, capacity_bytes=2**22)
    store = LivingStore(disk, library.derived)
    store.sweep()
    assert store.keys() == [key_of("a")], "it is no orphan: it is to be overwritten"
    store.clean()
    assert (store.keys(), library.derived.dead()) == ([], [])
    disk.close()


def test_records_that_no_row_names_are_swept(library: Library, records: ExtentStore, store: LivingStore) -> None:
    library.derived.claim([claim(library, "u:1", "a")])
    for name in ("a", "orphan 1", "orphan 2"):
        assert records.put(key_of(name), TOKENS, memoryview(PAYLOAD), "float16")
    store.sweep()
    assert store.keys() == [key_of("a")]


def test_a_database_that_cannot_be_written_costs_only_the_record(library: Library, store: LivingStore, caplog) -> None:
    class Failing:
        def living(self, keys):
            return library.derived.living(keys)

        def claim(self, claims):
            raise StoreError("the disk is full")

    failing = LivingStore(store, Failing())
    failing.expect([claim(library, "u:1", "a")])
    assert not put(failing, "a")
    assert "the disk is full" in caplog.text


def test_expectations_are_bounded(library: Library, store: LivingStore) -> None:
    wanted = claim(library, "u:1", "a")
    store.expect([wanted])
    store.expect(
        [Claim(number.to_bytes(32), wanted.collection_id, wanted.passage_id) for number in range(EXPECTED_CLAIMS)]
    )
    assert not put(store, "a")


def test_the_template_belongs_to_the_collection_and_passages_to_themselves() -> None:
    class Identity:
        def key(self, namespace, template, passage):
            return repr((namespace, template, passage)).encode()

    head = Segment((7, 8), SegmentKind.TEMPLATE)
    passages = [Segment((1,), SegmentKind.PASSAGE, "11"), Segment((2,), SegmentKind.PASSAGE, "-12")]
    claims = claims_of(Identity(), 3, head, passages)
    assert [(claim.collection_id, claim.passage_id) for claim in claims] == [(3, None), (3, 11), (3, -12)]
    assert claims[0].key == repr((namespace_of(3), (7, 8), ())).encode()
    assert claims[2].key == repr((namespace_of(3), (7, 8), (2,))).encode()
