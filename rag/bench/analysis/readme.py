"""The README's benchmark table, generated from a result file and put between two markers."""

from collections.abc import Sequence
from textwrap import fill

from rag.bench.analysis.models import ContestantFigures, ExperimentFigures, Figures
from rag.bench.analysis.readme_words import caveats
from rag.bench.analysis.sections import GRID, goodput
from rag.bench.analysis.words import EMPTY, engine_label, mebibytes, median, percent, plain, table
from rag.bench.suite.experiment import Drive, WorkloadKind
from rag.errors import InvalidRequestError

__all__ = ["BEGIN", "END", "readme_block", "with_block"]

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
WIDTH = 120
COLUMNS = {
    WorkloadKind.QUESTIONS: "questions",
    WorkloadKind.CONVERSATIONS: "conversations",
    WorkloadKind.ORDERS: "new orders",
    WorkloadKind.DOCUMENTS: "long passages",
}


def readme_block(figures: Figures, source: str) -> str:
    """Return the table with its command, hardware and caveats, from marker to marker.

    Args:
        figures: of the run.
        source: path of the result file, as the README names it.

    Raises:
        InvalidRequestError: the run is not whole, or void.
    """
    _refuse(figures, source)
    shown = _shown(figures)
    names = list(dict.fromkeys(name for found in shown.values() for name in found.contestants))
    columns = [
        "engine", *(f"{COLUMNS[kind]}, ms" for kind in shown), "prompt tokens from cache", "goodput, requests/s",
        "F1 with full prefill", "memory, MiB",
    ]  # fmt: skip
    rows = [_row(figures, shown, name) for name in names]
    named = {COLUMNS[kind]: found for kind, found in shown.items()}
    lines = (fill(plain(text), WIDTH, break_on_hyphens=False) for text in caveats(figures, named, source))
    paragraphs = "\n\n".join(lines)
    return f"{BEGIN}\n{table(columns, rows)}\n{paragraphs}\n{END}"


def with_block(text: str, block: str) -> str:
    """Return a README with what is between its markers replaced.

    Raises:
        InvalidRequestError: there is not exactly one pair of markers.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise InvalidRequestError(f"the README needs the lines {BEGIN} and {END} once, in this order: add them")
    return text[: text.index(BEGIN)] + block + text[text.index(END) + len(END) :]


def _refuse(figures: Figures, source: str) -> None:
    """Let no figures into a README that are not those of a whole run that passed its checks."""
    found = figures.experiments.values()
    failed = [one.name for one in figures.checks if not one.passed]
    void = [f"{one.experiment.name}: {reason}" for one in found for reason in one.void]
    missing = [*figures.missing, *(one.experiment.name for one in found if one.passes < one.experiment.repeats)]
    if failed or void:
        reasons = "; ".join([*(f"the self-check {name} failed" for name in failed), *void])
        raise InvalidRequestError(f"{source} is not for a README ({reasons}): mend that, and measure again")
    if missing:
        raise InvalidRequestError(
            f"{source} is not for a README, not complete: {', '.join(missing)}; go on with the same rag bench run and "
            f"--output {source}"
        )


def _shown(figures: Figures) -> dict[WorkloadKind, ExperimentFigures]:
    """The first experiment of each kind whose engines took turns."""
    found: dict[WorkloadKind, ExperimentFigures] = {}
    for one in figures.experiments.values():
        if one.experiment.drive is Drive.TURNS and not GRID.fullmatch(one.experiment.name):
            found.setdefault(one.experiment.workload.kind, one)
    return {kind: found[kind] for kind in COLUMNS if kind in found}


def _row(figures: Figures, shown: dict[WorkloadKind, ExperimentFigures], name: str) -> list[str]:
    engines = [found.contestants.get(name) for found in shown.values()]
    every = [found.contestants[name] for found in figures.experiments.values() if name in found.contestants]
    rates = [found.goodput[name] for found in figures.experiments.values() if name in found.goodput]
    memory = max((engine.memory for engine in every if engine.memory is not None), default=None)
    disk = max(engine.disk for engine in every)
    return [
        engine_label(name),
        *(_time(engine) for engine in engines),
        _shares(engines),
        goodput(rates[0]) if rates else EMPTY,
        _faithful(shown, name),
        mebibytes(memory) + (f", on disk {mebibytes(disk)}" if disk else ""),
    ]


def _time(engine: ContestantFigures | None) -> str:
    if engine is None or engine.ttft is None:
        return EMPTY
    faster = f" ({engine.speedup.value:.{1 if engine.speedup.value >= 2 else 2}f}x)" if engine.speedup else ""
    return median(engine.ttft) + faster


def _shares(engines: Sequence[ContestantFigures | None]) -> str:
    shares = [engine.hit_rate if engine else None for engine in engines]
    if all(share is None for share in shares):
        return EMPTY
    return " / ".join("-" if share is None else percent(share).removesuffix(" %") for share in shares) + " %"


def _faithful(shown: dict[WorkloadKind, ExperimentFigures], name: str) -> str:
    """F1 of free answers to the questions; full prefill's with themselves would say nothing."""
    quality = [one for found in shown.values() for one in found.quality if one.variant == name and one.f1]
    compared = [found.baseline for found in shown.values()]
    return f"{quality[0].f1.value:.2f}" if quality and quality[0].f1 and name not in compared else EMPTY
