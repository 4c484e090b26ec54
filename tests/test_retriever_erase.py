"""Nothing of an erased document is left in the files of the library: no text, no vector; and erasing is cheap."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from retriever_helpers import CountingEmbedder, WordEncoder

from retriever.config import CollectionSettings
from retriever.document import TextSource
from retriever.errors import StoreError
from retriever.retriever import Library
from retriever.store import ZEROED_SINCE, Store, migrate, migrations

SECRET = "zanzibarite"
NUM_DOCUMENTS = 30


def text_of(number: int, version: int) -> str:
    """Enough for rows of many pages and for some that share one with others; a word of its own for each version."""
    words = " ".join(f"filler{number}x{i}" for i in range(5 + 40 * (number % 7)))
    return f"{SECRET}{number}v{version} begins. {words} {SECRET}{number}v{version} ends."


def fill(library: Library, version: int) -> None:
    sources = [
        TextSource(f"u:{SECRET}{n}v", text_of(n, version), f"{SECRET}{n}v{version}") for n in range(NUM_DOCUMENTS)
    ]
    library.ingest("c", sources, WordEncoder())


def files_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def is_there(folder: Path, number: int) -> bool:
    """Whether any version of a document has left a trace; sqlite keeps text as UTF-8."""
    return f"{SECRET}{number}v".encode() in files_of(folder)


def erase(library: Library, number: int) -> None:
    document = next(row for row in library.documents("c") if row.uri == f"u:{SECRET}{number}v")
    library.delete_document("c", document.id, erase=True)
    library.rebuild_index("c")
    library.store.erase_deleted()


@pytest.mark.parametrize("factory", ["Flat", "HNSW8"])
def test_no_text_and_no_vector_is_left(tmp_path: Path, factory: str) -> None:
    with Library.open(tmp_path, embedder=CountingEmbedder()) as library:
        library.ensure_collection("c", CollectionSettings(index_factory=factory))
        for version in range(3):  # old versions leave rows behind, too
            fill(library, version)
        for number in (3, 6, 17, 27):
            with library.store.read() as reader:
                row = reader.collection("c")
                document = next(d for d in reader.documents(row) if d.uri == f"u:{SECRET}{number}v")
                own = [passage.id for passage in reader.passages(row, document.id)]
                vectors = np.concatenate(list(reader.vectors_of_passages(own).values()))
            assert is_there(tmp_path, number)
            erase(library, number)
            assert not is_there(tmp_path, number)
            content = files_of(tmp_path)
            assert not any(vector.tobytes() in content for vector in vectors)
        assert all(is_there(tmp_path, number) for number in (0, 5, 29)), "the others are still there"
        assert library.index_status("c")["dead"] == 0
        library.check_invariants("c")
        fill(library, 2)
        assert is_there(tmp_path, 17), "it can be ingested again"


def test_what_an_older_program_left_behind_is_removed_once(tmp_path: Path) -> None:
    path = tmp_path / "library.sqlite3"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA secure_delete = OFF")
    migrate(connection, migrations()[: ZEROED_SINCE - 1])
    connection.execute("INSERT INTO collections (name, settings) VALUES (?, '{}')", (f"{SECRET}0v",))
    connection.execute("DELETE FROM collections")
    connection.close()
    assert is_there(tmp_path, 0)
    store = Store(path)
    store.erase_deleted()
    assert not is_there(tmp_path, 0)
    store.close()


def test_a_read_that_goes_on_is_waited_for_and_told(tmp_path: Path) -> None:
    with Library.open(tmp_path, embedder=CountingEmbedder()) as library:
        library.ensure_collection("c")
        fill(library, 0)
        with library.store.read() as reader:
            reader.collections()
            fill(library, 1)
            with pytest.raises(StoreError, match="still read"):
                library.store.erase_deleted(patience=0)
            assert reader.collection("c").generation == 1, "nobody is disturbed"
        library.store.erase_deleted()
        assert (tmp_path / "library.sqlite3-wal").stat().st_size == 0


def test_an_index_file_that_was_being_erased_is_made_anew(tmp_path: Path) -> None:
    with Library.open(tmp_path, embedder=CountingEmbedder()) as library:
        library.ensure_collection("c")
        fill(library, 0)
        expected = [hit.passage.id for hit in library.search("c", "filler3x1", 3)]
    (path,) = (tmp_path / "indexes").glob("*.faiss")
    path.write_bytes(bytes(path.stat().st_size))
    with Library.open(tmp_path, embedder=CountingEmbedder()) as library:
        assert [hit.passage.id for hit in library.search("c", "filler3x1", 3)] == expected


def test_looking_for_equal_passages_does_not_read_the_collection(tmp_path: Path) -> None:
    def steps(library: Library) -> int:
        with library.store.read() as reader:
            row = reader.collection("c")
            document = reader.documents(row)[0].id
            counted: list[int] = []
            reader.connection.set_progress_handler(lambda: counted.append(1), 10)
            assert reader.twins(row, document) == {}
            reader.connection.set_progress_handler(None, 0)
            return len(counted)

    with Library.open(tmp_path, embedder=CountingEmbedder()) as library:
        library.ensure_collection("c")
        fill(library, 0)
        few = steps(library)
        more = [TextSource(f"v:{n}", f"note {n} about the number {n}", str(n)) for n in range(300)]
        library.ingest("c", more, WordEncoder())
        assert steps(library) <= few + 2
