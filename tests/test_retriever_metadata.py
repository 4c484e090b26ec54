"""Metadata of documents, and searches among those that fit a condition: equal to brute force, for every index."""

import json
import sqlite3
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from retriever_helpers import CountingEmbedder, WordEncoder

from retriever.config import CollectionSettings, RetrieverConfig, SplitSettings
from retriever.document import TextSource
from retriever.errors import FilterError, MetadataError, UnknownDocumentError
from retriever.metadata import MAX_METADATA_BYTES, Filter, check_metadata, parse_filter
from retriever.retriever import Library

ORDERS = {
    "gt": lambda a, b: a > b,
    "gte": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "lte": lambda a, b: a <= b,
}
NAMES = ["year", "tag", "open"]
SCALARS = st.one_of(
    st.integers(-3, 3), st.sampled_from([0.5, 1.0, -2.5]), st.sampled_from(["", "a", "b", "é", "1"]), st.booleans()
)
METADATA = st.dictionaries(st.sampled_from(NAMES), st.one_of(SCALARS, st.lists(SCALARS, max_size=3)), max_size=3)


def kind(value: Any) -> type:
    return bool if isinstance(value, bool) else str if isinstance(value, str) else float


def equal(a: Any, b: Any) -> bool:
    return kind(a) is kind(b) and a == b


def fits(metadata: dict, condition: dict) -> bool:
    """The filter language in plain Python."""
    return all(_fits_one(metadata, name, wanted) for name, wanted in condition.items())


def _fits_one(metadata: dict, name: str, wanted: Any) -> bool:
    if name == "not":
        return not fits(metadata, wanted)
    if name in ("and", "or"):
        return (all if name == "and" else any)(fits(metadata, part) for part in wanted)
    own = metadata.get(name, [])
    values = own if isinstance(own, list) else [own]
    tests = wanted if isinstance(wanted, dict) else {"eq": wanted}
    return all(_passes(values, operator, value) for operator, value in tests.items())


def _passes(values: list, operator: str, wanted: Any) -> bool:
    if operator == "exists":
        return bool(values) is wanted
    if operator in ("eq", "ne"):
        return any(equal(value, wanted) for value in values) is (operator == "eq")
    if operator in ("in", "nin"):
        return any(equal(value, item) for value in values for item in wanted) is (operator == "in")
    return any(kind(v) is kind(wanted) and ORDERS[operator](v, wanted) for v in values if kind(v) is not bool)


TESTS = st.one_of(
    SCALARS,
    st.fixed_dictionaries({}, optional={"eq": SCALARS, "ne": SCALARS, "exists": st.booleans()}).filter(len),
    st.fixed_dictionaries(
        {},
        optional={"in": st.lists(SCALARS, min_size=1, max_size=3), "nin": st.lists(SCALARS, min_size=1, max_size=3)},
    ).filter(len),
    st.dictionaries(
        st.sampled_from(sorted(ORDERS)), SCALARS.filter(lambda v: not isinstance(v, bool)), min_size=1, max_size=2
    ),
)
PLAIN = st.dictionaries(st.sampled_from(NAMES), TESTS, max_size=2)
NESTED = reduce(lambda inner, _: {"not": inner}, range(5_000), {"a": 1})
CONDITIONS = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"not": inner}),
        st.fixed_dictionaries({"or": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"and": st.lists(inner, min_size=1, max_size=3), "open": SCALARS}),
    ),
    max_leaves=4,
)


def answers(found: Filter, metadata: list[dict]) -> list[bool]:
    statement = f"SELECT {found.over('m')} FROM (SELECT ? AS m) WHERE 1"
    with sqlite3.connect(":memory:") as connection:
        rows = [connection.execute(statement, (*found.values, check_metadata(item))) for item in metadata]
        return [bool(row.fetchone()[0]) for row in rows]


@settings(deadline=None, max_examples=120)
@given(metadata=st.lists(METADATA, min_size=1, max_size=5), condition=CONDITIONS)
def test_a_condition_means_what_it_says(metadata: list[dict], condition: dict) -> None:
    found = parse_filter(condition)
    assert answers(found, metadata) == [fits(item, condition) for item in metadata], found.sql


@pytest.mark.parametrize("empty", [{}, {"not": {}}, {"and": [{}]}])
@pytest.mark.parametrize("word", ["and", "or"])
def test_conditions_that_say_nothing_cost_nothing(word: str, empty: dict) -> None:
    """SQLite takes no expression of more than a thousand levels, of which each part of a list makes one."""
    found = parse_filter({word: [*[empty] * 2000, {"a": 1}]})
    metadata = [{"a": 1}, {"a": 2}]
    assert answers(found, metadata) == [fits(item, {word: [empty, {"a": 1}]}) for item in metadata]


@pytest.mark.parametrize(
    ("condition", "named"),
    [
        ({"year": {"above": 3}}, "'above'"),
        ({"year": {}}, "'year' has no operator"),
        ({"year": None}, "None"),
        ({"year": {"gt": True}}, "True"),
        ({"year": {"gt": [1]}}, "[1]"),
        ({"year": {"in": []}}, "'in'"),
        ({"year": {"in": 3}}, "'in'"),
        ({"year": {"exists": 1}}, "'exists'"),
        ({"a\"') OR 1=1 --": 1}, "cannot name metadata"),
        ({"or": []}, "'or'"),
        ({"or": {"a": 1}}, "'or'"),
        ({"not": [{"a": 1}]}, "no condition"),
        ({"a": 2**63}, "compared with"),
        ({"a": "\0"}, "compared with"),
        ({"or": [{"a": 1}] * 65}, "more than 64"),
        ({"or": [{"a": {"in": list(range(1000))}}] * 17}, "more than 16384 values"),
        ({"and": [{}] * 600_000}, "more than 8192 parts"),
        ({"or": [{"and": [{}] * 1000}] * 9}, "more than 8192 parts"),
        ({"a": [{"b": 1}] * 600_000}, "more than 8192 parts"),
        ({"a": {"in": [1] * 600_000}}, "more than 16384 values"),
        ({"a": {"eq": NESTED}}, "compared with"),
        ({"not": NESTED}, "nested"),
        ({"not": {"not": {"not": {"not": {"not": {"not": {"not": {"not": {"not": {"a": 1}}}}}}}}}}, "nested"),
    ],
)
def test_what_is_no_condition_is_refused(condition: dict, named: str) -> None:
    with pytest.raises(FilterError) as caught:
        parse_filter(condition)
    assert named in str(caught.value)


def test_a_huge_condition_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr("retriever.metadata._all_of", lambda condition, depth: read.append(condition))
    for huge in ({"and": [{}] * 10_000}, {"and": [{"or": [{}] * 100}] * 100}, {"a": [1] * 100_000}):
        with pytest.raises(FilterError, match="ask for fewer"):
            parse_filter(huge)
    assert not read


@pytest.mark.parametrize(
    "metadata",
    [{"": 1}, {"a b": 1}, {"or": 1}, {"x" * 65: 1}, {"a": None}, {"a": {"b": 1}}, {"a": [[1]]}, {"a": float("nan")},
     {"a": 2**63}, {"a": "\ud800"}, {"a": "x" * MAX_METADATA_BYTES}],
)  # fmt: skip
def test_metadata_that_cannot_be_kept_is_refused(metadata: dict) -> None:
    with pytest.raises(MetadataError):
        check_metadata(metadata)


# Documents


def open_library(folder: Path, embedder: CountingEmbedder, factory: str = "Flat", parameters: str = "") -> Library:
    collection = CollectionSettings(SplitSettings(passage_tokens=16), factory, parameters)
    return Library.open(folder, RetrieverConfig(collection=collection), embedder=embedder)


def test_metadata_comes_with_a_document_and_changes_without_embedding_anew(tmp_path: Path) -> None:
    embedder = CountingEmbedder()
    with open_library(tmp_path, embedder) as library:
        library.ensure_collection("c")
        first = TextSource("u", "Nets are mended.", metadata={"year": 2020, "tag": ["sea", "ice"]})
        assert library.ingest("c", [first], WordEncoder()).added == 1
        (document,) = library.documents("c")
        assert document.metadata == {"year": 2020, "tag": ["sea", "ice"]}
        embedded = embedder.embedded

        silent = TextSource("u", "Nets are mended.")
        assert library.ingest("c", [silent], WordEncoder()).unchanged == 1
        assert library.documents("c")[0].metadata == {"year": 2020, "tag": ["sea", "ice"]}

        relabelled = TextSource("u", "Nets are mended.", metadata={"year": 2021})
        report = library.ingest("c", [relabelled], WordEncoder())
        assert (report.updated, report.unchanged, report.passages) == (1, 0, 0)
        assert library.documents("c")[0].metadata == {"year": 2021}
        assert embedder.embedded == embedded

        assert library.ingest("c", [TextSource("u", "Nets are sold.")], WordEncoder()).updated == 1
        assert library.documents("c")[0].metadata == {"year": 2021}, "new text keeps what nobody spoke of"
        assert library.set_metadata("c", document.id, {}).metadata == {}
        with pytest.raises(UnknownDocumentError):
            library.set_metadata("c", "no", {})
        bad = library.ingest("c", [TextSource("v", "x", metadata={"a b": 1})], WordEncoder())
        assert [uri for uri, _ in bad.skipped] == ["v"]


COUNT = 240
FACTORIES = [("Flat", ""), ("IVF4,Flat", "nprobe=1"), ("HNSW4,Flat", "efSearch=4"), ("SQ8", "")]


@pytest.fixture(scope="module", params=FACTORIES, ids=[factory for factory, _ in FACTORIES])
def labelled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A collection of documents with metadata in an index that is as approximate as it can be."""
    words = [*("net", "sail", "mast", "oar", "keel", "rope", "salt"), *("wind", "tide", "moon", "fish", "gull", "reef")]
    generator = np.random.default_rng(3)
    embedder = CountingEmbedder(dimension=16, window_words=6)
    with open_library(tmp_path_factory.mktemp("library"), embedder, *request.param) as library:
        library.ensure_collection("c")
        documents = []
        for number in range(COUNT):
            text = " ".join(generator.choice(words, 14))
            metadata = {"year": int(generator.integers(0, 50)), "tag": [str(number % 3), "x"] if number % 2 else "y"}
            documents.append(TextSource(f"u:{number}", text, metadata=metadata))
        library.ingest("c", documents, WordEncoder())
        gone = [document.id for document in library.documents("c")][::7]
        for document_id in gone:
            library.delete_document("c", document_id)
        assert library.index_status("c").get("is_trained"), "an index that is still flat shows nothing"
        with library.store.read() as reader:
            row = reader.collection("c")
            ids, vectors = reader.vectors(row)
            owners = reader.passages_of_vectors(row, ids)
            documents = {document.id: dict(document.metadata) for document in reader.documents(row)}
            metadata = {passage.id: documents[passage.document_id] for passage in reader.passages(row)}
        yield library, embedder, [owners[vector_id] for vector_id in ids.tolist()], vectors, metadata


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    low=st.integers(0, 50),
    width=st.integers(0, 50),
    tag=st.sampled_from(["0", "1", "2", "x", "y", "none"]),
    k=st.sampled_from([1, 3, 10, 60, 300]),
    seed=st.integers(0, 5),
)
def test_a_search_under_a_condition_finds_exactly_the_best_that_fit(labelled, low, width, tag, k, seed) -> None:
    library, embedder, owners, vectors, metadata = labelled
    condition = {"year": {"gte": low, "lt": low + width}, "tag": tag}
    query = embedder.embed_query(f"net wave {seed} " + "rock " * seed)
    scores: dict[int, float] = {}
    for owner, score in zip(owners, (vectors @ query).tolist(), strict=True):
        if fits(metadata[owner], condition):
            scores[owner] = max(scores.get(owner, -2.0), score)
    hits = library.search("c", query, k, where=condition)
    assert len(hits) == min(k, len(scores))
    assert len({hit.passage.id for hit in hits}) == len(hits)
    expected = sorted(scores.values(), reverse=True)[: len(hits)]
    np.testing.assert_allclose([hit.score for hit in hits], expected, atol=1e-5)
    np.testing.assert_allclose([hit.score for hit in hits], [scores[hit.passage.id] for hit in hits], atol=1e-5)


def test_no_condition_is_the_usual_search(labelled) -> None:
    library, embedder, *_ = labelled
    query = embedder.embed_query("net wave")
    assert library.search("c", query, 5, where={}) == library.search("c", query, 5)


def test_candidates_are_told_under_a_condition_too(labelled) -> None:
    library, embedder, *_ = labelled
    told: list = []
    query = embedder.embed_query("net wave")
    hits = library.search("c", query, 5, where={"tag": "y"}, on_candidates=told.extend)
    assert told == [hit.passage for hit in hits]


def test_canonical_json_of_metadata_does_not_depend_on_order() -> None:
    assert check_metadata({"b": 1, "a": "é"}) == check_metadata({"a": "é", "b": 1})
    assert json.loads(check_metadata({"a": ["x", 1, True]})) == {"a": ["x", 1, True]}
