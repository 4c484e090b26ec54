"""Every format gives text with its structure, and every unusable file one clear error."""

import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retriever_helpers import make_docx, make_pdf

from retriever.document import (
    BlockKind,
    BytesSource,
    ExtractedText,
    FileSource,
    RawDocument,
    TextSource,
)
from retriever.errors import ExtractError, SourceError
from retriever.extract import extract, media_type_of
from retriever.found_files import sources_from_paths

LIMIT = 2**20


def read(name: str, data: bytes | str, media_type: str | None = None) -> ExtractedText:
    data = data.encode() if isinstance(data, str) else data
    return extract(BytesSource(name, data, media_type=media_type).read(LIMIT))


def shown(text: ExtractedText) -> list[tuple[str, tuple[str, ...], str]]:
    return [(b.kind.value, b.heading_path, text.text[b.start : b.end]) for b in text.blocks]


def test_plain_text_keeps_its_characters_and_finds_underlined_headings():
    source = (
        "Guide\n=====\n\nIntro line.\nSecond line.\n\nPart\n----\nRight below.\n\n  indented\n\nGuide 2\n=======\nEnd."
    )
    text = read("guide.txt", source)
    assert text.text == source
    assert text.title == "Guide"
    assert shown(text) == [
        ("heading", ("Guide",), "Guide\n====="),
        ("paragraph", ("Guide",), "Intro line.\nSecond line."),
        ("heading", ("Guide", "Part"), "Part\n----"),
        ("paragraph", ("Guide", "Part"), "Right below."),
        ("paragraph", ("Guide", "Part"), "  indented"),
        ("heading", ("Guide 2",), "Guide 2\n======="),
        ("paragraph", ("Guide 2",), "End."),
    ]


def test_overlined_heading_is_another_level_than_an_underlined_one():
    text = read("x.rst", "=====\n Top\n=====\n\nUnder\n=====\n\nText.\n\n=====  =====\nA      B\n=====  =====")
    assert [block.heading_path for block in text.blocks][:3] == [("Top",), ("Top", "Under"), ("Top", "Under")]
    assert text.blocks[3].kind is BlockKind.PARAGRAPH  # a table is no heading


def test_source_code_is_read_as_code_without_headings():
    text = read("tool.py", "x = 1\n====\n\ndef f():\n    return x\n\n    # still f\n")
    assert {block.kind for block in text.blocks} == {BlockKind.CODE}
    assert text.title == "tool"
    assert shown(text)[-1][2] == "    # still f"


def test_markdown_is_its_own_text_and_front_matter_is_only_a_title():
    source = (
        "---\ntitle: 'Owls'\n---\n# Barn *owl*\n\nIt `hunts`.\n\n"
        "```py\na\n\nb\n```\n\n- one\n- two\n\nSub\n---\n<!-- no -->\n"
    )
    text = read("owls.md", source)
    assert text.text == source
    assert text.title == "Owls"
    assert shown(text) == [
        ("heading", ("Barn owl",), "# Barn *owl*"),
        ("paragraph", ("Barn owl",), "It `hunts`."),
        ("code", ("Barn owl",), "```py\na\n\nb\n```"),
        ("paragraph", ("Barn owl",), "- one\n- two"),
        ("heading", ("Barn owl", "Sub"), "Sub\n---"),
    ]


def test_html_is_its_visible_text():
    page = """<!doctype html><html><head><title>Owls &amp; co</title><style>p{}</style></head><body>
    <nav>Home</nav><h1>Barn owl<a href="#x">¶</a></h1><p>It <b>hunts</b>
    at night.<br>Mostly.</p><script>bad()</script><div>Loose<p>inner</p>tail</div>
    <h2>Code</h2><pre>def f():
    return 1</pre><ul><li>one</li><li>two</ul><table><tr><th>A<th>B<tr><td>1<td>2</table>
    <p hidden>secret</p></body></html>"""
    text = read("page.html", page)
    assert text.title == "Owls & co"
    assert shown(text) == [
        ("heading", ("Barn owl",), "Barn owl"),
        ("paragraph", ("Barn owl",), "It hunts at night.\nMostly."),
        ("paragraph", ("Barn owl",), "Loose"),
        ("paragraph", ("Barn owl",), "inner"),
        ("paragraph", ("Barn owl",), "tail"),
        ("heading", ("Barn owl", "Code"), "Code"),
        ("code", ("Barn owl", "Code"), "def f():\n    return 1"),
        *(("paragraph", ("Barn owl", "Code"), line) for line in ("- one", "- two", "A | B", "1 | 2")),
    ]


def test_html_prefers_main_honours_its_charset_and_survives_deep_nesting():
    assert read("m.html", "<body><p>menu</p><main><p>body</p></main></body>").text == "body"
    assert read("l.html", '<meta charset="iso-8859-2"><p>Łódź</p>'.encode("iso-8859-2")).text == "Łódź"
    assert read("d.html", "<div>" * 5_000 + "deep" + "</div>" * 5_000).text == "deep"


def test_pdf_keeps_pages_outline_headings_and_title():
    pages = ["Owls\nThey hunt at night with won-\nderful ears.", "", "Diet\nVoles (mostly)."]
    text = read("owls.pdf", make_pdf(pages, "On owls", [("Owls", 0), ("Diet", 2)]))
    assert text.title == "On owls"
    assert "wonderful ears" in text.text
    assert shown(text)[0] == ("heading", ("Owls",), "Owls")
    assert text.page_at(text.text.index("hunt")) == 1
    assert text.page_at(text.text.index("Voles")) == 3
    assert [block.heading_path for block in text.blocks][-1] == ("Diet",)


def test_docx_keeps_headings_lists_and_tables_in_order():
    text = read("guide.docx", make_docx())
    assert text.title == "Field guide"
    assert shown(text)[2:] == [
        ("heading", ("Field guide", "Barn owl"), "Barn owl"),
        ("paragraph", ("Field guide", "Barn owl"), "It has a heart-shaped face."),
        ("paragraph", ("Field guide", "Barn owl"), "- voles"),
        ("paragraph", ("Field guide", "Barn owl"), "cell 0 | cell 1\ncell 2 | cell 3"),
    ]
    assert read("guide.docx", make_docx("Set title")).title == "Set title"


BROKEN_PDF = b"%PDF-1.7\nthis is not a PDF at all\n%%EOF"


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("empty.txt", b"", "is empty"),
        ("blank.md", b" \n\n ", "no text"),
        ("noise.txt", bytes(range(256)) * 8, "binary"),
        ("noise", b"\x01\x02\x03\x04" * 50, "binary"),
        ("comment.html", b"<html><script>x</script></html>", "no text"),
        ("secret.pdf", make_pdf(["hidden"], password="x"), "encrypted"),
        ("scan.pdf", make_pdf([""]), "OCR"),
        ("broken.pdf", BROKEN_PDF, "PDF"),
        ("cut.pdf", make_pdf(["some text"])[:200], "PDF"),
        ("cut.docx", make_docx()[:500], "broken"),
        ("old.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\x00" * 512, "encrypted or pre-2007"),
    ],
)
def test_an_unusable_file_is_an_error_that_names_it_and_says_why(name: str, data: bytes, reason: str):
    with pytest.raises(ExtractError, match=reason) as caught:
        read(name, data)
    assert str(caught.value).startswith(name)


def test_a_zip_that_is_no_document_is_refused():
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "text")
    with pytest.raises(ExtractError, match="zip archive"):
        read("a.docx", archive.getvalue())


def test_a_pdf_with_an_empty_user_password_is_readable():
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(PdfReader(BytesIO(make_pdf(["open to all"]))))
    writer.encrypt(user_password="", owner_password="owner", algorithm="AES-256")
    out = BytesIO()
    writer.write(out)
    assert read("open.pdf", out.getvalue()).text == "open to all"


@pytest.mark.parametrize(
    ("name", "data", "declared", "expected"),
    [
        ("a.md", b"x", None, "text/markdown"),
        ("upload", b"%PDF-1.4", "text/plain", "application/pdf"),
        ("upload", b"  <!DOCTYPE html><p>", None, "text/html"),
        ("upload", b"x", "text/html; charset=utf-8", "text/html"),
        ("upload", b"x", "application/x-nonsense", "text/plain"),
        ("a.rs", b"x", None, "text/x-code"),
        ("a.md", b"A file starts with %PDF-1.7.", None, "text/markdown"),
        ("a.pdf", b"what it says", "text/plain", "text/plain"),
        ("notes/a.py", b"x", "text/markdown", "text/markdown"),
        ("a.py", b"x", "text/x-python", "text/x-code"),
        ("a.pdf", b"junk before %PDF-1.4", None, "application/pdf"),
    ],
)
def test_format_is_told_by_content_then_declaration_then_name(name, data, declared, expected):
    assert media_type_of(RawDocument("u", data, name, None, declared)) == expected


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_text_encodings(encoding: str):
    assert read("x.txt", "Grüße — “quoted”".encode(encoding)).text == "Grüße — “quoted”"


def test_titles_fall_back_to_heading_then_file_name():
    assert read("a.txt", "just text").title == "a"
    assert read("a.html", "<h2>Head</h2><p>x").title == "Head"
    assert extract(TextSource("wiki/Owl", "text").read(LIMIT)).title == "Owl"
    assert extract(TextSource("wiki/Owl", "text", title=" Given\ntitle ").read(LIMIT)).title == "Given title"


@given(st.text(max_size=400), st.sampled_from(["a.txt", "a.md", "a.rst", "a.py", "a.html"]))
def test_any_text_gives_ordered_blocks_within_it_or_a_clear_error(source: str, name: str):
    try:
        text = read(name, source.encode("utf-8", "replace"))
    except ExtractError as error:
        assert "no text" in str(error) or "empty" in str(error) or "binary" in str(error)  # noqa: PT017
        return
    text.text.encode("utf-8")  # storable: no lone surrogates
    assert "\x00" not in text.text
    position = 0
    for block in text.blocks:
        assert position <= block.start < block.end <= len(text.text)
        assert text.text[block.start : block.end].strip()
        position = block.end


@given(st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1), min_size=1, max_size=5))
def test_pages_start_where_their_text_does(pages: list[str]):
    from retriever.extract.builder import TextBuilder

    builder = TextBuilder()
    for number, page in enumerate(pages):
        builder.page()
        builder.paragraph(f"{number}:{page}")
    text = builder.build()
    for block in text.blocks:
        assert text.page_at(block.start) == int(text.text[block.start : block.end].split(":")[0]) + 1


def test_walking_folders(tmp_path: Path):
    for name in ("b.txt", "a.md", ".hidden.md", "image.png", "sub/c.rst", ".git/config", "sub/__pycache__/x.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("text")
    found = sources_from_paths([tmp_path, tmp_path / "image.png", tmp_path / "a.md"])
    assert [source.path.name for source in found] == ["a.md", "b.txt", "c.rst", "image.png"]
    assert found[0].uri == str((tmp_path / "a.md").resolve())
    with pytest.raises(SourceError, match=r"nowhere.*does not exist"):
        sources_from_paths([tmp_path / "nowhere"])


def test_sources_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(SourceError, match="missing"):
        FileSource(tmp_path / "gone.txt").read(LIMIT)
    with pytest.raises(SourceError, match="not a regular file"):
        FileSource(tmp_path).read(LIMIT)
    for source in (TextSource("u", "x" * 11), BytesSource("u", b"x" * 11)):
        with pytest.raises(SourceError, match="max_document_bytes"):
            source.read(10)
