"""An experiment's part of the report: what was asked, tables with units, what is doubtful."""

import re
from collections.abc import Iterator, Mapping, Sequence

from rag.bench.analysis.models import ContestantFigures, ExperimentFigures, GoodputFigures, Times
from rag.bench.analysis.words import (
    EMPTY,
    asked,
    estimate,
    mebibytes,
    median,
    milliseconds,
    percent,
    plain,
    significant,
    span,
    table,
)
from rag.bench.suite.experiment import Drive
from rag.bench.suite.records import SimulationRecord

__all__ = ["GRID", "experiment_section", "goodput", "grid_section", "holdings"]

GRID = re.compile(r"grid-(\d+)-(\d+)")  # name of an experiment: number and length of passages

SEEN = 0.0005  # of a share, which are shown in tenths of a percent


def experiment_section(found: ExperimentFigures) -> str:
    """Return a section with its heading."""
    experiment = found.experiment
    parts = [f"## {experiment.title} (`{experiment.name}`)\n", f"{asked(experiment, found.stream)}\n"]
    parts += [f"**Doubtful:** {plain(problem)}.\n" for problem in found.problems]
    if found.passes < experiment.repeats:
        parts.append(f"**Not finished:** {found.passes} of {experiment.repeats} passes are complete.\n")
    parts += [*_retrieval(found), *_tables(found)]
    return "\n".join(parts)


def grid_section(grid: Sequence[ExperimentFigures]) -> str:
    """Return one table of experiments that differ in number and length of passages alone."""
    names = list(dict.fromkeys(name for found in grid for name in found.contestants))
    rows = []
    for found in sorted(grid, key=_place):
        number, length = _place(found)
        cells = [_grid_cell(found.contestants.get(name)) for name in names]
        rows.append([str(number), str(length), *cells])
    problems = [
        f"**Doubtful:** `{one.experiment.name}`: {plain(problem)}.\n" for one in grid for problem in one.problems
    ]
    answers = span([figures.ttft.n for one in grid for figures in one.contestants.values() if figures.ttft])
    legend = (
        f"TTFT in ms, median of {answers} answers, and how many times sooner than `{grid[0].baseline}` it is (median "
        "of the ratios by request, with its 95 % interval). Engines take turns at every request.\n"
    )
    cells_table = table(["passages", "tokens each", *names], rows, left=2)
    return "\n".join(("## Number and length of passages\n", legend, *problems, cells_table))


def holdings(experiments: Mapping[str, ExperimentFigures]) -> str:
    """Return what each engine held and took, at most in any experiment."""
    engines = [one for found in experiments.values() for one in found.contestants.values()]
    rows = []
    for name in dict.fromkeys(engine.contestant for engine in engines):
        own = [engine for engine in engines if engine.contestant == name]
        prepared = max(own, key=lambda engine: engine.prepared_tokens)
        memory = max((engine.memory for engine in own if engine.memory is not None), default=None)
        ahead = (
            f"{prepared.prepared_tokens:,} in {prepared.prepared_seconds:,.0f} s" if prepared.prepared_tokens else ""
        )
        rows.append([name, mebibytes(memory), mebibytes(max(engine.disk for engine in own)), ahead])
    columns = ["engine", "memory, MiB", "KV on disk, MiB", "tokens read ahead, untimed"]
    return table(columns, rows)


def _place(found: ExperimentFigures) -> tuple[int, int]:
    matched = GRID.fullmatch(found.experiment.name)
    assert matched, f"{found.experiment.name} is not of a grid"
    return int(matched[1]), int(matched[2])


def _grid_cell(engine: ContestantFigures | None) -> str:
    if engine is None or engine.ttft is None:
        return EMPTY
    faster = f" · {estimate(engine.speedup, digits=2)}" if engine.speedup else ""
    return median(engine.ttft) + faster


def _retrieval(found: ExperimentFigures) -> Iterator[str]:
    stream = found.stream
    if stream is None or found.experiment.drive is Drive.SIMULATION:
        return
    if stream.recall:
        recall = ", ".join(f"{share:.2f} among the first {n}" for n, share in stream.recall.items())
        yield f"Retrieval finds a passage that holds a gold text: {recall} (share of requests).\n"
    if found.retrieval:
        yield (
            f"Embedding the question and searching take {median(found.retrieval)} ms (median of {found.retrieval.n}), "
            "the same for every engine; no time below contains it.\n"
        )


def _tables(found: ExperimentFigures) -> Iterator[str]:
    drive, engines = found.experiment.drive, list(found.contestants.values())
    if drive in (Drive.TURNS, Drive.LOAD) and engines:
        yield _times(found, engines)
        yield _reuse(engines)
        if found.stream and any(one.prepared_tokens for one in engines):
            yield f"Read ahead: the {found.stream.passages:,} passages that will be asked for, and no others.\n"
    if found.goodput:
        yield from _goodput(list(found.goodput.values()))
    if found.quality:
        yield (
            "KL and the share of same tokens are over the tokens of full prefill's greedy answer; F1 is over the words "
            "of each way's own answer.\n"
        )
        yield _quality(found)
    if found.simulation:
        yield _simulation(found)


def _times(found: ExperimentFigures, engines: Sequence[ContestantFigures]) -> str:
    rows = []
    for engine in engines:
        times = engine.ttft
        rows.append([
            engine.contestant, str(times.n) if times else "0", median(times, interval=True), _high(times, "p90"),
            _high(times, "p99"), _longest(times), estimate(engine.speedup),
            median(engine.prefill), median(engine.tpot), median(engine.total), median(engine.warmup_ttft),
            significant(engine.requests_per_second) if engine.requests_per_second else EMPTY,
        ])  # fmt: skip
    columns = [
        "engine", "answers", "TTFT p50 (95 %), ms", "p90, ms", "p99, ms", "longest, ms",
        f"times sooner than {found.baseline} (95 %)", "prefill p50, ms", "per output token p50, ms",
        "whole answer p50, ms", "TTFT p50 in warm-up, ms", "answers a second",
    ]  # fmt: skip
    return table(columns, rows)


def _high(times: Times | None, name: str) -> str:
    found = getattr(times, name) if times else None
    return milliseconds(found.value) if found else EMPTY


def _longest(times: Times | None) -> str:
    return EMPTY if times is None else f"{'>' if times.lost else ''}{milliseconds(times.most)}"


def _reuse(engines: Sequence[ContestantFigures]) -> str:
    tiers = list(dict.fromkeys(tier for engine in engines for tier in engine.tiers))
    outcomes = list(dict.fromkeys(one for engine in engines for one in engine.outcomes))
    rows = []
    for engine in engines:
        passage_tokens = sum(engine.outcomes.values())
        rows.append([
            engine.contestant, percent(engine.hit_rate) or "not told", percent(engine.warmup_hit_rate),
            *(percent(engine.tiers[one] / engine.prompt_tokens) if engine.tiers.get(one) else EMPTY for one in tiers),
            *(percent(engine.outcomes.get(one, 0) / passage_tokens) if passage_tokens else EMPTY for one in outcomes),
            ", ".join(map(str, engine.repairs)),
        ])  # fmt: skip
    columns = [
        "engine", "prompt tokens from cache", "in warm-up", *(f"from {tier}" for tier in tiers),
        *(f"passage tokens {outcome}" for outcome in outcomes), "tokens repaired a passage",
    ]  # fmt: skip
    return table(columns, rows)


def _goodput(engines: Sequence[GoodputFigures]) -> Iterator[str]:
    rows = []
    for one in engines:
        tried = ", ".join(
            f"{step.rate:.2f}: {milliseconds(step.p95_ms) or 'never'}{'' if step.passed else ' ✗'}"
            for step in one.steps
        )  # fmt: skip
        rows.append([one.contestant, goodput(one), milliseconds(one.unloaded_ms), milliseconds(one.limit_ms), tried])
    columns = ["engine", "goodput, requests/s", "p95 TTFT alone, ms", "limit, ms", "tried, requests/s: p95 TTFT, ms"]
    yield table(columns, rows)
    passes = max(one.passes for one in engines)
    several = f" Of {passes} passes, from the lowest to the highest." if passes > 1 else ""
    counts = [step.n for one in engines for step in one.steps]
    size = f" Windows have up to {max(counts)} answers, so each p95 is one of its longest few." if counts else ""
    yield (
        "Goodput is the highest rate at which p95 TTFT stays within 5 times that of one client alone; it lies between "
        f"the two rates that are named. ✗ did not stay within it, or left requests unanswered.{size}{several}\n"
    )


def goodput(found: GoodputFigures) -> str:
    """Write between which rates a goodput lies."""
    if found.limit_ms is None or not found.steps:
        return "not known"
    if found.goodput is None:
        return f"below {found.failing:.2f}" if found.failing else "not known"
    return f"at least {found.goodput:.2f}" if found.failing is None else f"{found.goodput:.2f}-{found.failing:.2f}"


def _quality(found: ExperimentFigures) -> str:
    rows = [
        [
            one.variant, str(one.k), str(one.n), estimate(one.kl, digits=2), estimate(one.first_kl, digits=2),
            estimate(one.top1, scale=100), estimate(one.f1), estimate(one.gold_f1),
            estimate(one.gold, scale=100, digits=2), median(one.ttft), estimate(one.speedup),
        ]
        for one in found.quality
    ]  # fmt: skip
    columns = [
        "answers", "passages", "n", "KL, nats a token", "KL of the first token", "same token first, %",
        "F1 with full prefill's answer", "F1 with the gold text", "has the gold text, %", "TTFT p50, ms",
        "times sooner than full prefill",
    ]  # fmt: skip
    return table(columns, rows)


def _simulation(found: ExperimentFigures) -> str:
    shares = sorted({point.share for point in found.simulation})
    kinds = list(dict.fromkeys((point.reuse, point.order, point.policy) for point in found.simulation))
    points = {(one.reuse, one.order, one.policy, one.share): one for one in found.simulation}
    rows = [[*kind, *(_found_cached(points.get((*kind, share))) for share in shares)] for kind in kinds]
    heads = [f"cache of {share:.0%}".replace("%", " %") for share in shares]
    return (
        "Share of passage tokens found cached, by the size of the cache on the device (of the distinct passage tokens)"
        "; where some of them come from disk, the device's own share is in brackets. Chunk reuse has every passage on "
        "disk, read ahead: its share found tells little, that of the device what the cache's size and eviction do.\n\n"
        + table(["reuse", "passage order", "eviction", *heads], rows, left=3)
    )


def _found_cached(point: SimulationRecord | None) -> str:
    if point is None:
        return EMPTY
    device = point.hit_rate - point.device_rate >= SEEN
    return percent(point.hit_rate, 1) + (f" ({percent(point.device_rate, 1)})" if device else "")
