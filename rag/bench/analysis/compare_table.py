"""A comparison for people."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from rag.bench.analysis.comparison import Change, Comparison
from rag.bench.analysis.words import estimate, significant
from rag.bench.printed import as_text, facts_table

__all__ = ["render"]


def render(comparison: Comparison, *, everything: bool = False, width: int = 160) -> str:
    """Return what changed, or every measure, as a table and a few lines, ending with a line break."""
    found = comparison.found
    parts: list[Table | str] = [facts_table(_facts(comparison))]
    parts += [f"NOTE: {notice}" for notice in comparison.notices]
    parts.append("")
    if everything:
        parts.append(_table("every measure", comparison.changes, comparison.level))
    elif found:
        parts.append(_table("changed beyond noise", found))
    else:
        why = ": --all says why" if comparison.changes else ""
        parts.append("nothing changed beyond noise" if comparison.judged else f"nothing could be compared{why}")
    if comparison.machine:
        moved = ", ".join(f"{one.experiment} x {_ratio(one)} ({one.contestant})" for one in comparison.machine)
        parts.append(f"\nTTFT of the references, which tell what the machine did: {moved}")
    if not everything and comparison.open:
        title = "\nother by a tenth or more, perhaps by chance: not judged (--all says why)"
        parts.append(_table(title, comparison.open))
    return as_text(*parts, "", *_legend(comparison), width=width)


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    sides = (("before", comparison.before), ("after", comparison.after))
    return [(name, f"{side.file}, {side.started}: {side.command}") for name, side in sides]


def _table(title: str, changes: Sequence[Change], level: float | None = None) -> Table:
    """Return a table of changes, with the verdict at a level where one is given."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="")
    for name in ("experiment", "engine or answers", "measure"):
        table.add_column(name)
    for name in ("n", "before", "after", "change (95 %)", "the machine taken out (95 %)"):
        table.add_column(name, justify="right")
    table.add_column("reference")
    if level is not None:
        table.add_column("verdict")
    for one in changes:
        cells = [one.experiment, one.contestant, one.measure, str(one.requests or ""), *_values(one)]
        table.add_row(*cells, *([] if level is None else [_verdict(one, level)]))
    return table


def _values(change: Change) -> list[str]:
    relative = f"x {estimate(change.relative)}" if change.relative else ""
    if change.relative and not change.raw:
        shown = ""
    elif "ms" in change.measure:
        shown = f"x {estimate(change.raw)}"
    elif change.raw is None:
        shown = f"x {significant(change.after / change.before)}" if change.before else ""
    else:
        shown = estimate(change.raw)
        shown = shown if shown.startswith("-") or change.raw.value == 0 else f"+{shown}"
    return [significant(change.before), significant(change.after), shown, relative, change.reference]


def _ratio(change: Change) -> str:
    return significant(change.raw.value) if change.raw else significant(change.after / change.before)


def _verdict(change: Change, level: float) -> str:
    if change.unjudged:
        return f"not judged ({change.unjudged})"
    if change.changed:
        return "changed"
    return "beyond noise, below the least change" if change.q is not None and change.q <= level else "within noise"


def _legend(comparison: Comparison) -> Iterator[str]:
    yield (
        f"{comparison.judged} comparisons were judged. A change is one where its false discovery rate "
        f"(Benjamini-Hochberg) is at most {comparison.level:.0%} and it is at least {comparison.least:.0%} of the "
        f"value before (for shares: a difference of at least {comparison.least_share:g}): "
        "of twenty pairs of files between which nothing changed, about one or fewer show any."
    )
    yield (
        "Intervals of a change are within the two runs: they do not know that the machine may have been another. "
        "Divided by what a reference took for the same request beside it, that cancels, as far as both feel it alike. "
        "What lasts for a whole run, such as how a process happened to get its memory, does not."
    )
