"""Any sequence of ingestions, updates, deletes and restarts agrees with a dictionary of texts."""

import tempfile
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from retriever_helpers import WordEncoder

from retriever.config import CollectionSettings, RetrieverConfig, SplitSettings
from retriever.document import TextSource
from retriever.hash_embedder import HashEmbedder
from retriever.retriever import Library

ENCODER = WordEncoder()
EMBEDDER = HashEmbedder(64, window_words=6)
SPLIT = SplitSettings(16)

uris = st.sampled_from([f"doc{n}" for n in range(6)])
texts = st.lists(
    st.sampled_from(["owl", "vole", "ear", "night.", "moth\n\n", "bat", "newt", "eel"]), min_size=1, max_size=30
)
documents = st.dictionaries(uris, texts.map(" ".join), max_size=5)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("ingest"), documents),
        st.tuples(st.just("prune"), documents),
        st.tuples(st.just("delete"), uris),
        st.tuples(st.just("restart"), st.none()),
        st.tuples(st.just("rebuild"), st.none()),
    ),
    max_size=8,
)


@dataclass
class Oracle:
    """What the library should hold."""

    texts: dict[str, str] = field(default_factory=dict)

    def ingest(self, new: dict[str, str], *, prune: bool) -> tuple[int, int, int, int]:
        added = len(new.keys() - self.texts.keys())
        updated = sum(self.texts.get(uri, text) != text for uri, text in new.items())
        removed = self.texts.keys() - new.keys() if prune else set()
        self.texts = {uri: text for uri, text in self.texts.items() if uri not in removed} | new
        return added, updated, len(new) - added - updated, len(removed)


def check(library: Library, oracle: Oracle, factory: str) -> None:
    library.check_invariants("c")
    assert {document.uri for document in library.documents("c")} == oracle.texts.keys()
    passages = library.passages("c")
    assert len({passage.label for passage in passages}) == len(passages)
    for document in library.documents("c"):
        assert library.document_text("c", document.id) == oracle.texts[document.uri]
        found = " ".join(p.text for p in passages if p.document_id == document.id)
        assert found.split() == oracle.texts[document.uri].split()
    if not oracle.texts:
        assert library.search("c", "owl") == []
        return
    for question in ("owl night", "newt eel moth"):
        query = EMBEDDER.embed_query(question)
        headers = [" > ".join((p.title, *p.heading_path)) + "\n" for p in passages]
        windows = EMBEDDER.embed_documents([p.text for p in passages], headers)
        expected = sorted((float((w @ query).max()) for w in windows), reverse=True)
        hits = library.search("c", question, 4)
        np.testing.assert_allclose([hit.score for hit in hits], expected[:4], atol=1e-5)
        assert all(hit.passage in passages for hit in hits)


@pytest.mark.parametrize("factory", ["Flat", "HNSW8,Flat", "IVF1,Flat"])
@given(operations)
@settings(max_examples=25, deadline=None)
def test_any_sequence_agrees_with_a_dictionary(factory: str, steps):
    config = RetrieverConfig(CollectionSettings(SPLIT, factory), batch_passages=3)
    oracle = Oracle()
    with tempfile.TemporaryDirectory() as folder:
        library = Library.open(folder, config, embedder=EMBEDDER)
        library.create_collection("c")
        for action, argument in steps:
            if action in ("ingest", "prune"):
                prune = action == "prune"
                items = [TextSource(uri, text) for uri, text in argument.items()]
                report = library.ingest("c", items, ENCODER, prune=prune)
                counts = (report.added, report.updated, report.unchanged, report.removed)
                assert counts == oracle.ingest(argument, prune=prune)
                assert not report.skipped
            elif action == "delete" and argument in oracle.texts:
                found = next(document for document in library.documents("c") if document.uri == argument)
                library.delete_document("c", found.id)
                del oracle.texts[argument]
            elif action == "restart":
                library.close()
                library = Library.open(folder, config, embedder=EMBEDDER)
            elif action == "rebuild":
                library.rebuild_index("c")
            check(library, oracle, factory)
        library.close()
