"""A corpus from a folder of documentation, as Debian's packages install it: HTML, or plain text where there is none.

Pages become text with underlined headings, so that questions can be made from them and a gold text is found again in
the passages that a splitter cuts. Only the text is read; nothing in a page is run or fetched.
"""

import gzip
import re
import zlib
from collections.abc import Iterator
from hashlib import blake2b
from itertools import groupby
from pathlib import Path

from selectolax.lexbor import LexborHTMLParser, LexborNode

from data.corpora import CORPUS_NAMES, Corpus, CorpusDocument, load_corpus
from data.errors import CorpusUnavailableError, UnknownCorpusError

__all__ = ["find_corpus", "load_folder"]

HTML = frozenset((".html", ".htm", ".xhtml"))
TEXT = frozenset((".txt", ".rst", ".md"))
UNDERLINES = {"h1": "=", "h2": "-", "h3": "~", "h4": "^", "h5": '"', "h6": "'"}
INDEXES = re.compile(r"(genindex(-\w+)?|py-modindex|search|changelog|copyright)(\.|$)|_", re.IGNORECASE)
CHARSET = re.compile(rb"""<meta\s[^>]*charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)

# What surrounds a page's text: as Sphinx, DocBook, Doxygen and the like mark it.
FURNITURE = """
script, style, nav, header, footer, template, noscript, form, [role=navigation], [role=search], [hidden], .navheader,
.navfooter, .toc, .contents, .sphinxsidebar, .related, .headerlink, .mobile-nav, .menu-wrapper, #nav-path, #side-nav
"""
MAIN = "main, [role=main], #content"
BLOCK_TAGS = """
address article aside blockquote body center dd details div dl dt fieldset figure h1 h2 h3 h4 h5 h6 li main ol p pre
section summary table td th tr ul
"""
BLOCKS = frozenset(BLOCK_TAGS.split())
LATIN = frozenset(("ascii", "us-ascii", "iso-8859-1", "iso8859-1", "latin1"))  # browsers read them as Windows's own
LONGEST_TITLE = 120  # characters; what is longer is a paragraph


def find_corpus(place: str) -> Corpus:
    """Load a corpus by name, or from the folder that is named.

    Raises:
        UnknownCorpusError: there is neither.
        CorpusUnavailableError: its files are missing or cannot be read.
    """
    if place in CORPUS_NAMES:
        return load_corpus(place)
    if not Path(place).expanduser().is_dir():
        raise UnknownCorpusError(
            f"unknown corpus {place!r}: choose one of {', '.join(CORPUS_NAMES)}, or name a folder of documentation"
        )
    return load_folder(Path(place))


def load_folder(path: Path) -> Corpus:
    """Load the documents below a folder, ordered by their path in it.

    Symbolic links to what is there already, indexes, changelogs and files without text are left out.

    Args:
        path: of the folder. Corpora of different folders have different names.

    Raises:
        CorpusUnavailableError: it is no folder, holds no documents, or one cannot be read.
    """
    path = path.expanduser().absolute()
    if not path.is_dir():
        raise CorpusUnavailableError(f"{path} is not a folder: give one with documentation in HTML or text")
    name = _name(path)
    files = list(_files(path, HTML)) or list(_files(path, TEXT))
    documents = [_document(file, file.relative_to(path).as_posix(), name) for file in files]
    kept = tuple(document for document in documents if document.text.strip())
    if not kept:
        raise CorpusUnavailableError(
            f"{path} holds no {', '.join(sorted(HTML | TEXT))} files with text: give a folder of documentation"
        )
    return Corpus(name, f"{path}, {len(kept)} documents", "NOASSERTION", kept)


def _name(path: Path) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", "-".join(path.parts[-2:]).lower()).strip("-")
    return f"{words[-40:].strip('-') or 'folder'}-{blake2b(str(path).encode(), digest_size=4).hexdigest()}"


def _files(folder: Path, suffixes: frozenset[str]) -> Iterator[Path]:
    seen: set[Path] = set()
    for file in sorted(folder.rglob("*"), key=lambda one: one.relative_to(folder).as_posix()):
        inner = file.relative_to(folder).parts
        plain = Path(file.name.removesuffix(".gz"))
        if plain.suffix.lower() not in suffixes or any(map(INDEXES.match, inner)) or not file.is_file():
            continue
        if (target := file.resolve()) not in seen:
            seen.add(target)
            yield file


def _document(file: Path, inner: str, corpus: str) -> CorpusDocument:
    try:
        data = file.read_bytes()
        if file.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusUnavailableError(f"{file} cannot be read ({error}): repair it or move it elsewhere") from error
    if Path(inner.removesuffix(".gz")).suffix.lower() in HTML:
        title, text = _page(data)
    else:
        title, text = "", data.decode("utf-8", errors="replace").replace("\r\n", "\n")
    return CorpusDocument(inner, title or inner, text, "text/x-rst", f"{corpus}:{inner}")


def _page(data: bytes) -> tuple[str, str]:
    """Return title and text of an HTML page."""
    tree = LexborHTMLParser(_decoded(data).encode())
    for node in tree.css(FURNITURE):
        node.decompose()
    mains = [node for node in tree.css(MAIN) if node.text().strip()]
    root = mains[0] if mains else tree.body
    if root is None:
        return "", ""
    pieces = [node for node in root.traverse(include_text=True) if node.tag in {"-text", "br"}]
    blocks = [_block(list(nodes)) for _, nodes in groupby(pieces, lambda node: _holder(node).mem_id)]
    heads = [_line(node.text()) for node in (root.css_first("h1"), tree.css_first("title")) if node is not None]
    return next(filter(None, heads), ""), "\n\n".join(filter(None, blocks)) + "\n"


def _decoded(page: bytes) -> str:
    """Return a page's text by the encoding that it names at its beginning, as browsers do, or UTF-8."""
    named = CHARSET.search(page[:1024])
    charset = named[1].decode("ascii").lower() if named else "utf-8"
    if charset in LATIN:
        charset = "cp1252"
    elif charset.startswith("utf-16"):  # or its name could not have been found
        charset = "utf-8"
    try:
        return page.decode(charset, errors="replace")
    except (LookupError, UnicodeError):
        return page.decode("utf-8", errors="replace")


def _holder(node: LexborNode) -> LexborNode:
    """Return the innermost block that a piece of text is in."""
    while node.parent is not None and node.tag not in BLOCKS:
        node = node.parent
    return node


def _block(pieces: list[LexborNode]) -> str:
    """Return the text of a block's neighbouring pieces, as a paragraph, an underlined heading, or code as it is."""
    holder = _holder(pieces[0]).tag or ""
    text = "".join("\n" if piece.tag == "br" else piece.text_content or "" for piece in pieces)
    if holder == "pre":
        return text.strip("\n").rstrip()
    line = _line(text)
    if line and holder in UNDERLINES and len(line) <= LONGEST_TITLE:
        return f"{line}\n{UNDERLINES[holder] * max(3, len(line))}"
    return f"- {line}" if line and holder == "li" else line


def _line(text: str) -> str:
    return " ".join(text.split())
