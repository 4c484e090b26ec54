"""How much sooner the first token comes than from the baseline: a panel for each experiment, a row for each engine."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rag.bench.analysis.models import ExperimentFigures, Figures
from rag.bench.pictures.axes import NAME, ends, gutter, log_axis
from rag.bench.pictures.sheet import Picture, Sheet, fitting
from rag.bench.pictures.style import AXIS, INK, Look, short, times
from rag.bench.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["speedups"]

ROW, HEAD, FOOT, GAP, VALUE = 21, 26, 34, 18, 54  # pixels
Found = Mapping[str, Estimate]


def speedups(figures: Figures, looks: Mapping[str, Look]) -> Iterator[Picture]:
    """Picture the experiments that have speed-ups, those of the grid left out."""
    found: dict[str, Found] = {}
    for name, one in figures.experiments.items():
        known = {entry.contestant: entry.speedup for entry in one.contestants.values() if entry.speedup}
        if known and not name.startswith("grid-"):
            found[name] = known
    if not found:
        return
    shown = {name: figures.experiments[name] for name in found}
    baselines = sorted({one.baseline for one in shown.values()})
    best = max((estimate.value, engine, name) for name, known in found.items() for engine, estimate in known.items())
    note = (
        f"TTFT of {' or '.join(baselines)} over that of each engine, for the same requests: 2x is half the time. "
        "Whiskers are 95 % intervals; a row without them has too few answers for one. Right is better."
    )
    where = shown[best[2]].experiment.title
    alt = f"Dots with intervals. The greatest speed-up is {times(best[0])}, of {best[1]} in {where}."

    def draw(width: int, title: str, text: str) -> Sheet:
        return _draw(Sheet, width, title, text, shown, found, looks)

    yield Picture("speedup", "", f"First token sooner than with {' or '.join(baselines)}", note, alt, draw)


def _draw(
    make: type[Sheet], width: int, title: str, text: str, shown: Mapping[str, ExperimentFigures],
    found: Mapping[str, Found], looks: Mapping[str, Look],
) -> Sheet:  # fmt: skip
    columns = 1 if width < 600 else min(2, len(found))
    rows = [list(found)[at : at + columns] for at in range(0, len(found), columns)]
    heights = [HEAD + FOOT + ROW * max(len(found[name]) for name in row) for row in rows]
    sheet = make(width, sum(heights), title, text)
    one_width = (width - GAP * (columns - 1)) / columns
    beside = gutter([engine for known in found.values() for engine in known], 20 if columns == 1 else 22)
    values = [1.0, *(end for known in found.values() for one in known.values() for end in ends(one))]
    for row, names in enumerate(rows):
        for column, name in enumerate(names):
            left, top = column * (one_width + GAP), sum(heights[:row])
            words = fitting(shown[name].experiment.title, one_width - 4, 12.5)
            sheet.write(left + 2, top + 14, words, size=12.5, weight="bold")
            axes = sheet.panel(left + beside, top + HEAD, one_width - beside - VALUE, ROW * len(found[name]))
            log_axis(axes, "x", values, lambda tick: f"{tick:g}x")
            _rows(axes, found[name], looks, 20 if columns == 1 else 22)
    return sheet


def _rows(axes: "Axes", known: Found, looks: Mapping[str, Look], most: int) -> None:
    axes.set_ylim(len(known) - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.axvline(1, color=AXIS, lw=1)
    for row, (engine, estimate) in enumerate(known.items()):
        look = looks[engine]
        low, high = ends(estimate)
        axes.plot([low, high], [row, row], color=look.colour, lw=2)
        axes.plot([estimate.value], [row], look.marker, color=look.colour, ms=look.size)
        beside: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "size": NAME}
        axes.annotate(short(engine, most), (0, row), (-8, -4.3), ha="right", color=look.colour, weight="bold", **beside)
        axes.annotate(times(estimate.value), (1, row), (VALUE - 4, -4.3), ha="right", color=INK, **beside)
