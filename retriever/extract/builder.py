"""Puts extracted text together block by block, keeping offsets, headings and pages."""

from retriever.document import Block, BlockKind, ExtractedText

__all__ = ["HeadingStack", "TextBuilder", "clean"]

SEPARATOR = "\n\n"


def clean(text: str) -> str:
    """Return text that SQLite and JSON can hold: no NUL, no lone surrogates, newlines as line feeds."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class HeadingStack:
    """The headings above the current place."""

    def __init__(self) -> None:
        self._open: list[tuple[int, str]] = []

    def push(self, level: int, title: str) -> tuple[str, ...]:
        """Enter a heading of a level (1 is the highest) and return the path that ends with it."""
        while self._open and self._open[-1][0] >= level:
            self._open.pop()
        self._open.append((level, " ".join(title.split())))
        return self.path

    @property
    def path(self) -> tuple[str, ...]:
        """Return the titles of the open headings, outermost first."""
        return tuple(title for _, title in self._open)


class TextBuilder:
    """Collects blocks of a format whose text is not kept as it is in the file."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._length = 0
        self._blocks: list[Block] = []
        self._pages: list[int] = []
        self._headings = HeadingStack()

    def heading(self, level: int, text: str) -> None:
        """Add a heading; what follows is below it."""
        text = " ".join(clean(text).split())
        if text:
            self._headings.push(level, text)
            self._append(text, BlockKind.HEADING)

    def enter(self, level: int, title: str) -> None:
        """Go below a heading whose text is not part of the document's text."""
        self._headings.push(level, clean(title))

    def paragraph(self, text: str) -> None:
        """Add a paragraph."""
        self._append(clean(text).strip(), BlockKind.PARAGRAPH)

    def code(self, text: str) -> None:
        """Add preformatted text; its indentation is kept."""
        self._append(clean(text).strip("\n").rstrip(), BlockKind.CODE)

    def page(self) -> None:
        """Start the next page."""
        self._pages.append(self._length + (len(SEPARATOR) if self._parts else 0))

    def build(self, title: str | None = None) -> ExtractedText:
        """Return everything added so far."""
        title = clean(title).strip() if title else None
        return ExtractedText("".join(self._parts), tuple(self._blocks), title or None, tuple(self._pages))

    def _append(self, text: str, kind: BlockKind) -> None:
        if not text.strip():
            return
        if self._parts:
            self._parts.append(SEPARATOR)
            self._length += len(SEPARATOR)
        self._blocks.append(Block(self._length, self._length + len(text), kind, self._headings.path))
        self._parts.append(text)
        self._length += len(text)
