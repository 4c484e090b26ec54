"""How caches fill: the cached share of prompts over the stream, from cold to warm."""

from collections.abc import Iterator, Mapping, Sequence

from rag.bench.analysis.models import ExperimentFigures, Figures
from rag.bench.pictures.axes import gutter, name_lines
from rag.bench.pictures.sheet import Picture, Sheet
from rag.bench.pictures.style import FAINT, MUTED, Look, percent
from rag.bench.suite.experiment import Drive

__all__ = ["warmings"]

HEIGHT, HEAD, FOOT, LEFT = 240, 22, 48, 48  # pixels
FEWEST = 8  # requests below which there is no course to see


def warmings(figures: Figures, looks: Mapping[str, Look]) -> Iterator[Picture]:
    """Picture each experiment in turns where an engine tells what was cached; not those of the grid."""
    for name, one in figures.experiments.items():
        known = {entry.contestant: entry.shares for entry in one.contestants.values() if len(entry.shares) >= FEWEST}
        if known and one.experiment.drive is Drive.TURNS and not name.startswith("grid-"):
            yield _warming(one, known, looks)


def _warming(
    one: ExperimentFigures, known: Mapping[str, tuple[tuple[int, float], ...]], looks: Mapping[str, Look]
) -> Picture:
    window = max(3, max(len(shares) for shares in known.values()) // 10) | 1
    silent = [name for name in one.contestants if name not in known]
    untold = f" {', '.join(silent)}: not told." if silent else ""
    note = (
        f"Share of each prompt's tokens whose KV was not computed, first pass; the line is the mean of {window} "
        f"neighbouring requests. Higher is better.{untold}"
    )
    lines = {name: _smooth([share for _, share in shares], window) for name, shares in known.items()}
    last = ", ".join(f"{name} {percent(line[-1])}" for name, line in lines.items())

    def draw(width: int, title: str, text: str) -> Sheet:
        sheet = Sheet(width, HEAD + HEIGHT + FOOT, title, text)
        names = gutter(list(known), 16 if sheet.narrow else 24)
        axes = sheet.panel(LEFT, HEAD, width - LEFT - names, HEIGHT)
        most = max(shares[-1][0] for shares in known.values())
        axes.set(
            xlim=(0.5, most + 1.5), ylim=(-0.02, 1.02), yticks=[0, 0.25, 0.5, 0.75, 1], xlabel="request of the stream"
        )
        axes.set_yticklabels([percent(tick) for tick in (0, 0.25, 0.5, 0.75, 1)])
        axes.grid(axis="y")
        axes.tick_params(length=0)
        if one.experiment.warmup:
            axes.axvspan(0.5, one.experiment.warmup + 0.5, color=FAINT, lw=0, zorder=0)
            sheet.write(LEFT + 2, 14, "warm-up", size=11, color=MUTED)
        ends = {}
        for name, shares in known.items():
            look, places = looks[name], [number + 1 for number, _ in shares]
            axes.plot(places, [share for _, share in shares], ".", color=look.colour, ms=3.5, alpha=0.45, mew=0)
            every = max(1, len(places) // 8)
            axes.plot(
                places,
                lines[name],
                color=look.colour,
                ls=look.line,
                marker=look.marker,
                markevery=every,
                ms=look.size - 1,
            )
            ends[name] = (places[-1], float(lines[name][-1]))
        name_lines(axes, HEIGHT, ends, looks, 16 if sheet.narrow else 24)
        return sheet

    title = f"{one.experiment.title}: what is cached, from cold to warm"
    alt = f"Lines over the stream. Cached share at its end: {last}."
    return Picture(f"cached-{one.experiment.name}", one.experiment.name, title, note, alt, draw)


def _smooth(values: Sequence[float], window: int) -> list[float]:
    """The mean of neighbours, fewer at the ends."""
    reach = window // 2
    around = (values[max(0, place - reach) : place + reach + 1] for place in range(len(values)))
    return [sum(some) / len(some) for some in around]
