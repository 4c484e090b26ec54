"""The README's benchmark table, generated from a result file and put between two markers."""

from collections.abc import Iterator, Sequence
from textwrap import fill

from rag.bench.analysis.models import ContestantFigures, ExperimentFigures, Figures
from rag.bench.analysis.sections import GRID, goodput
from rag.bench.analysis.words import EMPTY, command, engine_label, hardware, mebibytes, median, minutes, percent, table
from rag.bench.statistics import Estimate
from rag.bench.suite.experiment import Drive, WorkloadKind
from rag.errors import InvalidRequestError

__all__ = ["BEGIN", "END", "readme_block", "with_block"]

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
WIDTH = 120
COLUMNS = {
    WorkloadKind.QUESTIONS: "questions",
    WorkloadKind.ORDERS: "new orders",
    WorkloadKind.DOCUMENTS: "long passages",
}
NOT_SHOWN = (
    "What the table does not show: other models, other machines, a GPU; the time of reading passages ahead, which "
    "chunk reuse does before the first request; retrieval; how sure each figure is (the report has the intervals); "
    "whether answers are right, since F1 compares words with those of full prefill's answer. An engine without a "
    "share of tokens from cache does not tell it."
)


def readme_block(figures: Figures, source: str) -> str:
    """Return the table with its command, hardware and caveats, from marker to marker.

    Args:
        figures: of the run.
        source: path of the result file, as the README names it.
    """
    shown = _shown(figures)
    names = list(dict.fromkeys(name for found in shown.values() for name in found.contestants))
    columns = [
        "engine", *(f"{COLUMNS[kind]}, ms" for kind in shown), "prompt tokens from cache", "goodput, requests/s",
        "F1 with full prefill", "memory, MiB",
    ]  # fmt: skip
    rows = [_row(figures, shown, name) for name in names]
    paragraphs = "\n\n".join(fill(text, WIDTH, break_on_hyphens=False) for text in _texts(figures, shown, source))
    return f"{BEGIN}\n{table(columns, rows)}\n{paragraphs}\n{END}"


def with_block(text: str, block: str) -> str:
    """Return a README with what is between its markers replaced.

    Raises:
        InvalidRequestError: there is not exactly one pair of markers.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise InvalidRequestError(f"the README needs the lines {BEGIN} and {END} once, in this order: add them")
    return text[: text.index(BEGIN)] + block + text[text.index(END) + len(END) :]


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


def _texts(figures: Figures, shown: dict[WorkloadKind, ExperimentFigures], source: str) -> Iterator[str]:
    header, environment = figures.header, figures.header.environment
    baselines = " and ".join(dict.fromkeys(engine_label(found.baseline) for found in shown.values()))
    versions = ", ".join(
        f"{engine_label(one.name)} {one.version}" for one in figures.contestants.values() if "preread" not in one.name
    )
    beside = f" Beside Preread {environment.preread}: {versions}." if versions else ""
    faster = any(one.speedup for found in shown.values() for one in found.contestants.values())
    brackets = (
        f", in brackets how many times sooner than full prefill ({baselines}; median of the ratios by request"
        f"{_spread(shown)})"
    )
    yield f"Time to first token, median{brackets if faster else ''}. {_asked(shown)} {_missing(figures)}".rstrip()
    yield (
        f"`{command(environment.command)}` ({environment.started[:10]}, {minutes(figures.seconds)} of measuring) on "
        f"{hardware(header)}; {header.model}, the same prompts and as many tokens for every engine, which take "
        f"turns.{beside} `rag bench report {source} --readme README.md` writes this table; every "
        "measurement is in that file."
    )
    fidelity = _fidelity(figures)
    if fidelity:
        yield fidelity
    yield NOT_SHOWN


def _spread(shown: dict[WorkloadKind, ExperimentFigures]) -> str:
    """How wide the intervals of the ratios are, at most."""
    ratios = [one.speedup for found in shown.values() for one in found.contestants.values() if one.speedup]
    widths = [
        max(one.high / one.value - 1, 1 - one.low / one.value)
        for one in ratios
        if one.low is not None and one.high is not None
    ]
    return f", 95 % intervals within {percent(max(widths))} of it" if widths else ""


def _asked(shown: dict[WorkloadKind, ExperimentFigures]) -> str:
    parts = []
    for kind, found in shown.items():
        counts = [one.ttft.n for one in found.contestants.values() if one.ttft]
        tokens = f", {found.stream.prompt_tokens:,.0f} prompt tokens on average" if found.stream else ""
        k = f", {found.experiment.workload.k} passages each" if found.experiment.workload.k else ""
        parts.append(f"{COLUMNS[kind]}: {max(counts, default=0)} answers{k}{tokens}")
    return f"{'; '.join(parts).capitalize()}." if parts else ""


def _missing(figures: Figures) -> str:
    lost = [engine_label(one.name) for one in figures.skipped]
    return f"Not measured: {', '.join(lost)}." if lost else ""


def _fidelity(figures: Figures) -> str:
    """KL of chunk reuse beside that of another order and of no passages."""
    names = {"chunk": "chunk reuse", "order": "another order of the passages", "none": "no passages"}
    found: dict[str, tuple[Estimate, int]] = {}
    for experiment in figures.experiments.values():
        for one in experiment.quality:
            if one.variant in names and one.kl is not None:
                found.setdefault(one.variant, (one.kl, one.n))
    if "chunk" not in found:
        return ""
    parts = [f"{found[variant][0].value:.3f} with {text}" for variant, text in names.items() if variant in found]
    head = f"KL of the answer's tokens from full prefill, nats a token ({found['chunk'][1]} questions)"
    return f"{head}: {', '.join(parts)}."
