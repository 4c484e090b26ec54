"""The paper that pictures are drawn on: places in pixels, measured text, files that come out the same each time.

Knows matplotlib, and nothing of what is drawn.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rag.bench.pictures.style import INK, MUTED, SETTINGS, unbroken

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "HOW_TO_DRAW",
    "NARROW",
    "WIDE",
    "Picture",
    "Sheet",
    "can_draw",
    "fitting",
    "settings",
    "spread",
    "text_width",
]

WIDE, NARROW = 880, 320  # pixels: a desktop's page, a phone's
MARGIN = 14  # around a picture that stands alone
HOW_TO_DRAW = "pictures need matplotlib: pip install 'preread[bench]'"


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return find_spec("matplotlib") is not None


class Sheet:
    """An empty picture of some width; its height grows with what is put on it.

    Args:
        width: in pixels.
        height: in pixels, without the title.
        title: to be written at the top, for pictures that stand alone; nothing otherwise.
        note: to be written below it.
    """

    def __init__(self, width: int, height: int, title: str = "", note: str = "") -> None:
        from matplotlib.figure import Figure

        self.width = width
        self.narrow = width < 600
        heads = [(line, 15, "bold", INK) for line in _lines(title, width, 15, bold=True)]
        notes = [(line, 11.5, "normal", MUTED) for line in _lines(note, width, 11.5, bold=False)]
        self._top = sum(size * 1.4 for _, size, *_ in (*heads, *notes)) + 14 * bool(title or note)
        self._margin = MARGIN if title else 0
        self.whole = width + 2 * self._margin, height + self._top + 2 * self._margin
        self.figure: Figure = Figure(figsize=(self.whole[0] / 72, self.whole[1] / 72), dpi=72)
        at = -self._top
        for line, size, weight, colour in (*heads, *notes):
            at += size * 1.4
            self.write(2, at, line, size=size, weight=weight, color=colour)

    def panel(self, left: float, top: float, width: float, height: float) -> "Axes":
        """Add axes whose inner rectangle is there, in pixels from the top left below the title."""
        across, down = self.whole
        bottom = down - self._margin - self._top - top - height
        return self.figure.add_axes(((self._margin + left) / across, bottom / down, width / across, height / down))

    def write(self, x: float, y: float, text: str, **how: Any) -> None:
        """Write a line whose baseline is there, in pixels from the top left below the title."""
        across, down = self.whole
        self.figure.text((self._margin + x) / across, 1 - (self._margin + self._top + y) / down, text, **how)


@dataclass(frozen=True, slots=True)
class Picture:
    """Something to look at.

    Attributes:
        name: of its files; letters, digits and hyphens.
        section: what it belongs to: the name of an experiment, or nothing where it shows all.
        title: what it shows, as a sentence or a short line.
        note: how to read it: units, sample size, what is left out.
        alt: what there is to see, in words and figures.
        draw: puts it on a sheet of some width, with the title and note given or without.
    """

    name: str
    section: str
    title: str
    note: str
    alt: str
    draw: Callable[[int, str, str], Sheet]

    def sheet(self, width: int, *, titled: bool) -> Sheet:
        """Draw it."""
        with settings():
            return self.draw(width, self.title, self.note) if titled else self.draw(width, "", "")


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Return how wide a text is, in pixels, in the widest of the fonts that it may be shown in."""
    return sum(_character_width(character, bold) for character in text) * size


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move places apart so that neighbours keep a gap, as little as possible, inside low..high.

    The gap is smaller where there is no room for it.

    Returns:
        The new places, in the order given.
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    gap = min(gap, (high - low) / max(len(places) - 1, 1))
    groups: list[tuple[float, int]] = []  # centre, how many
    for index in order:
        groups.append((places[index], 1))
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < gap * (groups[-1][1] + groups[-2][1]) / 2:
            (one, n), (other, m) = groups[-2:]
            groups[-2:] = [((one * n + other * m) / (n + m), n + m)]
    moved = [centre + gap * (place - (size - 1) / 2) for centre, size in groups for place in range(size)]
    for place in range(len(moved)):
        moved[place] = max(moved[place], moved[place - 1] + gap if place else low)
    for place in reversed(range(len(moved))):
        moved[place] = min(moved[place], moved[place + 1] - gap if place + 1 < len(moved) else high)
    return [moved[order.index(index)] for index in range(len(places))]


def fitting(text: str, width: float, size: float) -> str:
    """Cut a bold line's end off where there is no room for it."""
    if text_width(text, size, bold=True) <= width:
        return text
    while text and text_width(f"{text}…", size, bold=True) > width:
        text = text[:-1].rstrip()
    return f"{text}…"


@contextmanager
def settings(more: dict[str, object] | None = None) -> Iterator[None]:
    """Draw in our style; `more` are further settings of matplotlib."""
    import matplotlib as mpl

    parameters: Any = {**SETTINGS, **(more or {})}
    with mpl.rc_context(parameters), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # names may be in any script
        yield


@cache
def _character_width(character: str, bold: bool) -> float:  # noqa: FBT001 - part of the key
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal", size=100)
    with settings():
        pair = TextPath((0, 0), f"|{character}|", prop=font).get_extents().width
        bars = TextPath((0, 0), "||", prop=font).get_extents().width
    return float(pair - bars) / 100


def _lines(text: str, width: int, size: float, *, bold: bool) -> list[str]:
    """Break a text into lines that fit."""
    lines: list[str] = []
    for word in filter(None, unbroken(text).split(" ")):
        if lines and text_width(f"{lines[-1]} {word}", size, bold=bold) * 1.03 <= width - 6:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
