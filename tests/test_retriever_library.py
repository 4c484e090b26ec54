"""The library from sources to hits: idempotent, updating, pruning, and clear about what cannot be."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from retriever_helpers import CountingEmbedder, WordEncoder, make_docx, make_pdf

import retriever
from retriever import (
    BytesSource,
    CollectionSettings,
    FileSource,
    HashEmbedder,
    IngestEvent,
    IngestReport,
    Library,
    RetrieverConfig,
    SplitSettings,
    Stage,
    TextSource,
    sources_from_paths,
)
from retriever.errors import (
    CollectionExistsError,
    EmbedderError,
    EmbedderMismatchError,
    PassageEncoderError,
    QueryError,
    SettingsError,
    SettingsMismatchError,
    StoreError,
    UnknownCollectionError,
    UnknownDocumentError,
)

NIGHT = "Owls hunt at night. They eat voles. " * 9
EARS = "Their ears sit at different heights. " * 9
OWLS = f"# Owls\n\n{NIGHT}\n\n## Ears\n\n{EARS}"


def sources(**texts: str) -> list[TextSource]:
    return [TextSource(name, text) for name, text in texts.items()]


@pytest.fixture
def embedder() -> CountingEmbedder:
    return CountingEmbedder(256, window_words=20)


@pytest.fixture
def library(tmp_path: Path, embedder: CountingEmbedder):
    settings = CollectionSettings(SplitSettings(32))
    with Library.open(tmp_path, RetrieverConfig(settings, batch_passages=4), embedder=embedder) as library:
        library.create_collection("c")
        yield library


def test_from_files_of_every_format_to_hits_with_their_place(tmp_path: Path):
    files = {
        "owls.md": OWLS.encode(),
        "page.html": b"<title>Bats</title><h1>Bats</h1><p>Bats find moths by echo.",
        "eels.pdf": make_pdf(["Opening words. " * 10, "Eels swim to the Sargasso sea."], "On eels"),
        "guide.docx": make_docx(),
        "notes.rst": b"Notes\n=====\n\nNewts regrow lost limbs.",
        "tool.py": b"def croak(frog):\n    return 'quark'\n",
        "broken.pdf": b"%PDF-1.4 nonsense",
        "locked.pdf": make_pdf(["x"], password="secret"),
        "noise.txt": bytes(range(256)),
        "empty.txt": b"",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with Library.open(tmp_path / "data", embedder=HashEmbedder(512)) as library:
        library.create_collection("c", CollectionSettings(SplitSettings(32)))
        report = library.ingest("c", sources_from_paths([*(tmp_path / name for name in files)]), WordEncoder())
        assert (report.added, report.updated, report.unchanged) == (6, 0, 0)
        assert {Path(uri).name for uri, _ in report.skipped} == {"broken.pdf", "locked.pdf", "noise.txt", "empty.txt"}
        assert all(Path(uri).name in reason for uri, reason in report.skipped)
        library.check_invariants("c")
        for question, name, title, page in (
            ("echo moths", "page.html", "Bats", None),
            ("Sargasso sea", "eels.pdf", "On eels", 2),
            ("heart-shaped face", "guide.docx", "Field guide", None),
            ("newts limbs", "notes.rst", "Notes", None),
            ("def croak frog", "tool.py", "tool", None),
        ):
            passage = library.search("c", question, 1)[0].passage
            assert (Path(passage.uri).name, passage.title, passage.page) == (name, title, page)
            text = library.document_text("c", passage.document_id)
            assert text[passage.start : passage.end] == passage.text
        owls = library.search("c", "ears different heights", 1)[0].passage
        assert owls.heading_path[-1:] == ("Ears",)
        assert owls.title == "Owls"
        assert "Owls" not in owls.heading_path  # the title is not said twice


def test_what_a_passage_holds(library: Library):
    library.ingest("c", sources(owls=OWLS), WordEncoder())
    passages = library.passages("c")
    document = library.documents("c")[0]
    assert document.num_passages == len(passages) > 4
    assert document.num_tokens == sum(len(passage.token_ids) for passage in passages)
    assert len(document.id) == 16
    assert library.document("c", document.id) == document
    assert len({p.id for p in passages}) == len({p.label for p in passages}) == len(passages)
    for passage in passages:
        assert 0 < passage.id < 2**63
        assert set(passage.label) <= set("abcdefghijklmnopqrstuvwxyz234567")
        assert len(passage.label) >= 4
        assert passage.encoder_fingerprint == "words-1"
        assert library.living(library.collection("c"), [passage.id])[1] == {passage.id: passage}
        draft = retriever.PassageDraft(passage.label, passage.title, passage.heading_path, passage.text)
        assert list(passage.token_ids) == WordEncoder().encode([draft])[0]
    assert list(library.iter_passages("c")) == passages


def test_ingesting_again_changes_nothing_and_embeds_nothing(library: Library, embedder: CountingEmbedder):
    texts = {f"d{n}": f"Text number {n}. " * 5 for n in range(20)}
    library.ingest("c", sources(**texts), WordEncoder())
    before, embedded = library.passages("c"), embedder.embedded
    generation = library.collection("c").generation
    assert library.ingest("c", sources(**texts), WordEncoder()) == IngestReport(unchanged=20)
    assert library.passages("c") == before
    assert embedder.embedded == embedded
    assert library.collection("c").generation == generation


def test_a_changed_document_replaces_its_passages_and_keeps_those_that_stay(
    library: Library, embedder: CountingEmbedder
):
    kept = "# Kept\n\n" + "This section stays as it is, word for word. " * 2
    library.ingest("c", sources(a=f"{kept}\n\n# Old\n\nAncient dodo lore. ", b="Other."), WordEncoder())
    before = {p.text: p for p in library.passages("c")}
    embedder.embedded = 0
    report = library.ingest("c", sources(a=f"{kept}\n\n# New\n\nFresh phoenix news. ", b="Other."), WordEncoder())
    assert (report.added, report.updated, report.unchanged, report.removed) == (0, 1, 1, 0)
    after = {p.text: p for p in library.passages("c")}
    same = before.keys() & after.keys()
    assert any("stays as it is" in text for text in same)
    assert all(before[text].id == after[text].id and before[text].label == after[text].label for text in same)
    assert embedder.embedded == len(after.keys() - before.keys()) > 0
    assert all("dodo" not in hit.passage.text for hit in library.search("c", "ancient dodo lore", 10))
    assert "phoenix" in library.search("c", "fresh phoenix news", 1)[0].passage.text
    library.check_invariants("c")


def test_prune_removes_what_is_gone_and_only_below_its_scope(library: Library):
    library.ingest("c", sources(**{"x/1": "one", "x/2": "two", "y/1": "three"}), WordEncoder())
    assert library.ingest("c", sources(**{"x/1": "one"}), WordEncoder()).removed == 0
    report = library.ingest("c", sources(**{"x/1": "one"}), WordEncoder(), prune=True, scope=["x/"])
    assert (report.removed, report.unchanged) == (1, 1)
    assert [document.uri for document in library.documents("c")] == ["x/1", "y/1"]
    assert library.ingest("c", [], WordEncoder(), prune=True).removed == 2
    assert library.documents("c") == []
    assert library.search("c", "one") == []


def test_a_source_that_broke_keeps_its_old_version_even_when_pruning(library: Library):
    library.ingest("c", [BytesSource("a.txt", b"good text")], WordEncoder())
    report = library.ingest("c", [BytesSource("a.txt", b"\x00\x01bad")], WordEncoder(), prune=True)
    assert (len(report.skipped), report.removed) == (1, 0)
    assert library.search("c", "good text", 1)[0].passage.text == "good text"


def test_file_names_that_are_not_utf8_are_kept_apart_and_found_again(library: Library, tmp_path: Path):
    names = [b"caf\xe9.txt", b"caf\xe8.txt"]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_text(f"The text of {name!r}.")
    paths = [tmp_path / os.fsdecode(name) for name in names]
    assert library.ingest("c", sources_from_paths(paths), WordEncoder()).added == 2
    assert library.ingest("c", sources_from_paths(paths), WordEncoder()).unchanged == 2
    assert [document.uri for document in library.documents("c")] == [
        str(tmp_path.resolve() / "caf\\xe8.txt"), str(tmp_path.resolve() / "caf\\xe9.txt"),
    ]  # fmt: skip
    paths[0].unlink()
    assert "caf\\xe9.txt" in library.ingest("c", [FileSource(paths[0])], WordEncoder()).skipped[0][1]


def test_the_last_of_two_sources_with_one_uri_wins(library: Library):
    report = library.ingest("c", [TextSource("a", "first"), TextSource("a", "second")], WordEncoder())
    assert (report.added, report.updated) == (1, 1)
    assert [passage.text for passage in library.passages("c")] == ["second"]


def test_equal_texts_and_equal_files_are_told_apart(library: Library):
    twice = "# A\n\n" + "Same words again and again, all the same here today. " * 3
    library.ingest("c", sources(a=f"{twice}\n\n{twice}\n\n{twice}", b=twice), WordEncoder())
    passages = library.passages("c")
    assert len({p.text for p in passages}) < len(passages) == len({p.id for p in passages})
    assert {hit.passage.uri for hit in library.search("c", "same words", len(passages))} == {"a", "b"}


def test_labels_grow_where_shorter_ones_are_taken_and_stay_with_their_passage(tmp_path: Path, monkeypatch):
    from retriever import drafts

    monkeypatch.setattr(drafts, "MIN_LABEL", 1)
    with Library.open(tmp_path, embedder=HashEmbedder()) as library:
        library.create_collection("c")
        library.ingest("c", sources(**{f"d{n}": f"text {n}" for n in range(200)}), WordEncoder())
        labels = {p.uri: p.label for p in library.passages("c")}
        assert len(set(labels.values())) == 200
        assert {len(label) for label in labels.values()} >= {1, 2}
        gone = next(p for p in library.passages("c") if len(p.label) == 1)
        library.delete_document("c", gone.document_id)
        library.ingest("c", sources(**{f"d{n}": f"text {n}" for n in range(200)}), WordEncoder("words-2"))
        again = {p.uri: p.label for p in library.passages("c")}
        assert {uri for uri in labels if labels[uri] != again[uri]} == set()


def test_another_passage_encoder_gives_new_tokens_without_new_vectors(library: Library, embedder: CountingEmbedder):
    library.ingest("c", sources(owls=OWLS, b="Other."), WordEncoder())
    embedder.embedded = 0
    report = library.ingest("c", sources(owls=OWLS, b="Other."), WordEncoder("words-2"))
    assert (report.updated, embedder.embedded) == (2, 0)
    assert {p.encoder_fingerprint for p in library.passages("c")} == {"words-2"}
    library.check_invariants("c")


def test_a_long_passage_owns_several_vectors_and_is_found_once_with_its_best(tmp_path: Path):
    words = [f"word{n}" for n in range(100)]
    with Library.open(tmp_path, embedder=HashEmbedder(512, window_words=10)) as library:
        library.create_collection("c")
        library.ingest("c", sources(long=" ".join(words), other="nothing of the kind"), WordEncoder())
        assert library.index_status("c")["vectors"] == 11
        hits = library.search("c", " ".join(words[50:60]), 5)
        assert [hit.passage.uri for hit in hits] == ["long", "other"]
        alone = HashEmbedder(512, 10).embed_documents([" ".join(words[50:60])], ["long\n"])[0][0]
        assert hits[0].score == pytest.approx(float(alone @ library.embed_query(" ".join(words[50:60]))), abs=1e-5)


def test_k_passages_are_found_however_many_vectors_a_passage_has(tmp_path: Path):
    with Library.open(tmp_path, embedder=HashEmbedder(64, window_words=1)) as library:
        library.create_collection("c", CollectionSettings(SplitSettings(512)))
        many = " ".join(["apple"] * 400)
        library.ingest("c", sources(many=many, one="apple pie", two="apple tart"), WordEncoder())
        assert {hit.passage.uri for hit in library.search("c", "apple", 3)} == {"many", "one", "two"}


def test_progress_tells_each_step_and_the_total(library: Library):
    events: list[IngestEvent] = []
    items = [*sources(**{f"d{n}": f"text {n}" for n in range(6)}), BytesSource("bad", b"\x00")]
    library.ingest("c", items, WordEncoder(), progress=events.append)
    stages = [event.stage for event in events]
    assert stages.count(Stage.EXTRACTED) == 6
    assert stages.count(Stage.COMMITTED) == 2  # batches of four passages
    assert [event.uri for event in events if event.stage is Stage.SKIPPED] == ["bad"]
    assert {event.total for event in events} == {7}
    assert max(event.documents for event in events) == 7
    assert events[-1].passages == 6
    added = [passage_id for event in events for passage_id in event.passage_ids]
    assert sorted(added) == sorted(passage.id for passage in library.passages("c"))
    events.clear()
    library.ingest("c", iter(items), WordEncoder(), progress=events.append)
    assert {event.stage for event in events} == {Stage.UNCHANGED, Stage.SKIPPED}
    assert {event.total for event in events} == {None}


def test_an_interruption_keeps_what_was_committed_and_the_next_run_goes_on(
    library: Library, embedder: CountingEmbedder
):
    items = sources(**{f"d{n}": f"text {n}" for n in range(20)})

    def interrupt(event: IngestEvent) -> None:
        if event.stage is Stage.COMMITTED and event.passages >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        library.ingest("c", items, WordEncoder(), progress=interrupt)
    assert len(library.documents("c")) == 8
    assert library.search("c", "text 3", 1)[0].passage.uri == "d3"
    report = library.ingest("c", items, WordEncoder())
    assert (report.added, report.unchanged) == (12, 8)
    assert embedder.embedded == 20
    library.check_invariants("c")


@pytest.mark.parametrize("where", ["encode", "add"])
def test_an_error_inside_a_commit_changes_nothing(library: Library, where: str, monkeypatch: pytest.MonkeyPatch):
    library.ingest("c", sources(a="old version of the text", b="untouched"), WordEncoder())
    before = library.passages("c")

    def fail(*args: object) -> None:
        raise OSError("boom")

    with monkeypatch.context() as patch:
        if where == "encode":
            patch.setattr(WordEncoder, "encode", fail)
        else:
            patch.setattr("retriever.vector_index.VectorIndex.add", fail)
        with pytest.raises(OSError, match="boom"):
            library.ingest("c", sources(a="new version of the text", z="one more"), WordEncoder())
    assert library.passages("c") == before
    assert library.search("c", "old version", 1)[0].passage.text == "old version of the text"
    library.ingest("c", sources(a="new version of the text", z="one more"), WordEncoder())
    assert library.search("c", "one more", 1)[0].passage.uri == "z"
    library.check_invariants("c")


def test_a_failed_commit_after_the_vectors_were_added_is_not_found(library: Library, monkeypatch: pytest.MonkeyPatch):
    library.ingest("c", sources(a="old"), WordEncoder())
    add = library._indexes.add

    def add_then_fail(*args: object) -> None:
        add(*args)
        raise OSError("boom")

    with monkeypatch.context() as patch:
        patch.setattr(library._indexes, "add", add_then_fail)
        with pytest.raises(OSError, match="boom"):
            library.ingest("c", sources(b="phantom"), WordEncoder())
    assert [hit.passage.uri for hit in library.search("c", "phantom", 5)] == ["a"]
    library.ingest("c", sources(b="phantom"), WordEncoder())
    assert [hit.passage.uri for hit in library.search("c", "phantom", 5)] == ["b", "a"]


def test_deletes(library: Library):
    library.ingest("c", sources(a="alpha", b="beta"), WordEncoder())
    gone = library.search("c", "alpha", 1)[0].passage
    assert library.delete_document("c", gone.document_id).document.uri == "a"
    assert [hit.passage.uri for hit in library.search("c", "alpha", 5)] == ["b"]
    with pytest.raises(UnknownDocumentError, match=gone.document_id):
        library.delete_document("c", gone.document_id)
    for call in (library.document, library.document_text, library.passages):
        with pytest.raises(UnknownDocumentError, match="list its documents"):
            call("c", gone.document_id)
    assert library.living(library.collection("c"), [gone.id])[1] == {}
    library.delete_collection("c")
    assert library.collections() == []
    for action in (
        lambda: library.search("c", "alpha"),
        lambda: library.ingest("c", [], WordEncoder()),
        lambda: library.delete_collection("c"),
    ):
        with pytest.raises(UnknownCollectionError, match="'c'"):
            action()


def test_collections_keep_apart(library: Library):
    library.create_collection("d")
    library.ingest("c", sources(a="alpha"), WordEncoder())
    library.ingest("d", sources(a="alpha", b="beta"), WordEncoder())
    assert [c.num_documents for c in library.collections()] == [1, 2]
    assert library.documents("c")[0].id == library.documents("d")[0].id  # an id is of the uri
    assert not {p.id for p in library.passages("c")} & {p.id for p in library.passages("d")}
    library.delete_collection("c")
    assert len(library.search("d", "alpha", 5)) == 2
    library.check_invariants("d")


def test_another_embedder_or_other_settings_are_refused_with_what_to_do(library: Library, tmp_path: Path):
    library.ingest("c", sources(a="alpha"), WordEncoder())
    with Library.open(tmp_path, embedder=HashEmbedder(32)) as other:
        assert other.documents("c")  # looking is allowed
        for action in (lambda: other.search("c", "alpha"), lambda: other.ingest("c", sources(b="beta"), WordEncoder())):
            with pytest.raises(EmbedderMismatchError, match=r"hash-256.*not with 'hash-32'.*new collection"):
                action()
    assert library.ensure_collection("c").name == "c"
    assert library.ensure_collection("c", CollectionSettings(SplitSettings(32))).name == "c"
    with pytest.raises(SettingsMismatchError, match="new collection"):
        library.ensure_collection("c", CollectionSettings(SplitSettings(64)))
    assert library.ensure_collection("fresh", CollectionSettings(SplitSettings(64))).num_documents == 0


def test_an_empty_collection_has_no_embedder_yet(library: Library, tmp_path: Path):
    assert library.search("c", "anything") == []
    library.ingest("c", [BytesSource("bad", b"\x00")], WordEncoder())
    assert library.collection("c").embedder_fingerprint is None
    library.check_invariants("c")
    assert library.rebuild_index("c") == 0
    with Library.open(tmp_path, embedder=HashEmbedder(32)) as other:
        other.ingest("c", sources(a="alpha"), WordEncoder())
    with pytest.raises(EmbedderMismatchError):
        library.ingest("c", sources(b="beta"), WordEncoder())


def test_questions_and_names_that_cannot_work(library: Library, tmp_path: Path):
    library.ingest("c", sources(a="alpha"), WordEncoder())
    with pytest.raises(QueryError, match="empty"):
        library.search("c", " \n")
    with pytest.raises(QueryError, match="k is 0"):
        library.search("c", "alpha", 0)
    with pytest.raises(QueryError, match=r"shape \(3,\).*\(256,\)"):
        library.search("c", np.zeros(3, np.float32))
    with pytest.raises(CollectionExistsError):
        library.create_collection("c")
    for name in ("", "a/b", "../x", "x" * 65, ".hidden"):
        with pytest.raises(SettingsError, match="cannot name"):
            library.create_collection(name)
    with pytest.raises(SettingsError, match="Nonsense"):
        library.create_collection("bad", CollectionSettings(index_factory="Nonsense"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="another folder"):
        Library.open(tmp_path / "file")
    with Library.open(tmp_path) as bare, pytest.raises(EmbedderError, match=r"Library\.open"):
        bare.search("c", "alpha")


def test_an_encoder_or_embedder_that_breaks_its_contract_is_named(library: Library, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(WordEncoder, "encode", lambda self, drafts: [[] for _ in drafts])
        with pytest.raises(PassageEncoderError, match="0 of 1"):
            library.ingest("c", sources(a="alpha"), WordEncoder())
    with monkeypatch.context() as patch:
        patch.setattr(HashEmbedder, "_vector", lambda self, words: np.full(256, np.nan, np.float32))
        with pytest.raises(EmbedderError, match="no usable vector"):
            library.ingest("c", sources(a="alpha"), WordEncoder())
    assert library.documents("c") == []


def test_files_too_large_are_skipped(tmp_path: Path):
    with Library.open(tmp_path, RetrieverConfig(max_document_bytes=10), embedder=HashEmbedder()) as library:
        library.create_collection("c")
        report = library.ingest("c", sources(a="x" * 11, b="fits"), WordEncoder())
        assert report.added == 1
        assert "max_document_bytes" in report.skipped[0][1]


@pytest.mark.parametrize("change", [{"batch_passages": 0}, {"index_device": "tpu"}, {"rebuild_dead_fraction": 0.0}])
def test_configurations_that_cannot_work(change: dict):
    with pytest.raises(SettingsError, match=next(iter(change))):
        RetrieverConfig(**change)


def test_damage_is_found(library: Library):
    library.ingest("c", sources(a="alpha " * 5), WordEncoder())
    library.store._writer.execute("UPDATE passages SET start_offset = 1")
    with pytest.raises(StoreError, match="does not fit its document"):
        library.check_invariants("c")
    library.store._writer.execute("UPDATE passages SET start_offset = 0")
    library.store._writer.execute("DELETE FROM vectors")
    with pytest.raises(StoreError, match="have no vector"):
        library.check_invariants("c")


def test_public_names_and_a_light_import():
    assert sorted(retriever.__all__) == sorted(name for names in retriever._MODULES.values() for name in names)
    assert all(getattr(retriever, name).__name__ == name for name in retriever.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        retriever.nonsense  # noqa: B018
    heavy = "{'numpy', 'faiss', 'torch', 'pypdf', 'docx', 'sentence_transformers'}"
    code = f"import retriever, retriever.errors, retriever.config, sys; assert not {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = f"from retriever import Library; import sys; assert not ({heavy} - {{'numpy'}}) & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
