"""Passages fit their budget, are the text they claim to be, and are cut where the structure allows it."""

import re
import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retriever.config import SplitSettings
from retriever.document import ExtractedText, TextSource
from retriever.errors import ExtractError, PassageEncoderError, SettingsError
from retriever.extract import extract
from retriever.splitter import Span, split


def count_words(texts):
    return [len(re.findall(r"\w+|[^\w\s]", text)) for text in texts]


def count_bytes(texts):
    return [len(text.encode()) for text in texts]


def count_badly(texts):
    """Count so that the parts say little about the whole: twice the text takes far more than twice the tokens."""
    return [len(text) + len(text) ** 2 // 50 for text in texts]


def read(text: str, media_type: str = "text/markdown") -> ExtractedText:
    return extract(TextSource("doc", text, "Title", media_type).read(2**24))


def passages(
    text: str, budget: int, overlap: int = 0, media_type: str = "text/markdown", count=count_words
) -> list[str]:
    document = read(text, media_type)
    spans = split([document], SplitSettings(budget, overlap), count)[0]
    return [document.text[span.start : span.end] for span in spans]


FRAGMENTS = [
    *("a", "word ", "A sentence is here. ", "\n", "\n\n", "\n\n## Head\n\n", "```\n", "    code = 1\n", "- item\n"),
    *("Title\n=====\n", "€日本語。", "x" * 90, "\t", "!? ", "<p>", "e.g. That: ", "\u2028", "🙂"),
]
words = st.lists(st.sampled_from(FRAGMENTS), min_size=5, max_size=80).map("".join)
kinds = st.sampled_from(["text/plain", "text/markdown", "text/x-code", "text/html"])


@given(words, kinds, st.integers(16, 60), st.integers(0, 8), st.sampled_from([count_words, count_bytes, count_badly]))
@settings(max_examples=150, deadline=None)
def test_no_passage_exceeds_the_budget_and_no_word_is_lost(text, media_type, budget, overlap, count):
    try:
        document = read(text, media_type)
    except ExtractError:
        return
    spans = split([document], SplitSettings(budget, overlap), count)[0]
    texts = [document.text[span.start : span.end] for span in spans]
    assert all(tokens <= budget for tokens in count(texts))
    assert all(passage.strip() and passage == passage.rstrip() for passage in texts)
    covered = [False] * len(document.text)
    for span in spans:
        covered[span.start : span.end] = [True] * (span.end - span.start)
    in_blocks = (offset for block in document.blocks for offset in range(block.start, block.end))
    lost = [document.text[offset] for offset in in_blocks if not covered[offset]]
    assert not "".join(lost).strip()


@given(st.lists(words, max_size=4), st.integers(16, 40))
@settings(deadline=None)
def test_a_batch_is_split_like_each_document_alone(texts: list[str], budget: int):
    documents = []
    for text in texts:
        try:
            documents.append(read(text))
        except ExtractError:
            continue
    alone = [split([document], SplitSettings(budget), count_words)[0] for document in documents]
    assert split(documents, SplitSettings(budget), count_words) == alone


def test_sections_are_cut_at_headings_and_keep_their_path():
    text = "\n\n".join(f"## Part {n}\n\n" + f"Sentence of part {n}. " * 12 for n in range(3))
    document = read("# Top\n\n" + text)
    spans = split([document], SplitSettings(80), count_words)[0]
    assert [span.heading_path for span in spans] == [("Top",), ("Top", "Part 1"), ("Top", "Part 2")]
    assert document.text[spans[1].start :].startswith("## Part 1\n\nSentence")


def test_a_heading_never_ends_a_passage():
    paragraph = "Five words and a stop. " * 6 + "Two more."  # fills the budget alone, so it is cut to keep its heading
    for passage in passages("\n\n".join(f"# H{n}\n\n{paragraph}" for n in range(4)), 39):
        assert not passage.splitlines()[-1].startswith("#")


def test_paragraphs_stay_whole_where_they_fit_and_break_between_sentences_where_not():
    paragraphs = [f"{word} " * 9 + word for word in ("alpha", "beta", "gamma", "delta")]
    assert passages("\n\n".join(paragraphs), 25) == ["\n\n".join(paragraphs[:2]), "\n\n".join(paragraphs[2:])]
    long = "This one is short, e.g. Like this. " * 6
    for passage in passages(long, 24):
        assert passage.startswith("This one")
        assert passage.endswith("Like this.")


def test_code_is_cut_between_lines_and_keeps_its_indentation():
    code = "def f():\n" + "".join(f"    x{n} = {n}\n" for n in range(40))
    found = passages(f"```\n{code}```", 32)
    assert len(found) > 2
    assert found[1].startswith("    x")
    assert all(
        re.fullmatch(r"(```|def f\(\):|    x\d+ = \d+)", line) for passage in found for line in passage.splitlines()
    )


def test_long_lines_without_spaces_are_cut_anyway():
    found = passages("x" * 5000, 100, count=count_bytes)
    assert "".join(found) == "x" * 5000
    assert all(len(passage) <= 100 for passage in found)
    minified = ";".join(f"var a{n}=function(){{return {n}}}" for n in range(400))
    found = passages(minified, 64, media_type="text/x-code", count=count_bytes)
    assert "".join(found).replace(" ", "") == minified.replace(" ", "")


def test_overlap_repeats_the_end_of_the_passage_before_within_a_section():
    text = " ".join(f"Sentence number {n} is here." for n in range(20))
    document = read(f"# A\n\n{text}\n\n# B\n\n{text}")
    spans = split([document], SplitSettings(48, 12), count_words)[0]
    overlaps = [left.end - right.start for left, right in pairwise(spans)]
    same = [left.heading_path == right.heading_path for left, right in pairwise(spans)]
    assert all((overlap > 0) == section for overlap, section in zip(overlaps, same, strict=True))
    assert all(
        overlap <= 0 or count_words([document.text[s.start : s.start + overlap]])[0] <= 12
        for s, overlap in zip(spans[1:], overlaps, strict=True)
    )


def test_counting_is_batched():
    calls = []

    def count(texts):
        calls.append(len(texts))
        return count_words(texts)

    documents = [read(f"# H\n\nA paragraph of document {n}. " * 10) for n in range(50)]
    split(documents, SplitSettings(64), count)
    assert len(calls) <= 3


def test_equal_lines_are_counted_once():
    counted: list[str] = []

    def count(texts):
        counted.extend(texts)
        return count_words(texts)

    found = passages("a\n" * 1000, 64, media_type="text/plain", count=count)
    assert "\n".join(found) == "\n".join("a" * 1000)
    assert len(counted) <= 6, "lines are alike, and so are passages but for one line more or less"


def test_what_a_line_costs_does_not_grow_with_the_lines_of_a_passage():
    document = read("a\n" * 1000, "text/plain")

    def calls(budget: int) -> int:
        made = 0

        def note(*_: object) -> None:
            nonlocal made
            made += 1

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            split([document], SplitSettings(budget), lambda texts: [text.count("a") for text in texts])
        finally:
            sys.setprofile(before)
        return made

    assert calls(512) < 1.5 * calls(32)


def test_pages_and_offsets_of_a_known_text():
    document = ExtractedText("one two", read("one two").blocks, "t", (0, 4))
    assert split([document], SplitSettings(), count_words) == [[Span(0, 7, 1, ())]]


def test_a_budget_below_one_character_is_refused():
    with pytest.raises(SettingsError, match="raise passage_tokens"):
        split([read("ab")], SplitSettings(16), lambda texts: [17 * len(text) for text in texts])


def test_a_counter_that_forgets_texts_is_named():
    with pytest.raises(PassageEncoderError, match="counted 0 of 1"):
        split([read("ab")], SplitSettings(16), lambda texts: [])


@pytest.mark.parametrize(("budget", "overlap"), [(15, 0), (64, 33), (64, -1)])
def test_settings_that_cannot_work(budget: int, overlap: int):
    with pytest.raises(SettingsError, match=str(budget if overlap == 0 else overlap)):
        SplitSettings(budget, overlap)
