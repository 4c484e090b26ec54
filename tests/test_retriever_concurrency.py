"""Searches run while documents are ingested, updated and deleted, and each sees one committed state."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from retriever_helpers import WordEncoder

from retriever.config import CollectionSettings, RetrieverConfig
from retriever.document import TextSource
from retriever.errors import UnknownCollectionError
from retriever.hash_embedder import HashEmbedder
from retriever.ingest import Ingestion
from retriever.retriever import Library


@pytest.fixture(autouse=True)
def frequent_switches():
    """Switch threads often, so that races show."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def run_together(actions: list[Callable[[], None]], stop: threading.Event) -> list[BaseException]:
    """Run the first action to its end and the others again and again meanwhile; return what they raised."""
    errors: list[BaseException] = []

    def repeat(action: Callable[[], None]) -> None:
        try:
            while not stop.is_set():
                action()
        except BaseException as error:  # noqa: BLE001 - handed to the test's thread
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=(action,)) for action in actions[1:]]
    for thread in threads:
        thread.start()
    try:
        actions[0]()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return errors


@pytest.mark.parametrize("factory", ["Flat", "HNSW8,Flat", "IVF2,Flat"])
def test_searches_see_whole_versions_during_updates_and_rebuilds(factory: str, tmp_path: Path):
    config = RetrieverConfig(CollectionSettings(index_factory=factory), batch_passages=8, rebuild_dead_fraction=0.1)
    names = [f"name{n}" for n in range(12)]
    searches = 0

    def version(number: int) -> list[TextSource]:
        return [TextSource(name, f"{name} says version{number} of everything") for name in names]

    with Library.open(tmp_path, config, embedder=HashEmbedder(64)) as library:
        library.create_collection("c")
        library.ingest("c", version(0), WordEncoder())

        def write() -> None:
            for number in range(1, 25):
                library.ingest("c", version(number), WordEncoder())

        def search() -> None:
            nonlocal searches
            hits = library.search("c", "everything", 12)
            assert sorted(hit.passage.uri for hit in hits) == sorted(names)  # each document in one version
            assert all(hit.passage.uri in hit.passage.text for hit in hits)
            searches += 1

        errors = run_together([write, search, search, search], threading.Event())
        assert not errors, errors[0]
        assert searches > 20
        assert all("version24 " in passage.text for passage in library.passages("c"))
        library.check_invariants("c")


def test_a_document_is_never_found_after_its_delete_returned(tmp_path: Path):
    deleted: set[str] = set()
    with Library.open(tmp_path, RetrieverConfig(batch_passages=16), embedder=HashEmbedder(64)) as library:
        library.create_collection("c")
        sources = [TextSource(f"doc{n}", f"words of document {n}") for n in range(150)]

        def write() -> None:
            library.ingest("c", sources, WordEncoder())

        def delete_first() -> None:
            for document in library.documents("c")[:1]:
                library.delete_document("c", document.id)
                deleted.add(document.id)

        def search() -> None:
            before = set(deleted)
            found = {hit.passage.document_id for hit in library.search("c", "words of document", 150)}
            assert not found & before

        errors = run_together([write, delete_first, search, search], threading.Event())
        assert not errors, errors[0]
        assert deleted
        assert len(library.documents("c")) == 150 - len(deleted)
        library.check_invariants("c")


def test_two_ingestions_of_one_collection_at_once(tmp_path: Path):
    with Library.open(tmp_path, RetrieverConfig(batch_passages=4), embedder=HashEmbedder(64)) as library:
        library.create_collection("c")
        halves = [[TextSource(f"doc{n}", f"text {n}") for n in range(start, start + 80)] for start in (0, 40)]
        threads = [threading.Thread(target=library.ingest, args=("c", half, WordEncoder())) for half in halves]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(library.documents("c")) == 120
        assert len({passage.label for passage in library.passages("c")}) == 120
        assert len(library.search("c", "text", 200)) == 120
        library.check_invariants("c")


def test_a_collection_deleted_during_its_ingestion_ends_it_with_a_clear_error(tmp_path: Path):
    with Library.open(tmp_path, RetrieverConfig(batch_passages=2), embedder=HashEmbedder(64)) as library:
        library.create_collection("c")

        def delete_once(event) -> None:
            if event.passages == 4:
                library.delete_collection("c")
                library.create_collection("c")

        sources = [TextSource(f"doc{n}", f"text {n}") for n in range(20)]
        with pytest.raises(UnknownCollectionError, match="deleted meanwhile"):
            library.ingest("c", sources, WordEncoder(), progress=delete_once)
        assert library.documents("c") == []
        assert library.search("c", "text") == []


def test_a_document_deleted_while_its_update_is_embedded_gets_its_vectors_anew(tmp_path: Path):
    with Library.open(tmp_path, embedder=HashEmbedder(64)) as library:
        library.create_collection("c")
        library.ingest("c", [TextSource("a", "alpha")], WordEncoder())
        bind = Ingestion._bind
        deleted = []

        def delete_then_bind(self, collection, vectors):
            if not deleted:
                deleted.append(library.delete_document("c", library.documents("c")[0].id))
            return bind(self, collection, vectors)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Ingestion, "_bind", delete_then_bind)
            library.ingest("c", [TextSource("a", "alpha")], WordEncoder("words-2"))
        assert deleted
        assert library.search("c", "alpha", 1)[0].passage.encoder_fingerprint == "words-2"
        library.check_invariants("c")
