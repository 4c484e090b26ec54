"""What engines hold: memory at most, and KV on disk."""

from collections.abc import Iterator, Mapping
from typing import Any

from rag.bench.analysis.models import ContestantFigures, Figures
from rag.bench.pictures.axes import NAME
from rag.bench.pictures.sheet import Picture, Sheet
from rag.bench.pictures.style import INK, Look, short, size

__all__ = ["footprints"]

ROW, HEAD, FOOT, GAP = 40, 26, 16, 28  # pixels


def footprints(figures: Figures, looks: Mapping[str, Look]) -> Iterator[Picture]:
    """Picture the most that each engine held in any experiment; nothing where no engine's memory is known."""
    entries: dict[str, list[ContestantFigures]] = {}
    for one in figures.experiments.values():
        for entry in one.contestants.values():
            entries.setdefault(entry.contestant, []).append(entry)
    held = {name: _held(known) for name, known in entries.items() if any(entry.memory for entry in known)}
    if not held:
        return
    unknown = [name for name in entries if name not in held]
    note = "The most at the end of any experiment. Memory is resident, shared pages by their share. Less is better."
    if unknown:
        note += f" Not known: {', '.join(unknown)}."
    alt = "; ".join(f"{name} {size(memory)} of memory, {size(disk)} on disk" for name, (memory, disk) in held.items())

    def draw(width: int, title: str, text: str) -> Sheet:
        stored = any(disk for _, disk in held.values())
        stacked, height = width < 600, HEAD + ROW * len(held) + FOOT
        below = HEAD + ROW * sum(disk > 0 for _, disk in held.values()) + FOOT if stacked and stored else 0
        sheet = Sheet(width, height + below, title, text)
        one_width = width - 8 if stacked or not stored else (width - GAP) / 2 - 4
        _bars(sheet, (4, 0, one_width), "memory", {name: memory for name, (memory, _) in held.items()}, looks)
        if stored:
            disk = {name: on_disk for name, (_, on_disk) in held.items() if on_disk}
            words = "KV on disk (others keep none)" if len(disk) < len(held) else "KV on disk"
            place = (4, height, one_width) if stacked else (4 + one_width + GAP, 0, one_width)
            _bars(sheet, place, words, disk, looks)
        return sheet

    yield Picture("footprint", "holdings", "Memory and disk", note, f"Bars: {alt}.", draw)


def _held(known: list[ContestantFigures]) -> tuple[int, int]:
    return max(entry.memory or 0 for entry in known), max(entry.disk for entry in known)


def _bars(
    sheet: Sheet, place: tuple[float, float, float], words: str, values: Mapping[str, int],
    looks: Mapping[str, Look],
) -> None:  # fmt: skip
    left, top, width = place
    sheet.write(left, top + 15, words, size=12.5, weight="bold")
    height = ROW * len(values)
    axes = sheet.panel(left, top + HEAD, width, height)
    axes.set(xlim=(0, max(values.values()) or 1), ylim=(height, 0))
    axes.axis("off")
    line: dict[str, Any] = {"xycoords": ("axes points", "data"), "size": NAME}
    for row, (name, value) in enumerate(values.items()):
        look, at = looks[name], ROW * row
        axes.barh(at + 26, value, 12, color=look.colour, lw=0)
        axes.annotate(short(name, 22), (0, at + 15), color=look.colour, weight="bold", **line)
        axes.annotate(size(value), (width, at + 15), ha="right", color=INK, **line)
