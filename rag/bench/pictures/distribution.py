"""How times to the first token are distributed: a row for each engine, its answers as dots under their density."""

from collections.abc import Iterator, Mapping, Sequence
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

from rag.bench.analysis.models import ContestantFigures, ExperimentFigures, Figures
from rag.bench.pictures.axes import ends, log_axis
from rag.bench.pictures.sheet import Picture, Sheet
from rag.bench.pictures.style import INK, MUTED, Look, duration, short, span
from rag.bench.suite.experiment import Drive

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

    Floats = np.ndarray[Any, np.dtype[np.float64]]
    Hill = tuple[Floats, Floats]

__all__ = ["distributions"]

ROW, HEAD, FOOT, HILL = 60, 22, 46, 22  # pixels
DENSE = 8  # answers from which on a density is drawn
STEPS = 90


def distributions(figures: Figures, looks: Mapping[str, Look]) -> Iterator[Picture]:
    """Picture each experiment in turns or under load that has answers; not those of the grid, which are many."""
    for one in figures.experiments.values():
        timed = [entry for entry in one.contestants.values() if entry.ttft and entry.ttft_ms]
        if timed and one.experiment.drive in {Drive.TURNS, Drive.LOAD} and not one.experiment.name.startswith("grid-"):
            yield _distribution(one, sorted(timed, key=_median), looks)


def _distribution(one: ExperimentFigures, timed: list[ContestantFigures], looks: Mapping[str, Look]) -> Picture:
    hills = {entry.contestant: _hill(entry.ttft_ms) for entry in timed if len(entry.ttft_ms) >= DENSE}
    values = [value for entry in timed for value in entry.ttft_ms]
    values += [end for places, _ in hills.values() for end in (float(places[0]), float(places[-1]))]
    answers = span([len(entry.ttft_ms) for entry in timed])
    marks = ", the bar across it its 95 % interval" if any(_known(entry) for entry in timed) else ""
    marks += ", the hill the density of the answers" if hills else ""
    since = "its arrival" if one.experiment.drive is Drive.LOAD else "the request"
    note = (
        f"From {since} to the first token; {answers} answers an engine, warm-up left out. A dot is an answer, the "
        f"upright line the median{marks}. Left is better."
    )
    if lost := [f"{entry.contestant} {entry.ttft.lost}" for entry in timed if entry.ttft and entry.ttft.lost]:
        note += f" Requests without an answer are no dots, and longer than any in the figures: {', '.join(lost)}."
    if mute := [name for name, entry in one.contestants.items() if not entry.ttft]:
        note += f" Without an answer that counts: {', '.join(mute)}."
    medians = ", ".join(f"{entry.contestant} {_said(entry)}" for entry in timed)

    def draw(width: int, title: str, text: str) -> Sheet:
        height = HEAD + ROW * len(timed)
        sheet = Sheet(width, height + FOOT, title, text)
        axes = sheet.panel(8, 0, width - 16, height)
        axes.set_ylim(height, 0)
        axes.spines["left"].set_visible(False)
        log_axis(axes, "x", values, duration)
        axes.set_yticks([])
        axes.set_xlabel("time to the first token (logarithmic)")
        columns = _columns(sheet, timed)
        for name, at in columns.items():
            axes.annotate(name, (at, 14), xycoords=("axes points", "data"), ha="right", size=11, color=MUTED)
        for row, entry in enumerate(timed):
            _row(axes, HEAD + ROW * row, entry, looks[entry.contestant], columns, hills.get(entry.contestant))
        return sheet

    title = f"{one.experiment.title}: time to the first token"
    alt = f"Rows of dots. Median time to the first token: {medians}."
    return Picture(f"ttft-{one.experiment.name}", one.experiment.name, title, note, alt, draw)


def _median(entry: ContestantFigures) -> float:
    assert entry.ttft is not None, "only engines with answers are drawn"
    return entry.ttft.p50.value if entry.ttft.p50 else inf


def _said(entry: ContestantFigures) -> str:
    return duration(_median(entry)) if isfinite(_median(entry)) else "not known"


def _known(entry: ContestantFigures) -> bool:
    """Whether its median has an interval."""
    return entry.ttft is not None and entry.ttft.p50 is not None and entry.ttft.p50.low is not None


def _columns(sheet: Sheet, timed: list[ContestantFigures]) -> dict[str, float]:
    """Where the right edges of the figures are: as many as there is room for, and as anybody has answers for."""
    names = ["median"]
    if any(entry.ttft and entry.ttft.p90 for entry in timed):
        names.append("p90")
    if not sheet.narrow and any(entry.ttft and entry.ttft.p99 for entry in timed):
        names.append("p99")
    return {name: sheet.width - 16 - 72.0 * (len(names) - 1 - place) for place, name in enumerate(names)}


def _row(
    axes: "Axes", top: float, entry: ContestantFigures, look: Look, columns: Mapping[str, float], hill: "Hill | None"
) -> None:
    import numpy as np

    assert entry.ttft is not None, "only engines with answers are drawn"
    sample, base = np.sort(np.asarray(entry.ttft_ms)), top + ROW - 16
    line: dict[str, Any] = {"xycoords": ("axes points", "data"), "va": "baseline"}
    name = short(entry.contestant, int((columns["median"] - 60) / 8))
    axes.annotate(name, (0, top + 13), color=look.colour, weight="bold", size=12, **line)
    known = {"median": entry.ttft.p50, "p90": entry.ttft.p90, "p99": entry.ttft.p99}
    for column, at in columns.items():
        value = known[column]
        axes.annotate(duration(value.value) if value else "-", (at, top + 13), ha="right", size=11.5, color=INK, **line)
    if hill:
        places, density = hill
        axes.fill_between(places, base, base - HILL * density, color=look.colour, alpha=0.28, lw=0)
        axes.plot(places, base - HILL * density, color=look.colour, lw=1.2)
    jitter = (np.arange(len(sample)) * 0.618034) % 1  # the golden section: neighbours never at one height
    dot = 2.4 if len(sample) >= DENSE else 5
    axes.plot(sample, base + 5 + 6 * jitter, "o", ms=dot, color=look.colour, alpha=0.6, mew=0)
    if middle := entry.ttft.p50:
        axes.plot([middle.value] * 2, [base - HILL - 2, base + 12], color=look.colour, lw=2.5)
    if middle and _known(entry):
        axes.plot(ends(middle), [base + 1] * 2, color=look.colour, lw=4)


def _hill(values: Sequence[float]) -> "Hill":
    """Places and the density of the logarithms there, at most 1: Gaussian kernels, Silverman's rule of thumb."""
    import numpy as np

    sample = np.sort(np.log(np.asarray(values)))
    spread = min(sample.std(), (np.percentile(sample, 75) - np.percentile(sample, 25)) / 1.34) or sample.std()
    width = max(0.9 * float(spread) * len(sample) ** -0.2, 0.01)
    places = np.linspace(sample[0] - 2.5 * width, sample[-1] + 2.5 * width, STEPS)
    density = np.exp(-0.5 * ((places[:, None] - sample) / width) ** 2).sum(axis=1)
    return np.exp(places), density / density.max()
