"""From a result file to figures. Pure: the same records give the same figures."""

from collections.abc import Iterable, Sequence

from rag.bench.analysis.engines import engine_figures
from rag.bench.analysis.goodput import goodput_figures
from rag.bench.analysis.models import ContestantFigures, ExperimentFigures, Figures, GoodputFigures
from rag.bench.analysis.problems import experiment_problems, run_problems, void_problems
from rag.bench.analysis.quality import quality_figures
from rag.bench.analysis.times import times_of
from rag.bench.suite.experiment import Drive, Experiment
from rag.bench.suite.records import AnswerRecord, WindowRecord
from rag.bench.suite.results import Results

__all__ = ["BASELINE", "figures_of"]

BASELINE = "preread-off"  # full prefill by our own engine


def figures_of(results: Results, *, baseline: str = BASELINE) -> Figures:
    """Compute every figure of a run.

    Args:
        results: complete units; experiments without one are named as missing.
        baseline: whose TTFT speed-ups are over; where it did not take part, there are none.
    """
    measured = {unit.experiment for unit in results.units.values()}
    experiments = {one.name: _experiment(results, one, baseline) for one in results.experiments if one.name in measured}
    return Figures(
        header=results.header,
        contestants=results.contestants,
        skipped=tuple(results.skipped),
        experiments=experiments,
        missing=tuple(one.name for one in results.experiments if one.name not in measured),
        checks=tuple(results.checks),
        seconds=sum(unit.seconds for unit in results.units.values()),
        problems=tuple(run_problems(results)),
    )


def _experiment(results: Results, experiment: Experiment, baseline: str) -> ExperimentFigures:
    name, stream = experiment.name, results.streams.get(experiment.name)
    answers, windows = results.answers(name), results.windows(name)
    repeats = {unit: record.repeat for unit, record in results.units.items() if record.experiment == name}
    engines: dict[str, ContestantFigures] = {}
    goodput: dict[str, GoodputFigures] = {}
    for one in _taking_part(experiment, answers):
        own = [answer for answer in answers if answer.contestant == one]
        held = [window for window in windows if window.contestant == one]
        beside = _beside(experiment, answers, windows, baseline) if one != baseline else []
        engines[one] = engine_figures(own, held, beside, experiment, repeats, cores=results.header.environment.cores)
        if experiment.drive is Drive.GOODPUT:
            goodput[one] = goodput_figures(one, own, held, repeats)
    void = tuple(void_problems(answers, engines))
    return ExperimentFigures(
        experiment=experiment,
        stream=stream,
        passes=sum(f"{name}/{repeat}" in repeats for repeat in range(experiment.repeats)),
        baseline=baseline,
        retrieval=times_of([list(stream.retrieval_ms)], block=1) if stream and stream.retrieval_ms else None,
        contestants=engines,
        goodput=goodput,
        quality=quality_figures(results.quality(name), warmup=experiment.warmup, names=experiment.contestants),
        simulation=tuple(results.simulations(name)),
        problems=(*void, *experiment_problems(experiment, answers, engines)),
        void=void,
    )


def _beside(
    experiment: Experiment, answers: Sequence[AnswerRecord], windows: Sequence[WindowRecord], baseline: str
) -> Sequence[AnswerRecord]:
    """The baseline's answers, unless it was not driven to its end under load."""
    own = [answer for answer in answers if answer.contestant == baseline]
    whole = {window.unit for window in windows if window.contestant == baseline and not window.cut}
    return own if experiment.drive is Drive.TURNS or all(answer.unit in whole for answer in own) else []


def _taking_part(experiment: Experiment, answers: Iterable[AnswerRecord]) -> Sequence[str]:
    """Engines with an answer: those of the experiment in its order, then any others."""
    found = dict.fromkeys(answer.contestant for answer in answers)
    return [*(one for one in experiment.contestants if one in found), *(found.keys() - set(experiment.contestants))]
