"""What stands below the README's table: what was measured, and every doubt."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from statistics import median

from rag.bench.analysis.models import ExperimentFigures, Figures
from rag.bench.analysis.words import command, engine_label, hardware, milliseconds, minutes, percent, span
from rag.bench.statistics import Estimate

__all__ = ["caveats"]

OWN = "preread-"
CHUNK = "preread-chunk"
NOT_SHOWN = (
    "other models, other machines, a GPU; the time of reading passages ahead; retrieval; how sure each figure is (the "
    "report has the intervals); whether answers are right, since F1 compares words with those of full prefill's answer"
)
Shown = Mapping[str, ExperimentFigures]  # experiments by the names of their columns


def caveats(figures: Figures, shown: Shown, source: str) -> Iterator[str]:
    """Yield the paragraphs below the table, each in one line.

    Args:
        figures: of the run.
        shown: the experiments of the table's columns, by the name of the column.
        source: path of the result file, as the README names it.
    """
    yield " ".join(filter(None, (_times(shown), _asked(shown), *_goodput(figures), *_absent(figures))))
    yield from _doubts(figures, shown)
    yield _run(figures, source)
    yield " ".join((_precisions(figures), *_differences(figures, shown)))
    yield from _fidelity(figures)
    unseen = _unseen(figures, shown)
    rest = f"experiments of the run that the report has ({', '.join(unseen)}); " if unseen else ""
    yield (
        f"What the table does not show: {rest}{NOT_SHOWN}. An engine without a share of tokens from cache does not "
        "tell it."
    )


def _times(shown: Shown) -> str:
    ratios = [one.speedup for found in shown.values() for one in found.contestants.values() if one.speedup]
    if not ratios:
        return "Time to first token, median."
    baselines = " and ".join(dict.fromkeys(engine_label(found.baseline) for found in shown.values()))
    slower = ", below 1 later" if any(one.value < 1 for one in ratios) else ""
    return (
        f"Time to first token, median, in brackets how many times sooner than full prefill{slower} ({baselines}; "
        f"median of the ratios by request{_spread(ratios)})."
    )


def _spread(ratios: Sequence[Estimate]) -> str:
    """How wide the intervals of the ratios are, at most."""
    widths = [
        max(one.high / one.value - 1, 1 - one.low / one.value)
        for one in ratios
        if one.low is not None and one.high is not None
    ]
    if not widths:
        return ""
    half, widest = percent(median(widths)), percent(max(widths))
    return f", half of the 95 % intervals within {half} of it, the widest within {widest}"


def _asked(shown: Shown) -> str:
    parts = []
    for name, found in shown.items():
        counts = [one.ttft.n if one.ttft else 0 for one in found.contestants.values()]
        tokens = f", {found.stream.prompt_tokens:,.0f} prompt tokens on average" if found.stream else ""
        k = f", {found.experiment.workload.k} passages each" if found.experiment.workload.k else ""
        parts.append(f"{name}: {span(counts)} answers{k}{tokens}")
    return f"{'; '.join(parts).capitalize()}." if parts else ""


def _goodput(figures: Figures) -> Iterator[str]:
    engines = [one for found in figures.experiments.values() for one in found.goodput.values()]
    limits = [one.limit_ms for one in engines if one.limit_ms is not None]
    counts = [step.n for one in engines for step in one.steps]
    if limits and counts:
        least, most = (milliseconds(end) for end in (min(limits), max(limits)))
        yield (
            "Goodput is the highest rate whose p95 time to first token stays within 5 times the engine's own p95 with "
            f"one client, so that limits differ between engines ({least} to {most} ms); about {max(counts)} answers a "
            "window, and engines run alone there, not in turns."
        )


def _absent(figures: Figures) -> Iterator[str]:
    measured = {name for found in figures.experiments.values() for name in found.contestants}
    lost = [one for one in figures.skipped if one.name not in figures.experiments]
    if never := [engine_label(one.name) for one in lost if one.name not in measured]:
        yield f"Not measured: {', '.join(dict.fromkeys(never))}."
    for one in lost:
        if one.name in measured:
            where = (
                f"failed in `{one.unit}`, with no figures from then on" if one.unit else "was not there all the time"
            )
            yield f"{engine_label(one.name)} {where}."


def _doubts(figures: Figures, shown: Shown) -> Iterator[str]:
    """Problems of the run and of what the table shows, goodput too."""
    chosen = {one.experiment.name: name for name, one in shown.items()}
    chosen |= {name: name for name, found in figures.experiments.items() if found.goodput}
    doubts = list(figures.problems)
    doubts += [f"{chosen[name]}: {one}" for name in chosen for one in figures.experiments[name].problems]
    if doubts:
        yield f"Read with care: {'; '.join(doubts)}."


def _run(figures: Figures, source: str) -> str:
    header, environment = figures.header, figures.header.environment
    versions = ", ".join(
        f"{engine_label(one.name)} {one.version}" for one in figures.contestants.values() if OWN not in one.name
    )
    beside = f" Beside Preread {environment.preread}: {versions}." if versions else ""
    return (
        f"`{command(environment.command)}` ({environment.started[:10]}, {minutes(figures.seconds)} of measuring) on "
        f"{hardware(header)}; {header.model}, the same prompts and as many tokens for every engine, which take turns "
        f"where times to first token are measured.{beside} `rag bench report {source} --readme README.md` writes this "
        "table; every measurement is in that file."
    )


def _precisions(figures: Figures) -> str:
    """How each engine runs, weights and KV, as it says itself; ours once, with what all its modes have in common."""
    own = [one.detail.split(", ")[::-1] for one in figures.contestants.values() if one.name.startswith(OWN)]
    common = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*own, strict=False))]
    said = {"Preread": ", ".join(common[::-1])}
    said |= {engine_label(one.name): one.detail for one in figures.contestants.values() if not one.name.startswith(OWN)}
    return f"How each runs, by its own word: {'; '.join(f'{name}: {how}' for name, how in said.items() if how)}."


def _differences(figures: Figures, shown: Shown) -> Iterator[str]:
    """What our engine does that the others do not."""
    if CHUNK in figures.contestants:
        passages = " / ".join(f"{found.stream.passages:,}" for found in shown.values() if found.stream)
        of = f" (of {passages})" if passages else ""
        yield (
            "Chunk reuse is approximate: a certificate says how far its answers may lie from full prefill's; the KV of "
            f"the passages that will be asked for{of} is read ahead, before the first request."
        )
    if any("drafts of" in one.detail for one in figures.contestants.values() if one.name.startswith(OWN)):
        yield "Preread decodes with drafts, as it does by default; the others run without any of theirs."


def _unseen(figures: Figures, shown: Shown) -> list[str]:
    there = {one.experiment.name for one in shown.values()}
    names = [name for name, one in figures.experiments.items() if name not in there and not one.goodput]
    return [f"`{name}`" for name in names]


def _fidelity(figures: Figures) -> Iterator[str]:
    """KL of chunk reuse beside that of another order and of no passages."""
    names = {"chunk": "chunk reuse", "order": "another order of the passages", "none": "no passages"}
    found: dict[str, tuple[Estimate, int]] = {}
    for experiment in figures.experiments.values():
        for one in experiment.quality:
            if one.variant in names and one.kl is not None:
                found.setdefault(one.variant, (one.kl, one.n))
    if "chunk" in found:
        parts = [f"{found[variant][0].value:.3f} with {text}" for variant, text in names.items() if variant in found]
        head = f"KL of the answer's tokens from full prefill, nats a token ({found['chunk'][1]} questions)"
        yield f"{head}: {', '.join(parts)}."
