"""A folder of documentation as a corpus: its text without what surrounds it, and questions that it answers."""

import gzip

import pytest

from data.errors import CorpusUnavailableError, UnknownCorpusError
from data.folders import find_corpus, load_folder
from data.questions import make_questions

PAGE = """<!DOCTYPE html><html><head><title>Ferries - The Harbour</title><style>p { color: red }</style></head><body>
<div class="navheader"><a href="x">Next chapter</a></div><script>alert("no")</script>
<div class="body" role="main"><h1><span>2. </span>Ferries of the bay<a class="headerlink">¶</a></h1>
<p>Ferries cross the bay of <b>Tull</b> twice
a day, whatever the weather. They carry no cars.</p>
<h2>2.1. How is a ticket bought?</h2><p>Tickets are sold by the keeper on the pier, and nowhere else.</p>
<ul><li>one way</li><li><p>and back</p></li></ul>
<pre>fare = 3
  if child: fare = 1
</pre>
<h2>Notes</h2><p>Winter ice closes the northern landing from January on.</p>
<h3>Empty</h3><h3>Short</h3><p>No.</p><p>a<br>b</p></div>
<div class="navfooter">Previous chapter</div></body></html>"""
TEXT = """2. Ferries of the bay
=====================

Ferries cross the bay of Tull twice a day, whatever the weather. They carry no cars.

2.1. How is a ticket bought?
----------------------------

Tickets are sold by the keeper on the pier, and nowhere else.

- one way

and back

fare = 3
  if child: fare = 1

Notes
-----

Winter ice closes the northern landing from January on.

Empty
~~~~~

Short
~~~~~

No.

a b
"""


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "harbour" / "html"
    (folder / "more").mkdir(parents=True)
    (folder / "ferries.html").write_text(PAGE, "utf-8")
    (folder / "more" / "lamp.HTM.gz").write_bytes(gzip.compress(b"<h1>Lamp</h1><p>The lamp is lit every evening.</p>"))
    (folder / "ferries.en.html").symlink_to("ferries.html")
    for name in ("genindex.html", "search.html", "changelog.html", "picture.png", "ferries.txt", "_static.html"):
        (folder / name).write_text("<h1>Left out</h1><p>Nothing of this is an explanation.</p>")
    (folder / "blank.html").write_text("<html><body><script>only()</script></body></html>")
    (folder / "folder.html").mkdir()
    return folder


def test_pages_become_text_with_underlined_headings(folder):
    corpus = load_folder(folder)
    by_id = {document.id: document for document in corpus.documents}
    assert list(by_id) == ["ferries.en.html", "more/lamp.HTM.gz"], "each once, and no indexes"
    page = by_id["ferries.en.html"]
    assert page.text == TEXT
    assert page.title == "2. Ferries of the bay"
    assert page.media_type == "text/x-rst"
    assert page.uri == f"{corpus.name}:ferries.en.html"
    assert by_id["more/lamp.HTM.gz"].text == "Lamp\n====\n\nThe lamp is lit every evening.\n"
    assert str(folder) in corpus.source
    assert "2 documents" in corpus.source


def test_folders_have_names_of_their_own(folder, tmp_path):
    corpus = load_folder(folder)
    assert corpus.name.startswith("harbour-html-")
    other = tmp_path / "x" / "harbour" / "html"
    other.mkdir(parents=True)
    (other / "a.txt").write_text("text")
    assert load_folder(other).name not in {corpus.name, ""}
    assert load_folder(other).name.startswith("harbour-html-")
    odd = tmp_path / ("Ä" * 80) / "?!"
    odd.mkdir(parents=True)
    (odd / "a.txt").write_text("text")
    name = load_folder(odd).name
    assert name.replace("-", "").isalnum()
    assert name.isascii()
    assert len(name) < 64
    assert find_corpus(str(folder)) == corpus == load_folder(folder)


def test_only_indexes_are_left_out(tmp_path):
    left_out = ("search.html", "Genindex-all.html", "genindex.html", "copyright", "_sources/a.html", "search/all.html")
    kept = ("copyrighted.html", "genindexes.html", "research.html", "search-trees.html", "searching.html")
    for name in (*left_out, *kept):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("<p>text</p>")
    assert [document.id for document in load_folder(tmp_path).documents] == list(kept)


@pytest.mark.parametrize(
    ("charset", "encoding"),
    [
        ('<meta charset="ISO-8859-1">', "latin-1"),
        ('<META http-equiv="Content-Type" content="text/html; charset=iso-8859-1">', "cp1252"),
        ("<meta charset=iso-8859-15>", "iso-8859-15"),
        ("<meta charset='utf-8'>", "utf-8"),
        ("<meta charset=klingon>", "utf-8"),
        ("<meta charset=hex>", "utf-8"),
        ("<meta charset=utf-16>", "utf-8"),
        ("", "utf-8"),
    ],
)
def test_pages_are_read_in_their_encoding(tmp_path, charset, encoding):
    page = f"<html><head>{charset}<title>Über</title></head><body><p>Größe und Maß</p></body></html>"
    (tmp_path / "page.html").write_bytes(page.encode(encoding))
    (document,) = load_folder(tmp_path).documents
    assert (document.title, document.text) == ("Über", "Größe und Maß\n")


def test_questions_ask_for_the_first_sentences_of_sections(folder):
    corpus = load_folder(folder)
    questions = {question.text: question for question in make_questions(corpus)}
    golds = {question.gold_text for question in questions.values()}
    assert golds == {
        "Ferries cross the bay of Tull twice a day, whatever the weather.",
        "Tickets are sold by the keeper on the pier, and nowhere else.",
        "Winter ice closes the northern landing from January on.",
        "The lamp is lit every evening.",
    }
    assert "How is a ticket bought?" in questions
    assert "Can you explain Ferries of the bay?" in questions
    assert "Can you explain Notes in Ferries of the bay?" in questions, "alone, it says too little"
    texts = {document.id: document.text for document in corpus.documents}
    for question in questions.values():
        for gold in question.golds:
            assert texts[gold.document_id][gold.start : gold.end] == gold.text


def test_text_files_are_read_where_there_is_no_html(tmp_path):
    (tmp_path / "a.rst").write_text("Lamp\n====\n\nThe lamp is lit every evening.\r\nBy hand.\n", "utf-8")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("Grüße".encode("latin-1")))
    first, second = load_folder(tmp_path).documents
    assert first.text.endswith("evening.\nBy hand.\n")
    assert first.title == "a.rst"
    assert second.text.startswith("Gr")
    (tmp_path / "c.html").write_text("<p>HTML</p>")
    assert [document.id for document in load_folder(tmp_path).documents] == ["c.html"]


def test_names_are_found_too():
    assert find_corpus("python-topics").name == "python-topics"


def test_folders_that_are_none_are_refused(tmp_path):
    with pytest.raises(CorpusUnavailableError, match="is not a folder"):
        load_folder(tmp_path / "gone")
    with pytest.raises(CorpusUnavailableError, match=r"holds no \.htm, .* files with text"):
        load_folder(tmp_path)
    (tmp_path / "a.html.gz").write_bytes(b"not compressed")
    with pytest.raises(CorpusUnavailableError, match=r"a\.html\.gz cannot be read"):
        load_folder(tmp_path)
    (tmp_path / "a.html.gz").write_bytes(gzip.compress(PAGE.encode())[:-20])
    with pytest.raises(CorpusUnavailableError, match=r"a\.html\.gz cannot be read"):
        load_folder(tmp_path)
    with pytest.raises(UnknownCorpusError, match="or name a folder of documentation"):
        find_corpus(str(tmp_path / "gone"))


@pytest.mark.parametrize("page", ["", "<", "<h1>", "<p>text", "plain", "<frameset></frameset>", "\x00<p>a\x00b</p>"])
def test_broken_pages_are_read_as_they_are(tmp_path, page):
    (tmp_path / "page.html").write_text(page)
    (tmp_path / "other.html").write_text("<p>text</p>")
    documents = load_folder(tmp_path).documents
    assert documents[0].text == "text\n"
    assert all(document.text.strip() and document.title for document in documents)
