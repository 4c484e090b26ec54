"""Word documents through python-docx: paragraphs, headings, lists and tables in their order."""

import io
import re
import zipfile
from typing import Any

from retriever.document import ExtractedText
from retriever.errors import ExtractError
from retriever.extract.builder import TextBuilder

__all__ = ["extract"]

HEADING_STYLE = re.compile(r"heading\s*([1-9])", re.IGNORECASE)
MAX_UNPACKED_BYTES = 256 * 2**20
MAX_RATIO = 200  # Word's own XML packs at 10 to 50 : 1, zeros at 1000 : 1
ANY_RATIO_BYTES = 16 * 2**20  # as much may be packed at any ratio
MAX_ENTRIES = 10_000


def extract(data: bytes, media_type: str) -> ExtractedText:  # noqa: ARG001 - the extractors share one signature
    """Return the text of the document's body.

    Raises:
        ExtractError: the file is broken, or an archive bomb.
    """
    import docx
    from docx.opc.exceptions import PackageNotFoundError
    from docx.table import Table

    try:
        _check_size(data)
        document = docx.Document(io.BytesIO(data))
    except (zipfile.BadZipFile, PackageNotFoundError, KeyError, ValueError) as error:
        raise ExtractError(f"it is a broken Word document ({error}); open and save it again") from error
    builder = TextBuilder()
    for item in document.iter_inner_content():
        if isinstance(item, Table):
            _add_table(builder, item)
        else:
            _add_paragraph(builder, item)
    return builder.build(document.core_properties.title or None)


def _check_size(data: bytes) -> None:
    """Refuse an archive bomb by what it says of itself, which nobody reads beyond: an entry ends at its stated size."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_ENTRIES:
        raise ExtractError(f"it is an archive of {len(entries)} files, above {MAX_ENTRIES}; save it again")
    if unpacked > MAX_UNPACKED_BYTES:
        raise ExtractError(f"it unpacks to {unpacked} bytes, above {MAX_UNPACKED_BYTES}; split it")
    if unpacked > max(ANY_RATIO_BYTES, MAX_RATIO * len(data)):
        ratio = unpacked // len(data)
        raise ExtractError(f"it unpacks to {unpacked} bytes, {ratio} times its own size; split it or save it again")


def _add_paragraph(builder: TextBuilder, paragraph: Any) -> None:
    style = paragraph.style.name or "" if paragraph.style is not None else ""
    heading = HEADING_STYLE.match(style)
    if heading or style == "Title":
        builder.heading(int(heading[1]) if heading else 1, paragraph.text)
    elif style.startswith("List") and paragraph.text.strip():
        builder.paragraph(f"- {paragraph.text.strip()}")
    else:
        builder.paragraph(paragraph.text)


def _add_table(builder: TextBuilder, table: Any) -> None:
    """Add a table as one paragraph, a line a row; a cell that spans columns is written once."""
    rows = []
    for row in table.rows:
        cells = list({id(cell._tc): cell.text for cell in row.cells}.values())  # noqa: SLF001 - the only identity it has
        rows.append(" | ".join(" ".join(text.split()) for text in cells))
    builder.paragraph("\n".join(rows))
