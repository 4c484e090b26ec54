"""Every factory string ranks like brute force, hides what is deleted, and survives damage to its file."""

import logging
from pathlib import Path

import numpy as np
import pytest
from retriever_helpers import WordEncoder

from retriever.config import CollectionSettings, RetrieverConfig
from retriever.document import TextSource
from retriever.errors import SettingsError
from retriever.hash_embedder import HashEmbedder
from retriever.index_spec import IndexSpec, one_thread
from retriever.ingest import Stage
from retriever.retriever import Library
from retriever.vector_index import VectorIndex

DIMENSION = 16
FACTORIES = [("Flat", ""), ("IDMap2,Flat", ""), ("IVF4,Flat", "nprobe=4"), ("HNSW16,Flat", "efSearch=256"), ("SQ8", "")]
RNG = np.random.default_rng(7)


def random_vectors(count: int) -> np.ndarray:
    vectors = RNG.standard_normal((count, DIMENSION)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def build(factory: str, parameters: str = "", count: int = 400) -> tuple[VectorIndex, np.ndarray, np.ndarray]:
    ids = RNG.choice(2**62, count, replace=False).astype(np.int64)
    vectors = random_vectors(count)
    return VectorIndex.build(IndexSpec(DIMENSION, factory, parameters), ids, vectors, 3), ids, vectors


@pytest.mark.parametrize(("factory", "parameters"), FACTORIES)
def test_ranks_like_brute_force(factory: str, parameters: str):
    index, ids, vectors = build(factory, parameters)
    assert index.is_trained
    for query in random_vectors(20):
        expected = np.argsort(-(vectors @ query))[:10]
        scores, found = index.search(query, 10)
        if factory == "SQ8":  # eight bits a number: near ties may swap
            assert len(set(found) & set(ids[expected])) >= 8
        else:
            assert found.tolist() == ids[expected].tolist()
            np.testing.assert_allclose(scores, (vectors @ query)[expected], atol=1e-5)


@pytest.mark.parametrize("factory", [*(factory for factory, _ in FACTORIES[:4]), "IVF64_HNSW4,Flat"])
def test_among_some_the_best_are_found_exactly_or_not_at_all(factory: str):
    """A graph over the lists, unlike a flat one, does not lead to all of them, however many are asked for."""
    index, ids, vectors = build(factory, count=64 * 39)
    assert index.is_trained
    some = RNG.choice(len(ids), 40, replace=False)
    answers = [(query, index.search_among(query, 10, ids[some])) for query in random_vectors(20)]
    assert all((answer is None) == ("_HNSW" in factory) for _, answer in answers)
    for query, answer in answers:
        if answer is not None:
            expected = some[np.argsort(-(vectors[some] @ query))[:10]]
            assert answer[1].tolist() == ids[expected].tolist()
            np.testing.assert_allclose(answer[0], (vectors @ query)[expected], atol=1e-5)


def test_what_compares_with_nothing_finds_none_among_some():
    index, ids, _ = build("Flat")
    scores, found = index.search_among(np.full(DIMENSION, np.nan, np.float32), 3, ids[:5])
    assert (len(scores), len(found)) == (0, 0)


def test_ivf_stays_flat_until_it_can_be_trained():
    index, ids, vectors = build("IVF4,Flat", "nprobe=4", count=4 * 39 - 1)
    assert index.training_size == 4 * 39
    assert not index.is_trained
    query = random_vectors(1)[0]
    assert index.search(query, 5)[1].tolist() == ids[np.argsort(-(vectors @ query))[:5]].tolist()


@pytest.mark.parametrize(("factory", "needed"), [("PQ4x4", 39 * 16), ("IVF8,PQ4", 39 * 256), ("PCA8,Flat", 16)])
def test_training_sizes(factory: str, needed: int):
    assert IndexSpec(DIMENSION, factory).training_size() == needed


@pytest.mark.parametrize(("factory", "parameters"), FACTORIES)
def test_save_and_load(factory: str, parameters: str, tmp_path: Path):
    index, _, vectors = build(factory, parameters)
    path = tmp_path / "1.faiss"
    index.save(path)
    complaints: list[str] = []
    loaded = VectorIndex.load(path, index.spec, complaints.append)
    assert loaded is not None
    assert not complaints
    assert (loaded.generation, loaded.is_trained, len(loaded)) == (3, True, len(index))
    assert loaded.search(vectors[5], 7)[1].tolist() == index.search(vectors[5], 7)[1].tolist()
    assert [entry.name for entry in tmp_path.iterdir()] == ["1.faiss"]
    loaded.add(np.array([99]), random_vectors(1))
    assert len(loaded) == len(index) + 1


@pytest.mark.parametrize("place", [0, 9, 40, 2000, -1])
def test_a_flipped_byte_is_noticed(place: int, tmp_path: Path):
    index, *_ = build("Flat")
    path = tmp_path / "1.faiss"
    index.save(path)
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)
    complaints: list[str] = []
    assert VectorIndex.load(path, index.spec, complaints.append) is None
    assert len(complaints) == 1


@pytest.mark.parametrize("change", [{"dimension": 17}, {"factory": "HNSW8"}, {"embedder": "other"}])
def test_an_index_of_another_kind_is_not_loaded(change: dict, tmp_path: Path):
    index, *_ = build("Flat")
    index.save(tmp_path / "1.faiss")
    complaints: list[str] = []
    spec = IndexSpec(**({"dimension": DIMENSION, "factory": "Flat"} | change))
    assert VectorIndex.load(tmp_path / "1.faiss", spec, complaints.append) is None
    assert complaints == ["it was made with other settings"]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (IndexSpec(DIMENSION, "Nonsense"), "could not parse"),
        (IndexSpec(DIMENSION, "PQ5"), "PQ5"),
        (IndexSpec(DIMENSION, "Flat", "nprobe=3"), "do not fit"),
        (IndexSpec(DIMENSION, "Flat", device="gpu"), "faiss-gpu"),
    ],
)
def test_settings_that_faiss_cannot_follow(spec: IndexSpec, reason: str):
    with pytest.raises(SettingsError, match=reason):
        VectorIndex(spec)


def test_a_gpu_index_keeps_its_ids_and_is_saved_as_a_cpu_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run the GPU path with copies for transfers, for machines without a GPU."""
    import faiss

    class Resources:
        pass

    monkeypatch.setattr(faiss, "StandardGpuResources", Resources, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(
        faiss, "index_cpu_to_gpu", lambda resources, device, index: faiss.clone_index(index), raising=False
    )
    monkeypatch.setattr(faiss, "index_gpu_to_cpu", faiss.clone_index, raising=False)
    index, ids, vectors = build("IVF4,Flat", "nprobe=4")
    assert index.device == "gpu"
    index.save(tmp_path / "1.faiss")
    loaded = VectorIndex.load(tmp_path / "1.faiss", index.spec, pytest.fail)
    assert loaded is not None
    assert loaded.device == "gpu"
    assert loaded.search(vectors[3], 1)[1].tolist() == [ids[3]]
    assert loaded.ids.tolist() == ids.tolist()
    hnsw, *_ = build("HNSW16,Flat")
    assert hnsw.device == "cpu"


# The library over an index


def sources(start: int, stop: int) -> list[TextSource]:
    return [TextSource(f"doc/{n}", f"Document {n} speaks of topic{n} and thing{n % 7}.") for n in range(start, stop)]


def open_library(folder: Path, config: RetrieverConfig | None = None) -> Library:
    return Library.open(folder, config, embedder=HashEmbedder(64))


def brute_force(library: Library, question: str, k: int) -> list[tuple[int, float]]:
    query = library.embed_query(question)
    with library.store.read() as reader:
        row = reader.collection("c")
        ids, vectors = reader.vectors(row)
        owners = reader.passages_of_vectors(row, ids)
    best: dict[int, float] = {}
    for vector_id, score in zip(ids.tolist(), (vectors @ query).tolist(), strict=True):
        best[owners[vector_id]] = max(score, best.get(owners[vector_id], -2.0))
    return sorted(best.items(), key=lambda item: (-item[1], item[0]))[:k]


def assert_exact(library: Library, question: str, k: int = 5) -> None:
    hits = library.search("c", question, k)
    expected = brute_force(library, question, k)
    np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in expected], atol=1e-5)
    assert len({hit.passage.id for hit in hits}) == len(hits)


@pytest.mark.parametrize(("factory", "parameters"), FACTORIES[:4])
def test_a_delete_is_visible_at_once_under_every_factory(factory: str, parameters: str, tmp_path: Path):
    with open_library(tmp_path) as library:
        library.create_collection("c", CollectionSettings(index_factory=factory, index_parameters=parameters))
        library.ingest("c", sources(0, 300), WordEncoder())
        for number in range(60, 150):
            found = library.search("c", f"topic{number}", 1)[0].passage
            library.delete_document("c", found.document_id)
            assert found.document_id not in [h.passage.document_id for h in library.search("c", f"topic{number}", 300)]
            assert_exact(library, f"topic{number}", 3)
        assert_exact(library, "topic7 thing3", 20)
        assert len(library.search("c", "anything", 500)) == 210
        assert library.index_status("c")["is_trained"]
        library.check_invariants("c")
    with open_library(tmp_path) as library:
        assert_exact(library, "topic7 thing3", 20)


@pytest.mark.parametrize("factory", ["Flat", "SQ4", "SQ8"])
def test_scores_are_exact_after_the_second_stage(factory: str, tmp_path: Path):
    with open_library(tmp_path) as library:
        library.create_collection("c", CollectionSettings(index_factory=factory))
        library.ingest("c", sources(0, 300), WordEncoder())
        assert library.index_status("c")["is_trained"]
        rank_changed = 0
        for number in range(20):
            question, seen = f"topic{number} thing{number % 7}", []
            query = library.embed_query(question)
            hits = library.search("c", query, 8, on_candidates=seen.extend)
            with library.store.read() as reader:
                own = reader.vectors_of_passages([hit.passage.id for hit in hits])
            exact = [float((own[hit.passage.id] @ query).max()) for hit in hits]
            np.testing.assert_allclose([hit.score for hit in hits], exact, atol=1e-6)
            assert exact == sorted(exact, reverse=True)
            assert len(seen) == len({passage.id for passage in seen}) == 8
            rank_changed += [passage.id for passage in seen] != [hit.passage.id for hit in hits]
        assert (rank_changed > 0) == (factory != "Flat"), "the first stage is rough where the index is"


def test_ivf_says_that_it_is_flat_and_trains_itself_later(tmp_path: Path):
    notices = []
    with open_library(tmp_path) as library:
        library.create_collection("c", CollectionSettings(index_factory="IVF4,Flat", index_parameters="nprobe=4"))

        def note(event):
            if event.stage is Stage.NOTICE:
                notices.append(event.message)

        library.ingest("c", sources(0, 100), WordEncoder(), progress=note)
        assert library.index_status("c")["is_trained"] is False
        assert "stays flat until there are 156 vectors to train on (now 100)" in notices[0]
        library.ingest("c", sources(0, 200), WordEncoder(), progress=note)
        assert library.index_status("c")["is_trained"] is True
        assert len(notices) == 1
        assert_exact(library, "topic42")


def test_deleted_vectors_are_removed_when_there_are_many(tmp_path: Path):
    with open_library(tmp_path, RetrieverConfig(rebuild_dead_fraction=0.5)) as library:
        library.create_collection("c", CollectionSettings(index_factory="HNSW16,Flat"))
        library.ingest("c", sources(0, 200), WordEncoder())
        library.ingest("c", sources(0, 110), WordEncoder(), prune=True)
        assert library.index_status("c")["dead"] == 90
        library.ingest("c", sources(0, 90), WordEncoder(), prune=True)
        status = library.index_status("c")
        assert (status["dead"], status["vectors"]) == (0, 90)
        assert library.rebuild_index("c") == 90


def damage_missing(path: Path) -> None:
    path.unlink()


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_nonsense(path: Path) -> None:
    path.write_bytes(b"nonsense")


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_missing, damage_cut, damage_nonsense, damage_empty])
@pytest.mark.parametrize("factory", ["Flat", "HNSW16,Flat"])
def test_a_damaged_or_missing_index_file_is_made_good(damage, factory: str, tmp_path: Path, caplog):
    with open_library(tmp_path) as library:
        library.create_collection("c", CollectionSettings(index_factory=factory))
        library.ingest("c", sources(0, 50), WordEncoder())
    path = tmp_path / "indexes" / "1.faiss"
    damage(path)
    with caplog.at_level(logging.WARNING), open_library(tmp_path) as library:
        assert_exact(library, "topic11")
        library.check_invariants("c")
    assert ("rebuilding index" in caplog.text) == (damage is not damage_missing)
    assert path.stat().st_size > 1000  # written again on close


def test_an_index_file_behind_the_store_catches_up(tmp_path: Path):
    with open_library(tmp_path) as library:
        library.create_collection("c")
        library.ingest("c", sources(0, 50), WordEncoder())
    path = tmp_path / "indexes" / "1.faiss"
    old = path.read_bytes()
    with open_library(tmp_path) as library:
        library.ingest("c", sources(10, 80), WordEncoder(), prune=True)
    path.write_bytes(old)
    with open_library(tmp_path) as library:
        assert_exact(library, "topic70", 10)
        assert len(library.search("c", "topic5", 100)) == 70
        library.check_invariants("c")


def test_two_libraries_over_one_folder_see_each_others_commits(tmp_path: Path):
    with open_library(tmp_path) as one, open_library(tmp_path) as two:
        one.create_collection("c")
        one.ingest("c", sources(0, 10), WordEncoder())
        assert two.search("c", "topic3", 1)[0].passage.uri == "doc/3"
        two.ingest("c", sources(10, 20), WordEncoder())
        assert one.search("c", "topic13", 1)[0].passage.uri == "doc/13"
        two.delete_document("c", one.search("c", "topic13", 1)[0].passage.document_id)
        assert "topic13" not in one.search("c", "topic13", 1)[0].passage.text


def test_a_failed_commit_does_not_hide_what_another_library_commits_next(tmp_path: Path, monkeypatch):
    with open_library(tmp_path) as one, open_library(tmp_path) as two:
        one.create_collection("c")
        one.ingest("c", sources(0, 5), WordEncoder())
        add = one._indexes.add

        def add_then_fail(*args: object) -> None:
            add(*args)
            raise OSError("boom")

        with monkeypatch.context() as patch:
            patch.setattr(one._indexes, "add", add_then_fail)
            with pytest.raises(OSError, match="boom"):
                one.ingest("c", sources(5, 6), WordEncoder())
        two.ingest("c", sources(6, 7), WordEncoder())
        assert one.search("c", "topic6", 1)[0].passage.uri == "doc/6"
        assert len(one.search("c", "topic6", 10)) == 6


def test_files_of_deleted_collections_and_unfinished_saves_are_removed(tmp_path: Path):
    with open_library(tmp_path) as library:
        library.create_collection("c")
        library.ingest("c", sources(0, 5), WordEncoder())
        library.delete_collection("c")
    (tmp_path / "indexes" / "1.tmp").write_bytes(b"half")
    (tmp_path / "indexes" / "9.faiss").write_bytes(b"orphan")
    open_library(tmp_path).close()
    assert list((tmp_path / "indexes").iterdir()) == []


def test_a_full_disk_while_saving_the_index_loses_nothing(tmp_path: Path, monkeypatch, caplog):
    def fail(self, path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, open_library(tmp_path) as library:
        patch.setattr(VectorIndex, "save", fail)
        library.create_collection("c")
        library.ingest("c", sources(0, 20), WordEncoder())
        library.close()
    assert "was not saved" in caplog.text
    with open_library(tmp_path) as library:
        assert_exact(library, "topic11")


def test_faiss_is_kept_to_one_thread_and_torch_is_not():
    faiss = pytest.importorskip("faiss")
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    try:
        with one_thread():
            assert faiss.omp_get_max_threads() == 1
        index, _, vectors = build("IVF4,Flat")
        index.search(vectors[0], 3)
        assert faiss.omp_get_max_threads() == 2
    finally:
        faiss.omp_set_num_threads(before)
