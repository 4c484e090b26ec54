"""How pictures look: one colour, marker and line for each engine, the same in every picture.

No picture needs its colours: engines differ in marker and line too, and are named where they are drawn. Our own ways
of reuse differ in lightness as well, for people who confuse red and green. Pictures are drawn in the light colours;
`DARK` gives each of them its counterpart on a dark ground.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = [
    "AXIS", "DARK", "FAINT", "GRID", "GROUND", "INK", "MUTED", "POLICIES", "SETTINGS", "VARIANTS", "Look",
    "duration", "figures", "looks", "percent", "short", "size", "span", "times", "unbroken",
]  # fmt: skip

GROUND, INK, MUTED, AXIS, GRID, FAINT = (
    "#ffffff", "#1b1d21", "#5b606b", "#8b8a84", "#e4e3de", "#f3f3ef",
)  # fmt: skip

# Light colour and its counterpart on a dark ground; all stand out from their ground by 4.5 at least.
BLUE, TEAL, VIOLET, GREY, RUST, AMBER, PINK, OLIVE, BROWN, NAVY, GREEN, PLUM = ENGINES = (
    "#0a6cb8", "#005f53", "#56259a", "#686d77", "#a3270a", "#946300", "#b02a72", "#4c5a00", "#7d4b2a", "#26408f",
    "#2f7d32", "#5d2a6b",
)  # fmt: skip
DARK = {
    GROUND: "#1b1e24", INK: "#e7e8ea", MUTED: "#a3a9b5", AXIS: "#737a88", GRID: "#30343d", FAINT: "#23272e",
    BLUE: "#4ea6ee", TEAL: "#5fe3cf", VIOLET: "#d3bfff", GREY: "#969ca9", RUST: "#f27a52", AMBER: "#f0c45e",
    PINK: "#f28cc0", OLIVE: "#c9d86a", BROWN: "#d1a07c", NAVY: "#93a9f5", GREEN: "#7fcf83", PLUM: "#d79be8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Look:
    """How an engine, a policy or a variant is drawn."""

    colour: str
    marker: str
    line: str | tuple[float, tuple[float, ...]] = "-"
    size: float = 6.0


DASH, DOT, DASH_DOT, LONG = (0.0, (4.0, 1.6)), (0.0, (1.2, 1.6)), (0.0, (5.0, 1.6, 1.2, 1.6)), (0.0, (8.0, 2.0))
KNOWN = {
    "preread-chunk": Look(BLUE, "o", size=7),
    "preread-order": Look(TEAL, "D"),
    "preread-exact": Look(VIOLET, "s"),
    "preread-off": Look(GREY, "X", DOT, 7),
    "openvino": Look(RUST, "^", DASH, 7),
    "transformers": Look(AMBER, "v", DASH_DOT, 7),
    "llamacpp": Look(PINK, "P", DASH, 7),
    "vllm": Look(OLIVE, "<", LONG, 7),
    "sglang": Look(BROWN, ">", DASH_DOT, 7),
}
SPARE = (
    Look(NAVY, "p", LONG, 7), Look(GREEN, "h", DASH, 7), Look(PLUM, "*", DASH_DOT, 9), Look(BROWN, "d", DOT, 7),
    Look(RUST, "H", DASH_DOT, 7), Look(TEAL, "8", DOT), Look(AMBER, "o", LONG), Look(PINK, "s", DOT),
)  # fmt: skip

POLICIES = {"lru": Look(GREY, "s", DOT), "lfu": Look(AMBER, "^", DASH, 7), "pgdsf": Look(BLUE, "o", size=7)}
VARIANTS = {
    "chunk": KNOWN["preread-chunk"],
    "order": KNOWN["preread-order"],
    "full": Look(NAVY, "s"),
    "none": KNOWN["preread-off"],
    "wrong-shift": Look(RUST, "X", size=8),
}

# What matplotlib is told before a picture is drawn; a unit is a CSS pixel.
SETTINGS = {
    "svg.fonttype": "none",
    "text.hinting": "no_hinting",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 12.0,
    "text.color": INK,
    "figure.facecolor": GROUND,
    "savefig.facecolor": GROUND,
    "axes.facecolor": "none",
    "axes.edgecolor": AXIS,
    "axes.linewidth": 1.0,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 12.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": GRID,
    "grid.linewidth": 1.0,
    "xtick.color": AXIS,
    "ytick.color": AXIS,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
}


def looks(names: Iterable[str], known: Mapping[str, Look] = KNOWN) -> dict[str, Look]:
    """Return a look for each name, no two alike while there are looks left; those that are known keep theirs.

    An address, or another repair of chunk reuse, gets one that is left over, by its place among the names.
    """
    ordered = list(dict.fromkeys(names))
    found = {name: known[name] for name in ordered if name in known}
    taken = set(found.values())
    colours = {look.colour for look in taken}
    spare = [look for look in (*SPARE, *known.values()) if look not in taken]
    spare.sort(key=lambda look: look.colour in colours)
    others = [name for name in ordered if name not in found]
    return {**found, **{name: spare[place % len(spare)] for place, name in enumerate(others)}}


def duration(milliseconds: float) -> str:
    """Write a time with its unit, to two or three figures.

    >>> duration(12.3), duration(412), duration(2500), duration(95_000)
    ('12.3 ms', '412 ms', '2.5 s', '95 s')
    """
    return f"{figures(milliseconds)} ms" if milliseconds < 999.5 else f"{figures(milliseconds / 1000)} s"


def times(factor: float) -> str:
    """Write a factor to two or three figures.

    >>> times(6.254), times(0.5), times(19.44), times(0.00123)
    ('6.25x', '0.50x', '19.4x', '0.0012x')
    """
    if factor < 0.095:
        return f"{factor:.2g}x"
    return f"{factor:.2f}x" if factor < 9.995 else f"{factor:.1f}x" if factor < 99.95 else f"{factor:.0f}x"


def size(count: float) -> str:
    """Write a number of bytes.

    >>> size(340 << 20), size(9 << 28)
    ('340 MiB', '2.25 GiB')
    """
    return f"{figures(count / 2**20)} MiB" if count < 2**30 * 0.9995 else f"{figures(count / 2**30)} GiB"


def percent(value: float) -> str:
    """Write a share.

    >>> percent(0.05), percent(0.731)
    ('5 %', '73 %')
    """
    return f"{value * 100:.0f} %"


def span(counts: Sequence[int]) -> str:
    """Write how many there are of something, in several places.

    >>> span([12, 12]), span([9, 12])
    ('12', '9 to 12')
    """
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def unbroken(text: str) -> str:
    """Keep numbers and their per cent signs on one line."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def short(text: str, most: int) -> str:
    """Cut the middle out of a long name."""
    if len(text) <= most:
        return text
    head = (most - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def figures(number: float) -> str:
    """Write a number to two or three figures."""
    if number >= 99.95:
        return f"{number:,.0f}"
    return f"{number:.1f}".removesuffix(".0") if number >= 9.995 else f"{number:.2f}".rstrip("0").rstrip(".")
