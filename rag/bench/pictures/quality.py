"""Quality against speed: how far answers stray from those of full prefill, and how much sooner they begin."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rag.bench.analysis.models import ExperimentFigures, Figures, QualityFigures
from rag.bench.pictures.axes import NAME, ends, log_axis
from rag.bench.pictures.sheet import Picture, Sheet, spread, text_width
from rag.bench.pictures.style import AXIS, FAINT, GROUND, INK, VARIANTS, Look, percent, short, span, times
from rag.bench.pictures.style import looks as looks_of
from rag.bench.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["qualities"]

HEIGHT, HEAD, FOOT, LEFT, ROW, GAP, VALUE = 270, 28, 50, 52, 21, 28, 54  # pixels
MEASURES = {
    "f1": "F1 of its words with full prefill's",
    "top1": "tokens ranked first too",
    "gold": "contains the gold text",
}


@dataclass(frozen=True, slots=True)
class _Placed:
    """A variant in the plane."""

    variant: str
    speedup: Estimate
    kl: Estimate


def qualities(figures: Figures, looks: Mapping[str, Look]) -> Iterator[Picture]:
    """Picture each experiment with qualities, once for each number of passages."""
    for one in figures.experiments.values():
        for k in dict.fromkeys(entry.k for entry in one.quality):
            entries = [entry for entry in one.quality if entry.k == k]
            if _placed(entries):
                yield _quality(one, k, entries, {**looks_of([entry.variant for entry in entries], VARIANTS), **looks})


def _placed(entries: Sequence[QualityFigures]) -> list[_Placed]:
    """Those that have a place in the plane; full prefill itself has none on a logarithmic axis."""
    return [
        _Placed(entry.variant, entry.speedup, entry.kl)
        for entry in entries
        if entry.speedup and entry.kl and entry.kl.value > 0
    ]


def _quality(one: ExperimentFigures, k: int, entries: Sequence[QualityFigures], looks: Mapping[str, Look]) -> Picture:
    placed = _placed(entries)
    order = next((entry.kl for entry in entries if entry.variant == "order" and entry.kl), None)
    band = " The grey ground ends where another order of the same passages is." if order else ""
    note = (
        f"{span([entry.n for entry in entries])} questions with {k} passages each. Left to right: how much sooner the "
        "first token comes than with full prefill of the same prompt; bottom to top: KL divergence of the answer's "
        f"tokens from full prefill's, both logarithmic; lower right is better.{band} Whiskers are 95 % intervals."
    )
    said = ", ".join(f"{entry.variant} {entry.kl.value:.3f} at {times(entry.speedup.value)}" for entry in placed)

    def draw(width: int, title: str, text: str) -> Sheet:
        measures = {name: words for name, words in MEASURES.items() if any(getattr(entry, name) for entry in entries)}
        beside = 0 if width < 600 else 330
        below = sum(HEAD + 14 + ROW * _count(entries, name) for name in measures)
        tall = max(HEIGHT, below - HEAD - FOOT) if beside else HEIGHT
        plane = HEAD + tall + FOOT
        sheet = Sheet(width, plane + below if not beside else max(plane, below), title, text)
        sheet.write(4, 15, "KL from full prefill, nats a token", size=12.5, weight="bold")
        axes = sheet.panel(LEFT, HEAD, width - LEFT - 12 - (beside + GAP if beside else 0), tall)
        _plane(axes, placed, order, looks)
        left, top = (width - beside, 0) if beside else (0, plane)
        for name, words in measures.items():
            _measure(sheet, (left, top, beside or width), [e for e in entries if getattr(e, name)], name, words, looks)
            top += HEAD + 14 + ROW * _count(entries, name)
        return sheet

    name = one.experiment.name
    numbers = {entry.k for entry in one.quality}
    tail = f", {k} passages" if len(numbers) > 1 else ""
    alt = f"Points. KL and speed-up: {said}."
    file = f"quality-{name}-{k}" if len(numbers) > 1 else f"quality-{name}"
    return Picture(file, name, f"{one.experiment.title}: quality against speed{tail}", note, alt, draw)


def _plane(axes: "Axes", placed: Sequence[_Placed], order: Estimate | None, looks: Mapping[str, Look]) -> None:
    log_axis(axes, "x", [1.0, *(end for entry in placed for end in ends(entry.speedup))], lambda tick: f"{tick:g}x")
    log_axis(axes, "y", [end for entry in placed for end in _positive(entry.kl)], lambda tick: f"{tick:g}")
    axes.set_xlabel("first token sooner than with full prefill")
    axes.axvline(1, color=AXIS, lw=1)
    if order:
        axes.axhspan(axes.get_ylim()[0], order.value, color=FAINT, lw=0, zorder=0)
    for entry in placed:
        look, x, y = looks[entry.variant], entry.speedup.value, entry.kl.value
        axes.plot(ends(entry.speedup), [y, y], color=look.colour, lw=1.2)
        axes.plot([x, x], _positive(entry.kl), color=look.colour, lw=1.2)
        axes.plot([x], [y], look.marker, color=look.colour, ms=look.size + 2)
    _names(axes, placed, looks)


def _names(axes: "Axes", placed: Sequence[_Placed], looks: Mapping[str, Look]) -> None:
    """Write names beside their points, left of them where there is no room, apart where they would touch."""
    inverse, box = axes.transAxes.inverted(), axes.bbox
    for side in ("left", "right"):
        points = {}
        for entry in placed:
            end = axes.transData.transform((entry.speedup.value, entry.kl.value))
            x, y = inverse.transform(end)
            room = box.width * (1 - x) - 14 > text_width(short(entry.variant, 20), NAME, bold=True)
            if (side == "right") == room:
                points[entry.variant] = (x, y * box.height)
        moved = spread([y for _, y in points.values()], NAME + 3, 6, box.height - 6)
        for (variant, (x, y)), at in zip(points.items(), moved, strict=True):
            how: dict[str, Any] = {"ha": "left" if side == "right" else "right", "weight": "bold", "size": NAME}
            how["bbox"] = {"facecolor": GROUND, "alpha": 0.75, "pad": 0.5, "lw": 0}
            offset = (11 if side == "right" else -11, at - y + (5 if abs(at - y) < 1 else 0))
            axes.annotate(short(variant, 20), (x, y / box.height), offset, xycoords="axes fraction",
                          textcoords="offset points", color=looks[variant].colour, **how)  # fmt: skip


def _measure(
    sheet: Sheet, place: tuple[float, float, float], entries: Sequence[QualityFigures], name: str, words: str,
    looks: Mapping[str, Look],
) -> None:  # fmt: skip
    """Draw a row for each variant: its share, with its interval."""
    left, top, width = place
    beside = max(text_width(short(entry.variant, 18), NAME, bold=True) for entry in entries) + 14
    sheet.write(left + 4, top + 15, words, size=12.5, weight="bold")
    axes = sheet.panel(left + beside, top + HEAD - 4, width - beside - VALUE, ROW * len(entries))
    axes.set(xlim=(0, 1), ylim=(len(entries) - 0.5, -0.5), yticks=[], xticks=[0, 0.5, 1])
    axes.tick_params(length=0, labelbottom=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.grid(axis="x")
    for row, entry in enumerate(entries):
        look, estimate = looks[entry.variant], getattr(entry, name)
        axes.plot(ends(estimate), [row, row], color=look.colour, lw=2)
        axes.plot([estimate.value], [row], look.marker, color=look.colour, ms=look.size, clip_on=False)
        beside_it: dict[str, Any] = {
            "xycoords": ("axes fraction", "data"),
            "textcoords": "offset points",
            "size": NAME,
            "ha": "right",
        }
        axes.annotate(short(entry.variant, 18), (0, row), (-8, -4.3), color=look.colour, weight="bold", **beside_it)
        axes.annotate(percent(estimate.value), (1, row), (VALUE - 4, -4.3), color=INK, **beside_it)


def _count(entries: Sequence[QualityFigures], name: str) -> int:
    return sum(getattr(entry, name) is not None for entry in entries)


def _positive(estimate: Estimate) -> tuple[float, float]:
    """An interval on a logarithmic axis, which has no 0."""
    low, high = ends(estimate)
    return max(low, estimate.value / 10), high
