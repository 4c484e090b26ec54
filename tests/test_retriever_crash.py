"""An ingestion that is killed with SIGKILL again and again ends in the same store as one that is left alone."""

import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import retriever_ingest_child as child

from retriever.retriever import Library


def dump(folder: Path) -> dict[str, list[tuple[object, ...]]]:
    """Return everything that is stored, without times and internal row numbers."""
    queries = {
        "documents": "SELECT id, uri, title, content_hash, text, num_characters, encoder_fingerprint FROM documents",
        "passages": "SELECT p.id, d.id, ordinal, label, p.text, start_offset, end_offset, page, heading_path,"
        " token_ids, p.encoder_fingerprint FROM passages p JOIN documents d ON d.key = p.document_key",
        "vectors": "SELECT id, passage_id, window, data FROM vectors",
        "collections": "SELECT name, settings, embedder_fingerprint, embedder_name, dimension FROM collections",
    }
    connection = sqlite3.connect(folder / "library.sqlite3")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    found = {name: sorted(connection.execute(query)) for name, query in queries.items()}
    connection.close()
    return found


def run_and_kill(folder: Path, count: int, rng: random.Random) -> bool:
    """Start an ingestion of version 2, kill it at a random moment, and tell whether it was killed in time."""
    command = [sys.executable, child.__file__, str(folder), str(count), "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        finished = False
        if rng.random() < 0.9:  # else even before the first step
            for _ in range(rng.randrange(1, count // 3)):
                line = process.stdout.readline()
                finished = finished or line in ("done\n", "")
        time.sleep(rng.random() * 0.03)
        process.send_signal(signal.SIGKILL)
        process.stdout.read()
    return not finished and process.returncode == -signal.SIGKILL


def check_after_kill(folder: Path, count: int, k: int) -> None:
    """Open the library, check it, and check that each document is in its old or its new version."""
    old = {source.uri: source.text for source in child.documents(count, 1)}
    new = {source.uri: source.text for source in child.documents(count, 2)}
    with Library.open(folder, child.CONFIG, embedder=child.EMBEDDER) as library:
        library.check_invariants("c")
        for document in library.documents("c"):
            assert library.document_text("c", document.id) in (old.get(document.uri), new.get(document.uri))
        hits = library.search("c", "document tells of words", k)
        assert len(hits) == k
        assert library.passages("c", hits[0].passage.document_id)


@pytest.mark.parametrize(("passages", "kills"), [(300, 5), (2000, 10)])
def test_killed_and_resumed_equals_undisturbed(passages: int, kills: int, tmp_path: Path):
    count = passages * 3 // 4 // child.PASSAGES_A_DOCUMENT + 1  # version 2 has 1.4 times as many
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    for folder in (killed, undisturbed):
        child.ingest(str(folder), count, 1)
    assert dump(killed) == dump(undisturbed)
    child.ingest(str(undisturbed), count, 2)
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    sys.stdout.write(f"seed {seed}\n")
    in_time = 0
    for _ in range(kills):
        in_time += run_and_kill(killed, count, rng)
        check_after_kill(killed, count, 10)
    assert in_time >= kills // 2, "the ingestion ended before it was killed"
    child.ingest(str(killed), count, 2)
    expected = dump(undisturbed)
    assert len(expected["passages"]) >= passages
    found = dump(killed)
    assert found == expected
    with (
        Library.open(killed, child.CONFIG, embedder=child.EMBEDDER) as one,
        Library.open(undisturbed, child.CONFIG, embedder=child.EMBEDDER) as two,
    ):
        for number in range(0, count, 10):
            question = f"subject{number * 7} of document {number}"
            assert one.search("c", question, 5) == two.search("c", question, 5)
