"""Ingests made-up documents into a folder and prints a line a step, to be killed at any moment.

Usage: retriever_ingest_child.py FOLDER DOCUMENTS VERSION
"""

import sys
from collections.abc import Callable

from retriever_helpers import WordEncoder

from retriever.config import CollectionSettings, RetrieverConfig, SplitSettings
from retriever.document import TextSource
from retriever.hash_embedder import HashEmbedder
from retriever.ingest import IngestEvent
from retriever.retriever import Library

PASSAGES_A_DOCUMENT = 4
EMBEDDER = HashEmbedder(32, window_words=12)
CONFIG = RetrieverConfig(CollectionSettings(SplitSettings(24)), batch_passages=16)


def documents(count: int, version: int) -> list[TextSource]:
    """Return the documents of a version: 2 drops every tenth one of 1, changes every third, and adds half as many."""
    first = [n for n in range(count) if version == 1 or n % 10]
    extra = range(count, count + count // 2) if version == 2 else []
    return [TextSource(f"doc/{n}", text(n, version if n % 3 == 0 else 1)) for n in [*first, *extra]]


def text(number: int, version: int) -> str:
    """Return a text of about four passages; in a changed one, two of them stay."""
    editions = ["edition", "edition", f"version{version}", f"version{version}"]
    return "\n\n".join(
        f"Part {part} of document {number} tells of subject{number * 7 + part} in {edition} words, and it goes on."
        for part, edition in enumerate(editions)
    )


def ingest(folder: str, count: int, version: int, progress: Callable[[IngestEvent], None] = lambda event: None) -> None:
    """Ingest a version of the documents, removing what it no longer has."""
    with Library.open(folder, CONFIG, embedder=EMBEDDER) as library:
        library.ensure_collection("c")
        library.ingest("c", documents(count, version), WordEncoder(), prune=True, progress=progress)


if __name__ == "__main__":
    ingest(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), lambda event: print(event.stage, flush=True))
    print("done", flush=True)
