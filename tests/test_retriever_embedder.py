"""Embedders: unit vectors, windows, fingerprints, and clear errors for folders that hold no model."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from retriever_helpers import WordEncoder

from retriever.config import CollectionSettings, SplitSettings
from retriever.document import TextSource
from retriever.embedder import Embedder
from retriever.errors import EmbedderError
from retriever.hash_embedder import HashEmbedder
from retriever.retriever import Library


@given(st.lists(st.text(max_size=200), max_size=5), st.integers(1, 20))
def test_the_hash_embedder_gives_unit_vectors_and_the_same_each_time(texts: list[str], window: int):
    one, two = HashEmbedder(32, window), HashEmbedder(32, window)
    vectors = one.embed_documents(texts)
    assert len(vectors) == len(texts)
    for text, found, again in zip(texts, vectors, two.embed_documents(texts), strict=True):
        assert found.dtype == np.float32
        assert found.shape[0] >= 1
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
        assert (found == again).all()
        assert one.embed_query(text).shape == (32,)


def test_the_hash_embedder_puts_a_header_before_every_window():
    embedder = HashEmbedder(64, window_words=2)
    windows = embedder.embed_documents(["one two three four"], ["head "])[0]
    assert (windows[1] == embedder.embed_query("head three four")).all()


def test_what_is_no_model_is_said(tmp_path: Path):
    with pytest.raises(EmbedderError, match="pull it first"):
        _ = Embedder("nobody/has-this-model").fingerprint
    with pytest.raises(EmbedderError, match="no weights"):
        _ = Embedder(tmp_path).fingerprint
    with pytest.raises(EmbedderError, match=r"no modules\.json"):
        Embedder(tmp_path).embed_query("x")
    module = {"idx": 0, "name": "0", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
    (tmp_path / "modules.json").write_text(json.dumps([module]))
    with pytest.raises(EmbedderError, match="lacks its module folder '1_Pooling'"):
        Embedder(tmp_path).embed_query("x")
    (tmp_path / "1_Pooling").mkdir()
    with pytest.raises(EmbedderError, match="cannot be loaded"):
        Embedder(tmp_path).embed_query("x")


@pytest.fixture(scope="module")
def embedder(minilm: Path) -> Embedder:
    return Embedder(minilm)


@pytest.mark.model
def test_sentence_transformers_agree(embedder: Embedder):
    texts = ["An owl hunts at night.", "Eels swim to the Sargasso sea.", "word " * 100, ""]
    expected = embedder._model.encode(texts, normalize_embeddings=True)
    found = embedder.embed_documents(texts)
    assert [vectors.shape for vectors in found] == [(1, embedder.dimension)] * 4
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-5)
    np.testing.assert_allclose(embedder.embed_query(texts[0]), expected[0], atol=1e-5)


@pytest.mark.model
def test_a_long_text_is_embedded_in_windows_that_cover_it(embedder: Embedder):
    words = [f"item{n}" for n in range(600)]
    windows = embedder._windows([" ".join(words)], ["Title\n"])[0]
    assert len(windows) > 3
    assert all(window.startswith("Title\n") for window in windows)
    parts = [window.removeprefix("Title\n").split() for window in windows]
    assert set(words) <= {word for part in parts for word in part}
    assert set(parts[0]) & set(parts[1])  # they overlap
    limit = embedder._model.max_seq_length
    tokens = embedder._model.tokenizer(windows, truncation=False, verbose=False)["input_ids"]
    assert all(len(ids) <= limit + 2 for ids in tokens)  # a word cut at an edge may take another token or two
    assert len(embedder.embed_documents([" ".join(words)], ["Title\n"])[0]) == len(windows)
    crowded = embedder._windows(["short"], ["head " * 200])[0]
    assert crowded == ["short"]  # a header that would crowd the text out is left out


@pytest.mark.model
def test_the_fingerprint_is_of_the_files_and_not_of_their_place(embedder: Embedder, minilm: Path, tmp_path: Path):
    shutil.copytree(minilm, tmp_path / "copy")
    assert Embedder(tmp_path / "copy").fingerprint == embedder.fingerprint
    assert Embedder(minilm, window_overlap=8).fingerprint != embedder.fingerprint
    weights = next((tmp_path / "copy").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert Embedder(tmp_path / "copy").fingerprint != embedder.fingerprint


@pytest.mark.model
def test_queries_and_documents_may_be_embedded_at_once(embedder: Embedder):
    texts = [f"text number {n} about owls" for n in range(12)]
    expected = embedder.embed_query("owls")
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                np.testing.assert_allclose(embedder.embed_query("owls"), expected, atol=1e-5)
                assert len(embedder.embed_documents(texts)) == 12
        except BaseException as error:  # noqa: BLE001 - handed to the test's thread
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]


@pytest.mark.model
def test_search_by_meaning_over_real_text(embedder: Embedder, tmp_path: Path):
    from pydoc_data.topics import topics

    names = ["assert", "global", "with", "lambda", "import", "del", "raise", "while", "callable-types", "slicings"]
    seen = []
    embedder._progress = lambda done, total: seen.append((done, total))
    with Library.open(tmp_path, embedder=embedder) as library:
        library.create_collection("c", CollectionSettings(SplitSettings(200)))
        library.ingest("c", [TextSource(name, topics[name]) for name in names], WordEncoder())
        for question, name in (
            ("How can I put debugging assertions into a program?", "assert"),
            ("How can I delete a variable?", "del"),
            ("How do I make an anonymous function?", "lambda"),
            ("How can I signal that an error occurred?", "raise"),
            ("How are modules found and loaded?", "import"),
        ):
            assert library.search("c", question, 1)[0].passage.uri == name
    embedder._progress = None
    assert seen[-1][0] == seen[-1][1] > 0
