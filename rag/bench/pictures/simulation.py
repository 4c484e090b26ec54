"""Hit rates against the size of the cache: a panel for each way to reuse, a line for each policy."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rag.bench.analysis.models import ExperimentFigures, Figures
from rag.bench.pictures.axes import gutter, name_lines, values_axis
from rag.bench.pictures.sheet import Picture, Sheet
from rag.bench.pictures.style import POLICIES, Look, percent
from rag.bench.suite.records import SimulationRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["simulations"]

HEIGHT, HEAD, FOOT, LEFT, GAP = 220, 26, 50, 48, 24  # pixels
WAYS = {
    ("exact", "score"): "exact reuse, order by score",
    ("exact", "cache"): "exact reuse, order for the cache",
    ("chunk", "score"): "chunk reuse, order by score",
    ("chunk", "cache"): "chunk reuse, order for the cache",
}
Way = tuple[str, str]


def simulations(figures: Figures, _looks: Mapping[str, Look]) -> Iterator[Picture]:
    """Picture each simulated experiment."""
    for one in figures.experiments.values():
        if one.simulation:
            yield _simulation(one, one.simulation)


def _simulation(one: ExperimentFigures, points: Sequence[SimulationRecord]) -> Picture:
    ways = list(dict.fromkeys((point.reuse, point.order) for point in points))
    shares = sorted({point.share for point in points})
    asked = one.stream.requests if one.stream else one.experiment.workload.count
    stored = any(point.hit_rate - point.device_rate > 0.005 for point in points)
    disk = " Thick lines are all hits, thin ones those in the memory of the device." if stored else ""
    note = (
        f"Passage tokens found in the cache over all asked for, in {asked} requests through the engine's own "
        "bookkeeping, by the size of the cache as a share of the distinct passages' tokens, and by eviction "
        f"policy.{disk} Higher is better."
    )
    at = min(shares, key=lambda share: abs(share - 0.2))
    best = {
        way: max(point.hit_rate for point in points if (point.reuse, point.order) == way and point.share == at)
        for way in ways
        if any((point.reuse, point.order) == way and point.share == at for point in points)
    }
    said = "; ".join(f"{WAYS.get(way, ' '.join(way))} {percent(rate)}" for way, rate in best.items())

    def draw(width: int, title: str, text: str) -> Sheet:
        columns = min(len(ways), 1 if width < 600 else 3)
        rows = -(-len(ways) // columns)
        sheet = Sheet(width, rows * (HEAD + HEIGHT + FOOT), title, text)
        names = gutter([point.policy for point in points], 12)
        one_width = (width - LEFT - names * columns - GAP * (columns - 1)) / columns
        for place, way in enumerate(ways):
            row, column = divmod(place, columns)
            left, top = LEFT + column * (one_width + names + GAP), row * (HEAD + HEIGHT + FOOT)
            sheet.write(
                left - (0 if column else LEFT - 4), top + 14, WAYS.get(way, " ".join(way)), size=12.5, weight="bold"
            )
            axes = sheet.panel(left, top + HEAD, one_width, HEIGHT)
            _panel(axes, [point for point in points if (point.reuse, point.order) == way], shares, stored=stored)
            if column:
                axes.tick_params(labelleft=False)
        return sheet

    name = one.experiment.name
    alt = f"Lines. Best policy with a cache of {percent(at)}: {said}."
    return Picture(f"simulation-{name}", name, one.experiment.title, note, alt, draw)


def _panel(axes: "Axes", points: Sequence[SimulationRecord], shares: Sequence[float], *, stored: bool) -> None:
    values_axis(axes, "x", shares, lambda share: f"{share * 100:g}")
    axes.set(ylim=(0, 1.03), yticks=[0, 0.25, 0.5, 0.75, 1], xlabel="cache size, % (logarithmic)")
    axes.set_yticklabels([percent(tick) for tick in (0, 0.25, 0.5, 0.75, 1)])
    axes.grid(axis="y")
    ends = {}
    for policy in dict.fromkeys(point.policy for point in points):
        line = sorted((point.share, point.hit_rate, point.device_rate) for point in points if point.policy == policy)
        look = POLICIES.get(policy) or next(iter(POLICIES.values()))
        places, hits, kept = zip(*line, strict=True)
        axes.plot(places, hits, marker=look.marker, ls=look.line, color=look.colour, ms=look.size)
        if stored:
            axes.plot(places, kept, ls=look.line, color=look.colour, lw=1)
        ends[policy] = (places[-1], hits[-1])
    name_lines(axes, HEIGHT, ends, POLICIES, 12)
