"""Chooses the extractor of a document and turns whatever it does into text or one clear error."""

import io
import re
import zipfile
from dataclasses import replace
from importlib import import_module
from pathlib import PurePath

from retriever.document import BlockKind, ExtractedText, RawDocument
from retriever.errors import ExtractError

__all__ = [
    "CODE",
    "EXTRACTORS",
    "EXTRACT_VERSION",
    "MARKDOWN",
    "PLAIN",
    "RST",
    "extract",
    "is_told_by_name",
    "media_type_of",
]

EXTRACT_VERSION = b"2"  # part of a document's content hash: raise it when extraction changes, and all is read anew
MAX_TITLE = 200

HTML, MARKDOWN, PDF, PLAIN = "text/html", "text/markdown", "application/pdf", "text/plain"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
RST, CODE = "text/x-rst", "text/x-code"

EXTRACTORS = {  # modules are imported when first used
    HTML: "html",
    MARKDOWN: "markdown",
    PDF: "pdf",
    DOCX: "docx",
    PLAIN: "text",
    RST: "text",
    CODE: "text",
}
CODE_SUFFIXES = """
.bash .c .cc .cfg .cpp .cs .css .cu .cuh .cxx .go .h .hpp .ini .java .js .json .jsonl .jsx .kt .lua .m .php .pl
.proto .py .pyi .r .rb .rs .scala .sh .sql .swift .toml .ts .tsx .xml .yaml .yml
"""
SUFFIXES = {
    **dict.fromkeys((".html", ".htm", ".xhtml"), HTML),
    **dict.fromkeys((".md", ".markdown", ".mdown", ".mkd"), MARKDOWN),
    **dict.fromkeys((".rst", ".rest"), RST),
    **dict.fromkeys((".txt", ".text", ".log"), PLAIN),
    **dict.fromkeys(CODE_SUFFIXES.split(), CODE),
    ".pdf": PDF,
    ".docx": DOCX,
}
ALIASES = {"application/xhtml+xml": HTML, "text/x-markdown": MARKDOWN, "text/prs.fallenstein.rst": RST}
OLE_MAGIC = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def extract(raw: RawDocument) -> ExtractedText:
    """Return the text and structure of a document; its title is always set.

    Raises:
        ExtractError: the document is empty, binary, encrypted or broken; the message says which.
    """
    if not raw.data:
        raise ExtractError(f"{raw.uri} is empty; add text to it or leave it out")
    kind = media_type_of(raw)
    extractor = import_module(f"retriever.extract.{EXTRACTORS[kind]}")
    try:
        text: ExtractedText = extractor.extract(raw.data, kind)
    except ExtractError as error:
        raise ExtractError(f"{raw.uri}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # third-party parsers raise whatever they like on broken input
        raise ExtractError(
            f"{raw.uri} is broken or not really {kind}: {type(error).__name__}: {error}; repair or convert it"
        ) from error
    if not text.blocks:
        raise ExtractError(f"{raw.uri} holds no text; add text to it or leave it out")
    return replace(text, title=_title(raw, text))


def media_type_of(raw: RawDocument) -> str:
    """Return the media type that decides the extractor, from content first, then what was declared, then name.

    Text that is declared is not what its name says where somebody extracted it from a file already.

    Raises:
        ExtractError: it is a format that no extractor reads.
    """
    head = raw.data[:1024]
    if head.lstrip().startswith(b"%PDF-"):  # further on, it may be a text that tells of PDF
        return PDF
    if head.startswith(OLE_MAGIC):
        raise ExtractError(
            f"{raw.uri} is an encrypted or pre-2007 Office file; remove the password and save it as .docx"
        )
    if head.startswith(b"PK\x03\x04"):
        if _is_docx(raw.data):
            return DOCX
        raise ExtractError(f"{raw.uri} is binary: a zip archive, not a Word document; unpack it")
    declared = (raw.media_type or "").partition(";")[0].strip().lower()
    declared = ALIASES.get(declared, declared)
    if declared in EXTRACTORS:
        return declared
    named = SUFFIXES.get(PurePath(raw.name).suffix.lower())
    if named is not None:
        return named
    return HTML if re.match(rb"\s*(<!doctype html|<html)", head, re.IGNORECASE) else PLAIN


def is_told_by_name(name: str) -> bool:
    """Return whether a file's name tells its format, so that a guess of who sends it is not needed."""
    return PurePath(name).suffix.lower() in SUFFIXES


def _is_docx(data: bytes) -> bool:
    try:
        return "word/document.xml" in zipfile.ZipFile(io.BytesIO(data)).namelist()
    except zipfile.BadZipFile:
        return True  # cut off: let the Word extractor say that it is broken


def _title(raw: RawDocument, text: ExtractedText) -> str:
    headings = (text.text[b.start : b.end] for b in text.blocks if b.kind is BlockKind.HEADING)
    first_path = next((b.heading_path[-1] for b in text.blocks if b.kind is BlockKind.HEADING and b.heading_path), None)
    title = raw.title or text.title or first_path or next(headings, None) or PurePath(raw.name).stem or raw.uri
    return " ".join(title.split())[:MAX_TITLE] or raw.uri
