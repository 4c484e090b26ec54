"""What the retriever's tests share: an encoder without a model, and files of every format made on the spot."""

import io
import re
from collections.abc import Sequence

from retriever.document import PassageDraft
from retriever.hash_embedder import HashEmbedder


class WordEncoder:
    """Counts words and signs; token ids are hashes of them."""

    def __init__(self, fingerprint: str = "words-1") -> None:
        self.fingerprint = fingerprint
        self.count_calls = 0

    def _tokens(self, text: str) -> list[str]:
        return re.findall(r"\w+|[^\w\s]|\n", text)

    def count(self, texts: Sequence[str]) -> list[int]:
        self.count_calls += 1
        return [len(self._tokens(text)) for text in texts]

    def encode(self, passages: Sequence[PassageDraft]) -> list[list[int]]:
        headers = (f"[{p.label}] {p.title} {' '.join(p.heading_path)}" for p in passages)
        return [
            [sum(word.encode()) % 50_000 for word in self._tokens(f"{header}\n{p.text}")]
            for header, p in zip(headers, passages, strict=True)
        ]


class CountingEmbedder(HashEmbedder):
    """Remembers how many texts it embedded."""

    def __init__(self, dimension: int = 64, window_words: int = 128) -> None:
        super().__init__(dimension, window_words)
        self.embedded = 0

    def embed_documents(self, texts, headers=None):
        self.embedded += len(texts)
        return super().embed_documents(texts, headers)


def make_pdf(
    pages: Sequence[str], title: str = "", outline: Sequence[tuple[str, int]] = (), password: str = ""
) -> bytes:
    """Return a PDF with one line of text a line, an outline of (title, page from 0), encrypted with a password."""
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    font = DictionaryObject(
        {
            NameObject("/Type"): NameObject("/Font"),
            NameObject("/Subtype"): NameObject("/Type1"),
            NameObject("/BaseFont"): NameObject("/Helvetica"),
        }
    )
    for text in pages:
        page = writer.add_blank_page(612, 792)
        fonts = DictionaryObject({NameObject("/F1"): writer._add_object(font)})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        lines = [line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)") for line in text.split("\n")]
        shown = " T* ".join(f"({line}) Tj" for line in lines)
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 14 TL 72 720 Td {shown} ET".encode("latin-1"))
        page[NameObject("/Contents")] = writer._add_object(stream)
    if title:
        writer.add_metadata({"/Title": title})
    for name, number in outline:
        writer.add_outline_item(title=name, page_number=number)
    if password:
        writer.encrypt(password, algorithm="AES-256")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def make_docx(title: str = "") -> bytes:
    """Return a Word document with headings, paragraphs, a list and a table."""
    import docx

    document = docx.Document()
    document.core_properties.title = title
    document.add_heading("Field guide", 1)
    document.add_paragraph("Owls hunt at night.")
    document.add_heading("Barn owl", 2)
    document.add_paragraph("It has a heart-shaped face.")
    document.add_paragraph("voles", style="List Bullet")
    table = document.add_table(rows=2, cols=2)
    for number, cell in enumerate(cell for row in table.rows for cell in row.cells):
        cell.text = f"cell {number}"
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()
