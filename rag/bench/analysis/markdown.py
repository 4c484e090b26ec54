"""The report of a run in Markdown, for a reader who has never seen the benchmark."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from rag.bench.analysis.cost import CostRow
from rag.bench.analysis.models import ContestantFigures, ExperimentFigures, Figures
from rag.bench.analysis.sections import GRID, experiment_section, grid_section, holdings
from rag.bench.analysis.words import (
    command,
    engine_label,
    estimate,
    hardware,
    median,
    minutes,
    plain,
    significant,
    span,
    table,
)
from rag.bench.statistics import Estimate
from rag.bench.suite.experiment import Drive

__all__ = ["LIMITS", "METHOD", "Costs", "Illustration", "render_markdown"]

INTRODUCTION = """\
Engines that answer questions from retrieved passages get the same prompts: how soon each gives the first token (TTFT),
how much of a prompt it takes from its cache, at which rate it keeps up, what it holds in memory, and whether what it
reuses changes its answers. Short: the headlines below; whole: the tables; doubts are said where they arise.
"""
METHOD = """\
- Every engine gets the same prompts as token ids, and has to give the same number of tokens. An answer with fewer is
  reported and counts in no time.
- TTFT is the time from when a request is due to its first token, waiting included. Prefill is the part of it after the
  engine took the request up, where the engine tells.
- Where engines take turns, each is asked the same request within seconds of the others while the others are stopped.
  Speed-ups are medians of the ratios by request, so that a machine that slows down for a while favours nobody.
- Intervals are 95 % bootstrap intervals over requests, drawn in blocks of neighbours, and over passes where there are
  several. They are left out below 5 requests (51 for p90, 528 for p99); p90 below 10 answers and p99 below 100 are left
  out themselves, since they would be the longest time by another name.
- For `preread-chunk` the KV of the passages that will be asked for is computed before the first request (ingestion does
  that for all): the time is in the table of what engines hold, and in no TTFT. Its reuse is approximate.
- Our engine decodes with drafts unless it says otherwise; the others run without any of theirs.
- Passage tokens are `path` (reused where prompts begin alike), `canonical` (reused where they were computed), `shifted`
  (reused elsewhere, which is approximate and needs a certificate) or `computed`.
"""
LIMITS = """\
- Other models, other machines, and GPUs: figures of one machine are not those of another.
- Under load each engine is alone in a window of its own: the machine's speed may differ from window to window, and with
  a single pass no interval shows that.
- Retrieval is measured apart and is the same for all; no TTFT contains it.
- An engine that does not tell what it reused has no hit rate; that does not mean that it reused nothing.
- KL, F1 and gold texts compare answers with full prefill's and with short texts from the documents: they do not say
  whether an answer is right.
- Answers have a fixed length, so tokens after what an engine would have ended with are timed, too.
"""
HEADLINED = {"preread-exact": "", "preread-chunk": "read ahead, approximate"}  # of ours, beside the baseline


@dataclass(frozen=True)
class Illustration:
    """A picture in the report.

    Attributes:
        section: name of an experiment, `grid`, `holdings`, or anything else for the report's beginning.
        address: of the file, relative to the report.
        text: that says what there is to see.
    """

    section: str
    address: str
    text: str


@dataclass(frozen=True)
class Costs:
    """What answers cost, in a currency; empty where there is no price book to name it."""

    rows: Sequence[CostRow]
    currency: str


def render_markdown(
    figures: Figures, *, source: str = "", pictures: Sequence[Illustration] = (), costs: Costs | None = None
) -> str:
    """Return the report, ending with a line break.

    Args:
        figures: of the run.
        source: name of the result file.
        pictures: to be shown in it.
        costs: of the answers, where prices are known.
    """
    found = list(figures.experiments.values())
    grid = [one for one in found if GRID.fullmatch(one.experiment.name)]
    others = [one for one in found if one not in grid]
    placed = {*(one.experiment.name for one in others), "holdings", *(["grid"] if grid else [])}
    loose = dict.fromkeys(one.section for one in pictures if one.section not in placed)
    parts = [
        f"# Benchmark: {figures.header.suite.name}\n",
        INTRODUCTION,
        *_problems(figures),
        *_headlines(others),
        *(part for section in loose for part in _shown(pictures, section)),
        _run(figures, source),
        "## Engines\n",
        *([_engines(figures)] if figures.contestants else []),
        *_skipped(figures),
        "## How it was measured\n",
        METHOD,
        *(part for one in others for part in (experiment_section(one), *_shown(pictures, one.experiment.name))),
        *([grid_section(grid), *_shown(pictures, "grid")] if grid else []),
        *_holdings(figures, pictures),
        *_costs(costs),
        *_checks(figures),
        "## What this does not show\n",
        LIMITS,
    ]
    return "\n".join(parts)


def _problems(figures: Figures) -> Iterator[str]:
    for problem in figures.problems:
        yield f"**Read with care:** {plain(problem)}.\n"
    if figures.missing:
        yield f"**Not measured (yet):** {', '.join(f'`{name}`' for name in figures.missing)}.\n"


def _headlines(found: Sequence[ExperimentFigures]) -> Iterator[str]:
    """One sentence an experiment whose engines took turns."""
    lines = [_headline(one) for one in found if one.experiment.drive is Drive.TURNS]
    yield _bullets(lines or ["No engines took turns in this run, so that no times stand side by side."])


def _headline(found: ExperimentFigures) -> str:
    """The same modes of ours in every run, whatever they gained, and everybody else."""
    chosen = [found.baseline, *HEADLINED, *(name for name in found.contestants if not name.startswith("preread-"))]
    engines = [found.contestants[name] for name in dict.fromkeys(chosen) if name in found.contestants]
    timed = [f"`{one.contestant}`{_ahead(one)} {_soon(one, found.baseline)}" for one in engines if one.ttft]
    if not timed:
        return f"**{found.experiment.title}**: none of the engines has an answer that counts."
    answers = span([one.ttft.n for one in engines if one.ttft])
    return plain(
        f"**{found.experiment.title}**, median time to the first token ({answers} answers): {'; '.join(timed)}."
    )


def _ahead(engine: ContestantFigures) -> str:
    return f" ({HEADLINED[engine.contestant]})" if HEADLINED.get(engine.contestant) else ""


def _soon(engine: ContestantFigures, baseline: str) -> str:
    """Its median, and how much sooner or slower that is."""
    shown, ratio = f"{median(engine.ttft)} ms", engine.speedup
    if ratio is None:
        return shown
    if ratio.value >= 1:
        return f"{shown}, {estimate(ratio)} times sooner than `{baseline}`"
    known = ratio.low is not None and ratio.high is not None
    low, high = (1 / ratio.high, 1 / ratio.low) if known and ratio.high and ratio.low else (None, None)
    slower = Estimate(value=1 / ratio.value, low=low, high=high)
    return f"{shown}, {estimate(slower)} times slower than `{baseline}`"


def _run(figures: Figures, source: str) -> str:
    header, environment = figures.header, figures.header.environment
    facts = [
        ("command", f"`{command(environment.command)}`"),
        ("when", f"{environment.started}, {minutes(figures.seconds)} of measuring"),
        ("machine", f"{hardware(header)}, {environment.platform}"),
        ("before the run", f"load average {environment.load_average}"),
        ("model", header.model),
        ("embedder", header.embedder),
        ("versions", f"Preread {environment.preread}, torch {environment.torch}, Python {environment.python}"),
        ("threads", str(environment.torch_threads)),
        ("every measurement", f"`{source}`" if source else ""),
    ]
    return "## The run\n\n" + table(["", ""], [list(fact) for fact in facts if fact[1]], left=2)


def _engines(figures: Figures) -> str:
    rows = [
        [f"`{one.name}`", engine_label(one.name), one.version, one.detail, f"{one.start_seconds:.1f}"]
        for one in figures.contestants.values()
    ]
    return table(["name", "engine", "version", "how it runs", "start-up, s"], rows, left=4)


def _skipped(figures: Figures) -> Iterator[str]:
    if figures.skipped:
        yield "Left out:\n"
        yield _bullets([plain(f"`{one.name}`: {one.reason}") for one in figures.skipped])


def _holdings(figures: Figures, pictures: Sequence[Illustration]) -> Iterator[str]:
    if any(found.contestants for found in figures.experiments.values()):
        yield "## What engines hold\n"
        yield "At most in any experiment; of memory that an engine has in common with others its share is counted.\n"
        yield holdings(figures.experiments)
        yield from _shown(pictures, "holdings")


def _costs(costs: Costs | None) -> Iterator[str]:
    if costs is None:
        return
    rows = [
        [
            f"`{one.experiment}`", f"`{one.contestant}`", _money(one.total), _money(one.uncached),
            "yes" if one.cache_told else "no: all priced as computed", _money(one.prepared), _money(one.hourly),
            f"{one.answers_per_hour:,.0f}" if one.answers_per_hour else "",
        ]
        for one in costs.rows
    ]  # fmt: skip
    unit = f", {costs.currency}" if costs.currency else ""
    columns = [
        "experiment", "engine", f"1,000 answers by tokens{unit}", f"had nothing been cached{unit}", "cache told",
        f"reading ahead, once{unit}", f"1,000 answers by the machine's hour{unit}", "answers an hour",
    ]  # fmt: skip
    yield "## What answers cost\n"
    if all(one.total is None and one.hourly is None for one in costs.rows):
        yield "The price book has no price for this model.\n"
    yield table(columns, rows, left=2)


def _money(amount: Decimal | None) -> str:
    return "" if amount is None else significant(float(amount))


def _checks(figures: Figures) -> Iterator[str]:
    if figures.checks:
        yield "## Checks of the benchmark itself\n"
        rows = [
            [f"`{one.unit.partition('/')[0]}`", one.name, "passed" if one.passed else "**failed**", one.detail]
            for one in figures.checks
        ]
        yield table(["experiment", "check", "", "found"], rows, left=4)


def _shown(pictures: Sequence[Illustration], section: str) -> Iterator[str]:
    for one in pictures:
        if one.section == section:
            text = one.text.replace("[", "\\[").replace("]", "\\]")
            yield f"![{text}]({one.address})\n"


def _bullets(lines: Sequence[str]) -> str:
    return "".join(f"- {line}\n" for line in lines)
