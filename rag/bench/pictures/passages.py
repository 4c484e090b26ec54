"""What the number of passages and their length do to the time to the first token: lines over a grid of experiments."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rag.bench.analysis.models import Figures, Times
from rag.bench.pictures.axes import ends, gutter, log_axis, name_lines, values_axis
from rag.bench.pictures.sheet import Picture, Sheet
from rag.bench.pictures.style import Look, duration, span
from rag.bench.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["passages"]

HEIGHT, HEAD, FOOT, LEFT, GAP = 230, 26, 48, 52, 22  # pixels
Point = tuple[int, int]  # passages, tokens of each
Grid = Mapping[str, Mapping[Point, Times]]


def passages(figures: Figures, looks: Mapping[str, Look]) -> Iterator[Picture]:
    """Picture the grid against the number of passages, and against their length; nothing where there is none."""
    grid: dict[str, dict[Point, Times]] = {}
    for name, one in figures.experiments.items():
        spec = one.experiment.workload
        if name.startswith("grid-") and spec.k and spec.length:
            for entry in one.contestants.values():
                if entry.ttft and entry.ttft.p50:
                    grid.setdefault(entry.contestant, {})[spec.k, spec.length] = entry.ttft
    points = {point for known in grid.values() for point in known}
    lengths, numbers = sorted({length for _, length in points}), sorted({k for k, _ in points})
    if len(numbers) > 1:
        panels = {f"passages of {length} tokens": [(k, (k, length)) for k in numbers] for length in lengths}
        yield _picture("passages-number", "number of passages", panels, grid, looks)
    if len(lengths) > 1:
        panels = {f"{k} passage{'s' * (k > 1)}": [(length, (k, length)) for length in lengths] for k in numbers}
        yield _picture("passages-length", "tokens of a passage", panels, grid, looks)


def _picture(
    name: str, axis: str, panels: Mapping[str, Sequence[tuple[int, Point]]], grid: Grid, looks: Mapping[str, Look]
) -> Picture:
    answers = [entry.n for known in grid.values() for entry in known.values()]
    note = (
        f"Median time to the first token with its 95 % interval, {span(answers)} answers a point, both "
        "axes logarithmic. Lower is better."
    )
    last = [point for points in panels.values() for _, point in points][-1]
    medians = ", ".join(
        f"{engine} {duration(_middle(known[last]).value)}" for engine, known in grid.items() if last in known
    )
    alt = f"Lines. With {last[0]} passages of {last[1]} tokens: {medians}."

    def draw(width: int, title: str, text: str) -> Sheet:
        columns = min(len(panels), 1 if width < 600 else 3)
        rows = -(-len(panels) // columns)
        sheet = Sheet(width, rows * (HEAD + HEIGHT + FOOT), title, text)
        names = gutter(list(grid), 16 if columns == 1 else 20)
        one_width = (width - LEFT - names - GAP * (columns - 1)) / columns
        values = [end for known in grid.values() for entry in known.values() for end in ends(_middle(entry))]
        for place, (heading, points) in enumerate(panels.items()):
            row, column = divmod(place, columns)
            left, top = LEFT + column * (one_width + GAP), row * (HEAD + HEIGHT + FOOT)
            sheet.write(left, top + 14, heading, size=12.5, weight="bold")
            axes = sheet.panel(left, top + HEAD, one_width, HEIGHT)
            values_axis(axes, "x", [value for value, _ in points], str)
            log_axis(axes, "y", values, duration)
            axes.set_xlabel(axis)
            shown = _lines(axes, points, grid, looks)
            if column:
                axes.tick_params(labelleft=False)
            if column == columns - 1 or place == len(panels) - 1:
                name_lines(axes, HEIGHT, shown, looks, 16 if columns == 1 else 20)
        return sheet

    return Picture(
        name,
        "grid",
        f"Time to the first token against the {axis.replace('tokens of a passage', 'length of passages')}",
        note,
        alt,
        draw,
    )


def _middle(times: Times) -> Estimate:
    assert times.p50 is not None, "only known medians are drawn"
    return times.p50


def _lines(
    axes: "Axes", points: Sequence[tuple[int, Point]], grid: Grid, looks: Mapping[str, Look]
) -> dict[str, tuple[float, float]]:
    """Draw the engines' lines and return their right ends."""
    right = {}
    for engine, known in grid.items():
        look = looks[engine]
        line = [(value, known[point]) for value, point in points if point in known]
        for value, entry in line:
            axes.plot([value, value], ends(_middle(entry)), color=look.colour, lw=1.2)
        heights = [_middle(entry).value for _, entry in line]
        places = [float(value) for value, _ in line]
        axes.plot(places, heights, marker=look.marker, ls=look.line, color=look.colour, ms=look.size)
        if line:
            right[engine] = (places[-1], heights[-1])
    return right
