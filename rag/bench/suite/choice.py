"""What a user changes about a suite."""

from collections.abc import Callable, Sequence
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
        engines: that take part; all of the suite's where empty. One that the suite does not know, as `vllm` in a suite
            without it, `preread-chunk@N` or a server `NAME=URL`, takes part everywhere.
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


def choose(name: str, choice: Choice, tell: Callable[[str], None] = lambda _line: None) -> Suite:
    """Return a suite as a user wants it.

    Args:
        name: of the suite.
        choice: what is changed.
        tell: told what is left out although nobody said so.

    Raises:
        InvalidRequestError: there is no such suite, experiment or engine, or nothing would be left of it.
        DataError: the saved workload cannot be read.
    """
    from rag.bench.suite.opening import check_contestant

    suite = _workload_suite(choice) if name == WORKLOAD else SUITES.get(name)
    if suite is None:
        raise InvalidRequestError(f"suite is {name!r}; choose one of: {', '.join((*SUITES, WORKLOAD))}")
    _refuse_unknown("experiments", choice.only, [one.name for one in suite.experiments])
    for engine in choice.engines:
        check_contestant(engine)
    known = {engine for one in suite.experiments for engine in one.contestants}
    everywhere = tuple(one for one in choice.engines if one not in known)
    wanted = [one for one in suite.experiments if not choice.only or one.name in choice.only]
    experiments = [_changed(one, choice, everywhere) for one in wanted]
    kept = tuple(one for one in experiments if one.contestants or one.drive in IN_PROCESS)
    if not kept:
        raise InvalidRequestError(f"nothing is left of the suite {name}: no experiment has one of these engines")
    return Suite(name=name, experiments=_with_traces(kept, choice, tell))


def _with_traces(
    experiments: tuple[Experiment, ...], choice: Choice, tell: Callable[[str], None]
) -> tuple[Experiment, ...]:
    """Return them without those that need a trace which nobody named, so that the run can be complete."""
    lacking = [one for one in experiments if one.workload.kind is WorkloadKind.RAGPULSE and one.workload.path is None]
    for one in lacking:
        if one.name in choice.only:
            raise InvalidRequestError(f"{one.name} replays a recorded trace: name its folder with --trace FOLDER")
        tell(f"left out: {one.name}: it replays a recorded trace; name its folder with --trace FOLDER")
    return tuple(one for one in experiments if one not in lacking)


def _refuse_unknown(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [one for one in given if one not in known]:
        raise InvalidRequestError(f"{what} has {', '.join(unknown)}; choose from: {', '.join(known)}")


def _changed(experiment: Experiment, choice: Choice, everywhere: tuple[str, ...]) -> Experiment:
    spec, contestants = experiment.workload, experiment.contestants
    wanted: dict[str, Any] = {}
    if choice.seed is not None:
        wanted["seed"] = choice.seed
    if choice.corpus is not None and spec.kind is WorkloadKind.QUESTIONS:
        wanted["corpus"] = choice.corpus
    if choice.trace is not None and spec.kind is WorkloadKind.RAGPULSE:
        wanted["path"] = str(choice.trace)
    if choice.engines and contestants:
        contestants = (*(one for one in contestants if one in choice.engines), *everywhere)
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
