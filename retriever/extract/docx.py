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
MAX_UNPACKED_BYTES = 512 * 2**20


def extract(data: bytes, media_type: str) -> ExtractedText:  # noqa: ARG001 - the extractors share one signature
    """Return the text of the document's body.

    Raises:
        ExtractError: the file is broken, or unpacks to an absurd size.
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
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > MAX_UNPACKED_BYTES:
        raise ExtractError(f"it unpacks to {unpacked} bytes, above {MAX_UNPACKED_BYTES}; split it")


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
