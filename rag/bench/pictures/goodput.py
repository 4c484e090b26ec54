"""What load an engine bears: p95 against the offered rate, and the highest rate within the limit."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rag.bench.analysis.models import ExperimentFigures, Figures, GoodputFigures, RateStep
from rag.bench.pictures.axes import NAME, legend, legend_height, log_axis
from rag.bench.pictures.sheet import Picture, Sheet
from rag.bench.pictures.style import GROUND, INK, Look, duration, short
from rag.bench.pictures.style import figures as written

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["goodputs"]

LIMIT = 5.0  # times the unloaded p95, as the measure is defined
HIGHEST = 60.0  # times the unloaded p95 above which a point is drawn at the edge
HEIGHT, HEAD, FOOT, LEFT, ROW = 250, 26, 48, 48, 40  # pixels
Known = Mapping[str, GoodputFigures]


def goodputs(figures: Figures, looks: Mapping[str, Look]) -> Iterator[Picture]:
    """Picture each experiment in which rates were raised."""
    for one in figures.experiments.values():
        known = {name: entry for name, entry in one.goodput.items() if entry.steps and entry.unloaded_ms}
        if known:
            yield _goodput(one, known, looks)


def _goodput(one: ExperimentFigures, known: Known, looks: Mapping[str, Look]) -> Picture:
    counts = [step.n for entry in known.values() for step in entry.steps]
    note = (
        f"Goodput is the highest rate whose p95 time to the first token stays within {LIMIT:.0f} times the engine's "
        f"own with a single client; up to {max(counts)} answers a point. Filled points passed, hollow ones failed; "
        "those at the upper edge are beyond it. A pale bar reaches to the lowest rate that failed. More is better."
    )
    if mute := [name for name in one.goodput if name not in known]:
        note += f" Without an answer to a single client: {', '.join(mute)}."
    alt = f"Lines and bars. Goodput: {', '.join(f'{name} {_said(entry)}' for name, entry in known.items())}."

    def draw(width: int, title: str, text: str) -> Sheet:
        names = legend_height(list(known), width)
        bars = HEAD + ROW * len(known)
        sheet = Sheet(width, names + HEAD + HEIGHT + FOOT + bars + FOOT, title, text)
        legend(sheet, list(known), looks)
        sheet.write(4, names + 16, "p95 TTFT over that of a single client", size=12.5, weight="bold")
        curves = sheet.panel(LEFT, names + HEAD, width - LEFT - 12, HEIGHT)
        _curves(curves, known, looks)
        top = names + HEAD + HEIGHT + FOOT
        sheet.write(4, top + 16, "goodput, requests a second", size=12.5, weight="bold")
        _bars(sheet.panel(10, top + HEAD, width - 28, ROW * len(known)), known, looks)
        return sheet

    name = one.experiment.name
    return Picture(f"goodput-{name}", name, f"{one.experiment.title}: goodput", note, alt, draw)


def _curves(axes: "Axes", known: Known, looks: Mapping[str, Look]) -> None:
    heights = [_height(entry, step) for entry in known.values() for step in entry.steps]
    rates = [step.rate for entry in known.values() for step in entry.steps]
    log_axis(axes, "x", rates, _rate)
    log_axis(axes, "y", [1.0, LIMIT * 1.3, *heights], lambda tick: f"{tick:g}x")
    axes.set_xlabel("offered, requests a second (logarithmic)")
    axes.axhline(LIMIT, color=INK, lw=1.2)
    axes.annotate("limit", (1, LIMIT), (-4, 4), xycoords=("axes fraction", "data"), textcoords="offset points",
                  ha="right", size=11, color=INK)  # fmt: skip
    for name, entry in known.items():
        look = looks[name]
        places = [step.rate for step in entry.steps]
        axes.plot(places, [_height(entry, step) for step in entry.steps], ls=look.line, color=look.colour, lw=1.6)
        for step in entry.steps:
            fill = look.colour if step.passed else GROUND
            axes.plot(
                [step.rate], [_height(entry, step)], look.marker, ms=look.size + 0.5, mfc=fill, mec=look.colour,
                mew=1.5, clip_on=False,
            )  # fmt: skip


def _bars(axes: "Axes", known: Known, looks: Mapping[str, Look]) -> None:
    from matplotlib.ticker import MaxNLocator

    most = max(entry.failing or entry.goodput or 0.0 for entry in known.values())
    height = ROW * len(known)
    axes.set(xlim=(0, most * 1.02), ylim=(height, 0), yticks=[])
    ticks = [tick for tick in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(0, most) if tick <= most]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.grid(axis="x")
    axes.tick_params(length=0)
    line: dict[str, Any] = {"xycoords": ("axes points", "data"), "size": NAME}
    for row, (name, entry) in enumerate(known.items()):
        look, top = looks[name], ROW * row
        axes.barh(top + 26, entry.failing or 0.0, 12, color=look.colour, alpha=0.2, lw=0)
        axes.barh(top + 26, entry.goodput or 0.0, 12, color=look.colour, lw=0)
        axes.annotate(short(name, 20), (3, top + 15), color=look.colour, weight="bold", **line)
        axes.annotate(
            f"{_said(entry)}, p95 alone {duration(entry.unloaded_ms or 0)}",
            (axes.bbox.width, top + 15),
            ha="right",
            color=INK,
            **line,
        )


def _height(entry: GoodputFigures, step: RateStep) -> float:
    """The step's p95 over the unloaded one, at most the edge."""
    assert entry.unloaded_ms, "only engines that answered without load are drawn"
    return min(step.p95_ms / entry.unloaded_ms, HIGHEST) if step.p95_ms is not None and not step.cut else HIGHEST


def _said(entry: GoodputFigures) -> str:
    if entry.goodput is None:
        return f"below {_rate(min(step.rate for step in entry.steps))}/s"
    return f"{'at least ' if entry.failing is None else ''}{_rate(entry.goodput)}/s"


def _rate(rate: float) -> str:
    return written(rate)
