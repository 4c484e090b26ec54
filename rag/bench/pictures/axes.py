"""Parts of plots that several families share: logarithmic axes with round numbers, names beside lines, legends."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import ceil, floor, log10
from typing import TYPE_CHECKING, Literal

from rag.bench.pictures.sheet import Sheet, spread, text_width
from rag.bench.pictures.style import INK, Look, short
from rag.bench.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["NAME", "ends", "gutter", "legend", "legend_height", "log_axis", "name_lines", "round_ticks", "values_axis"]

# Round numbers, sparse series first: every so many decades, at these multiples.
SERIES = (
    (4, (1.0,)), (3, (1.0,)), (2, (1.0,)), (1, (1.0,)), (1, (1.0, 3.0)), (1, (1.0, 2.0, 5.0)),
    (1, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)),
    (1, (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)),
)  # fmt: skip
NAME, TICK = 12.0, 11.5  # pixels of the letters of names, and of what stands beside an axis
KEY, GAP = 26, 18  # pixels of a legend's line, and between its entries


def ends(estimate: Estimate) -> tuple[float, float]:
    """Return the bounds of an interval, or the value twice where there is none."""
    low, high = estimate.low, estimate.high
    return (estimate.value, estimate.value) if low is None or high is None else (low, high)


def round_ticks(low: float, high: float, fits: Callable[[list[float]], bool]) -> list[float]:
    """Return round numbers in low..high: those of the densest of our series that fits.

    >>> round_ticks(0.09, 2.2, lambda ticks: len(ticks) <= 6)
    [0.1, 0.2, 0.5, 1.0, 2.0]
    """
    found: list[float] = []
    for every, steps in SERIES:
        decades = [one for one in range(floor(log10(low)), ceil(log10(high)) + 1) if one % every == 0]
        inside = [
            tick for one in decades for step in steps if low <= (tick := float(f"{step * 10.0**one:.6g}")) <= high
        ]
        if inside and not fits(inside):
            break
        found = inside or found
    return found or [float(f"{(low * high) ** 0.5:.2g}")]


def log_axis(axes: "Axes", which: Literal["x", "y"], values: Sequence[float], write: Callable[[float], str]) -> None:
    """Make an axis logarithmic, wide enough for some values and a little more, with round ticks and a grid."""
    low, high = _scale(axes, which, values)
    length = axes.bbox.width if which == "x" else axes.bbox.height

    def fits(ticks: list[float]) -> bool:
        places = [log10(tick / low) / log10(high / low) * length for tick in ticks]
        sizes = [text_width(write(tick), TICK) + 10 if which == "x" else 26.0 for tick in ticks]
        gaps = zip(pairwise(places), pairwise(sizes), strict=True)
        return all(after - before >= (one + other) / 2 for (before, after), (one, other) in gaps)

    def shown(tick: float) -> bool:
        middle = axes.bbox.x0 + log10(tick / low) / log10(high / low) * length
        return which == "y" or (
            middle >= (half := text_width(write(tick), TICK) / 2) and middle + half <= axes.figure.bbox.width
        )

    _ticks(axes, which, [tick for tick in round_ticks(low, high, fits) if shown(tick)], write)


def values_axis(axes: "Axes", which: Literal["x", "y"], values: Sequence[float], write: Callable[[float], str]) -> None:
    """Make an axis logarithmic with a tick at each of some values and no other."""
    _scale(axes, which, values)
    _ticks(axes, which, values, write)


def _scale(axes: "Axes", which: Literal["x", "y"], values: Sequence[float]) -> tuple[float, float]:
    room = max((max(values) / min(values)) ** 0.06, 1.08)
    limits = min(values) / room, max(values) * room
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(*limits)
    return limits


def _ticks(axes: "Axes", which: Literal["x", "y"], ticks: Sequence[float], write: Callable[[float], str]) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_major_formatter(FixedFormatter([write(tick) for tick in ticks]))
    axis.set_minor_locator(NullLocator())
    axes.grid(visible=True, axis=which)
    axes.tick_params(which="both", length=0)


def gutter(names: Sequence[str], most: int) -> float:
    """Return how many pixels names take beside a plot."""
    return max((text_width(short(name, most), NAME, bold=True) for name in names), default=0.0) + 12


def name_lines(
    axes: "Axes", height: float, ends: Mapping[str, tuple[float, float]], looks: Mapping[str, Look], most: int
) -> None:
    """Write names beside the right ends of their lines, moved apart where they would overlap.

    Args:
        axes: whose scales and limits are set.
        height: of the axes, in pixels.
        ends: of the lines, by name, in the axes' own coordinates.
        looks: of the names.
        most: characters of a name.
    """
    inverse, edge = axes.transAxes.inverted(), axes.get_xlim()[1]
    places = {name: inverse.transform(axes.transData.transform(end))[1] * height for name, end in ends.items()}
    moved = spread(list(places.values()), NAME + 3, 4, height - 4)
    for (name, place), at in zip(places.items(), moved, strict=True):
        end = inverse.transform(axes.transData.transform((edge, 1.0)))[0]
        colour = looks[name].colour
        if abs(at - place) > 2:
            axes.plot(
                [end, end + 8 / 300],
                [place / height, at / height],
                transform=axes.transAxes,
                color=colour,
                lw=0.8,
                clip_on=False,
            )
        axes.annotate(short(name, most), (end, at / height), (9, -NAME * 0.36), xycoords="axes fraction",
                      textcoords="offset points", color=colour, size=NAME, weight="bold")  # fmt: skip


def legend_height(names: Sequence[str], width: float, most: int = 28) -> int:
    """Return how many pixels a legend takes."""
    return 20 * len(_rows(names, width, most)) + 6


def legend(
    sheet: Sheet,
    names: Sequence[str],
    looks: Mapping[str, Look],
    *,
    top: float = 0.0,
    most: int = 28,
    lines: bool = True,
) -> None:
    """Draw a legend across a sheet, in as many rows as it needs."""
    width = sheet.width
    rows = _rows(names, width, most)
    if not rows:
        return
    height = legend_height(names, width, most)
    axes = sheet.panel(0, top, width, height)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    for row, entries in enumerate(rows):
        left, middle = 4.0, 20.0 * row + 10
        for name in entries:
            look = looks[name]
            if lines:
                axes.plot([left, left + KEY], [middle] * 2, color=look.colour, ls=look.line)
            axes.plot([left + KEY / 2], [middle], look.marker, color=look.colour, ms=look.size, mec=look.colour)
            axes.text(left + KEY + 6, middle + NAME * 0.36, short(name, most), size=NAME, color=INK)
            left += _entry(name, most)


def _rows(names: Sequence[str], width: float, most: int) -> list[list[str]]:
    rows: list[list[str]] = []
    left = width
    for name in names:
        if (left + _entry(name, most) - GAP > width - 4 and left > 4) or not rows:
            rows.append([])
            left = 4.0
        rows[-1].append(name)
        left += _entry(name, most)
    return rows


def _entry(name: str, most: int) -> float:
    return KEY + 6 + text_width(short(name, most), NAME) + GAP
