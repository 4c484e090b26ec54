"""What a user changes about a suite."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag.bench.suite.experiment import ArrivalKind, Drive, Experiment, Suite, WorkloadKind
from rag.bench.suite.suites import EVERYBODY, SUITES
from rag.errors import InvalidRequestError

__all__ = ["WORKLOAD", "Choice", "choose"]

WORKLOAD = "workload"  # the suite of one saved workload
IN_PROCESS = (Drive.QUALITY, Drive.SIMULATION)  # without engines


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a user changes about a suite.

    Attributes:
        engines: that take part; all of the suite's where empty. `NAME=URL` is a server that takes part everywhere.
        only: experiments to run; all where empty.
        seed: of every draw; None is the suite's own.
        corpus: of the questions; None is the suite's own.
        trace: folder of a recorded trace, for the experiments that replay one.
        workload: a saved workload, which is the suite `workload`.
    """

    engines: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    seed: int | None = None
    corpus: str | None = None
    trace: Path | None = None
    workload: Path | None = None


def choose(name: str, choice: Choice) -> Suite:
    """Return a suite as a user wants it.

    Raises:
        InvalidRequestError: there is no such suite, experiment or engine in it, or nothing would be left of it.
        DataError: the saved workload cannot be read.
    """
    suite = _workload_suite(choice) if name == WORKLOAD else SUITES.get(name)
    if suite is None:
        raise InvalidRequestError(f"suite is {name!r}; choose one of: {', '.join((*SUITES, WORKLOAD))}")
    _refuse_unknown("experiments", choice.only, [one.name for one in suite.experiments])
    known = {engine for one in suite.experiments for engine in one.contestants}
    _refuse_unknown("engines", [one for one in choice.engines if "=" not in one and "@" not in one], [*known])
    experiments = [_changed(one, choice) for one in suite.experiments if not choice.only or one.name in choice.only]
    kept = tuple(one for one in experiments if one.contestants or one.drive in IN_PROCESS)
    if not kept:
        raise InvalidRequestError(f"nothing is left of the suite {name}: no experiment has one of these engines")
    return Suite(name=name, experiments=kept)


def _refuse_unknown(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [one for one in given if one not in known]:
        raise InvalidRequestError(f"{what} has {', '.join(unknown)}; choose from: {', '.join(known)}")


def _changed(experiment: Experiment, choice: Choice) -> Experiment:
    spec, contestants = experiment.workload, experiment.contestants
    wanted: dict[str, Any] = {}
    if choice.seed is not None:
        wanted["seed"] = choice.seed
    if choice.corpus is not None and spec.kind is WorkloadKind.QUESTIONS:
        wanted["corpus"] = choice.corpus
    if choice.trace is not None and spec.kind is WorkloadKind.RAGPULSE:
        wanted["path"] = str(choice.trace)
    if choice.engines and contestants:
        extra = [one for one in choice.engines if "=" in one or "@" in one]
        contestants = (*(one for one in contestants if one in choice.engines), *extra)
    return experiment.model_copy(
        update={"workload": spec.model_copy(update=wanted), "contestants": tuple(dict.fromkeys(contestants))}
    )


def _workload_suite(choice: Choice) -> Suite:
    from rag.bench.suite.drawing import saved_spec

    if choice.workload is None:
        raise InvalidRequestError(f"the suite {WORKLOAD} replays a file: name it with --workload FILE")
    spec = saved_spec(choice.workload)
    timed = spec.arrivals.kind is not ArrivalKind.TURNS
    replay = Experiment(
        name="replay",
        title=f"Replay of {choice.workload.name}",
        drive=Drive.LOAD if timed else Drive.TURNS,
        workload=spec,
        contestants=EVERYBODY,
        warmup=spec.count // 5,
        estimate=10.0 * spec.count,
    )
    return Suite(name=WORKLOAD, experiments=(replay,))
