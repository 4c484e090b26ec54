"""How two runs differ beside their times: machine, requests, versions, answers, rates, memory."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from zlib import crc32

from rag.bench.analysis.comparison import Change
from rag.bench.analysis.goodput import goodput_figures
from rag.bench.analysis.problems import run_problems
from rag.bench.analysis.resampling import FEWEST, RESAMPLES, Drawn, chance, mean
from rag.bench.suite.experiment import Drive
from rag.bench.suite.records import AnswerRecord, QualityRecord
from rag.bench.suite.results import Results

__all__ = ["faithfulness", "measured_once", "notices_of"]

MEASURES = {
    "kl": "KL, nats a token",
    "first_kl": "KL of the first token, nats",
    "top1": "same token first, share",
    "f1": "F1 with full prefill's answer",
    "gold_f1": "F1 with the gold text",
    "gold": "has the gold text, share",
}
SHARES = ("top1", "gold")
ONCE = "measured once"


def notices_of(before: Results, after: Results) -> Iterator[str]:
    """Yield what a reader of a comparison must know first."""
    headers = before.header, after.header
    settings: dict[str, list[object]] = {
        "machine": [f"{one.environment.cpu}, {one.environment.cores} cores" for one in headers],
        "number of threads": [one.environment.torch_threads for one in headers],
        "model": [one.model for one in headers],
        "embedder": [one.embedder for one in headers],
    }
    for name, (there, here) in settings.items():
        if there != here:
            yield f"the {name} is another: {there}, then {here}"
    for name in sorted(before.contestants.keys() & after.contestants.keys()):
        versions = [f"{one.version}, {one.detail}" for one in (before.contestants[name], after.contestants[name])]
        if versions[0] != versions[1]:
            yield f"{name} is another: {versions[0]}; then {versions[1]}"
    yield from _experiments(before, after)
    yield from _answered(before, after)
    for which, results in (("first", before), ("second", after)):
        yield from (f"{which} file: {problem}" for problem in run_problems(results))


def faithfulness(files: tuple[Results, Results], experiment: str) -> Iterator[Change]:
    """Compare how faithful answers are, by request."""
    found = [_by_variant(results.quality(experiment)) for results in files]
    for variant, k in found[1]:
        for field, measure in MEASURES.items() if (variant, k) in found[0] else ():
            values = [_values(side[variant, k], field) for side in found]
            both = sorted(values[0].keys() & values[1].keys())
            if both:
                pairs = [(values[0][request], values[1][request]) for request in both]
                change = _difference(experiment, f"{variant}, {k} passages", measure, pairs)
                yield change.model_copy(update={"share": field in SHARES})


def measured_once(files: tuple[Results, Results]) -> Iterator[Change]:
    """Compare what has one value a run, whose noise is therefore not known: goodput, memory."""
    common = [one for one in files[1].experiments if one in files[0].experiments]
    for experiment in common:
        if experiment.drive is Drive.GOODPUT:
            yield from _goodput(files, experiment.name)
    held = [_memory(results, [one.name for one in common]) for results in files]
    for name in held[1]:
        if name in held[0]:
            yield Change(
                experiment="all", contestant=name, measure="memory, MiB", before=held[0][name], after=held[1][name],
                unjudged=ONCE,
            )  # fmt: skip


def _experiments(before: Results, after: Results) -> Iterator[str]:
    there, here = before.streams, after.streams
    if lost := [*(there.keys() - here.keys()), *(here.keys() - there.keys())]:
        yield f"in one of the files only: {', '.join(sorted(lost))}"
    if other := [name for name in there.keys() & here.keys() if there[name].digest != here[name].digest]:
        yield f"not compared, since the requests are others: {', '.join(sorted(other))}"


def _answered(before: Results, after: Results) -> Iterator[str]:
    """Yield which engines answered less or more, in the experiments of both files."""
    for name in sorted(before.streams.keys() & after.streams.keys()):
        counts = [_counts(results.answers(name)) for results in (before, after)]
        for engine in sorted(counts[0].keys() | counts[1].keys()):
            there, here = (found.get(engine) for found in counts)
            if there is None or here is None:
                yield f"{name}: {engine} is in the {'second' if there is None else 'first'} file only"
            elif there != here:
                yield f"{name}: {engine} had {_said(there)}, then {_said(here)}"


def _counts(answers: Sequence[AnswerRecord]) -> dict[str, Counter[str]]:
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for one in answers:
        found[one.contestant][one.status] += 1
    return found


def _said(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[status]} {status}" for status in ("ok", "short", "failed") if counts[status])


def _by_variant(records: Sequence[QualityRecord]) -> dict[tuple[str, int], list[QualityRecord]]:
    found: dict[tuple[str, int], list[QualityRecord]] = {}
    for one in records:
        found.setdefault((one.variant, one.k), []).append(one)
    return found


def _values(records: Sequence[QualityRecord], field: str) -> dict[int, float]:
    found = {one.request: getattr(one, field) for one in records}
    return {request: float(value) for request, value in found.items() if value is not None}


def _difference(experiment: str, variant: str, measure: str, pairs: Sequence[tuple[float, float]]) -> Change:
    import numpy as np

    before, after = np.asarray(pairs, float).T
    change = Change(
        experiment=experiment,
        contestant=variant,
        measure=measure,
        before=float(before.mean()),
        after=float(after.mean()),
        requests=len(pairs),
    )
    if len(pairs) < FEWEST:
        return change.model_copy(update={"unjudged": f"fewer than {FEWEST} requests"})
    seed = crc32(f"{experiment} {variant} {measure}".encode())

    def difference(resamples: int) -> Drawn:
        return mean((after - before)[None], block=1, seed=seed, resamples=resamples)

    return change.model_copy(update={"raw": difference(RESAMPLES).estimate(), "p": chance(difference)})


def _goodput(files: tuple[Results, Results], experiment: str) -> Iterator[Change]:
    found = []
    for results in files:
        answers, windows = results.answers(experiment), results.windows(experiment)
        names = dict.fromkeys(one.contestant for one in windows)
        rates = {
            name: goodput_figures(
                name,
                [one for one in answers if one.contestant == name],
                [one for one in windows if one.contestant == name],
                {unit: record.repeat for unit, record in results.units.items()},
            ).goodput
            for name in names
        }
        found.append({name: rate for name, rate in rates.items() if rate is not None})
    for name in found[1]:
        if name in found[0]:
            yield Change(
                experiment=experiment, contestant=name, measure="goodput, requests/s", before=found[0][name],
                after=found[1][name], unjudged=ONCE,
            )  # fmt: skip


def _memory(results: Results, experiments: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for experiment in experiments:
        for one in results.windows(experiment):
            if one.memory is not None:
                found[one.contestant] = max(found.get(one.contestant, 0.0), one.memory / 2**20)
    return found
