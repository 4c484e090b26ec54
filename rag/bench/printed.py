"""Reports on paper: tables and lines as plain text of a width."""

from collections.abc import Iterable
from io import StringIO

from rich.console import Console, RenderableType
from rich.table import Table

__all__ = ["as_text", "facts_table"]


def as_text(*parts: RenderableType, width: int) -> str:
    """Return tables and lines one below the other, without white space at the ends of lines."""
    console = Console(file=StringIO(), width=width, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def facts_table(facts: Iterable[tuple[str, str]]) -> Table:
    """Return a table of names and texts without lines."""
    table = Table.grid("", "", padding=(0, 2), pad_edge=False)
    for name, text in facts:
        table.add_row(name, text)
    return table
