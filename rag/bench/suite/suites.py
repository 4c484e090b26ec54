"""The suites: which experiments they have, and how many requests.

Counts are such that `quick` takes less than five minutes and `readme` less than forty on two cores of a server with
SmolLM2-135M and every engine. Estimates are seconds there. vLLM takes a minute to start, so `quick` is without it
unless it is asked for.
"""

from collections.abc import Sequence
from typing import Any

from rag.bench.suite.checks import checks_suite
from rag.bench.suite.contestant import OWN
from rag.bench.suite.experiment import (
    ArrivalKind,
    Arrivals,
    Drive,
    Experiment,
    Suite,
    WorkloadKind,
    WorkloadSpec,
)

__all__ = ["EVERYBODY", "SUITES"]

QUICK_PEERS = ("transformers", "openvino", "llamacpp")
EVERYBODY = (*OWN, *QUICK_PEERS, "vllm")
OURS = ("preread-off", "preread-exact", "preread-chunk")
FAST = (*OURS, "openvino")
SERVED = (*FAST, "vllm")
REPAIRS = (0, 16, 32, 64)


def _turns(name: str, title: str, workload: WorkloadSpec, contestants: tuple[str, ...], **more: Any) -> Experiment:
    return Experiment(name=name, title=title, drive=Drive.TURNS, workload=workload, contestants=contestants, **more)


def _spec(kind: WorkloadKind, count: int, **more: Any) -> WorkloadSpec:
    return WorkloadSpec(kind=kind, count=count, **more)


def _poisson(rate: float) -> Arrivals:
    return Arrivals(kind=ArrivalKind.POISSON, rate=rate)


def _grid(count: int, shapes: Sequence[tuple[int, int]], contestants: tuple[str, ...]) -> tuple[Experiment, ...]:
    """Return an experiment for each number and length of passages."""
    return tuple(
        _turns(
            f"grid-{k}-{length}",
            f"{k} passages of {length} tokens",
            _spec(WorkloadKind.FUSION, count, k=k, length=length, pool=2 * k, output_tokens=4),
            contestants,
            warmup=1,
            estimate=3 + count * k * length * 0.003,
        )
        for k, length in shapes
    )


QUICK = Suite(
    name="quick",
    experiments=(
        _turns(
            "questions",
            "Questions about the documentation of Python",
            _spec(WorkloadKind.QUESTIONS, 8, k=3, output_tokens=8),
            (*OURS, *QUICK_PEERS),
            warmup=2,
            estimate=60,
        ),
        _turns(
            "orders",
            "The same passages, every time in an order never seen",
            _spec(WorkloadKind.ORDERS, 7, k=4, length=256, output_tokens=8),
            FAST,
            warmup=2,
            estimate=18,
        ),
        Experiment(
            name="quality",
            title="Answers beside those of full prefill",
            drive=Drive.QUALITY,
            workload=_spec(WorkloadKind.QUESTIONS, 4, k=4, output_tokens=24),
            repairs=(0, 32),
            estimate=12,
        ),
        Experiment(
            name="simulation",
            title="Hit rate by size of the cache",
            drive=Drive.SIMULATION,
            workload=_spec(WorkloadKind.PASSAGES, 300),
            estimate=10,
        ),
    ),
)

README = Suite(
    name="readme",
    experiments=(
        _turns(
            "questions",
            "Questions about the documentation of Python",
            _spec(WorkloadKind.QUESTIONS, 16, k=4),
            EVERYBODY,
            warmup=4,
            estimate=195,
        ),
        _turns(
            "conversations",
            "Conversations of four turns over the same passages",
            _spec(WorkloadKind.CONVERSATIONS, 16, turns=4),
            SERVED,
            warmup=4,
            estimate=85,
        ),
        _turns(
            "orders",
            "The same passages, every time in an order never seen",
            _spec(WorkloadKind.ORDERS, 14, k=6, length=256),
            (*OWN, "openvino", "vllm"),
            warmup=2,
            estimate=115,
        ),
        _turns(
            "fusion",
            "Six passages of 512 tokens in random order",
            _spec(WorkloadKind.FUSION, 8, k=6, length=512),
            SERVED,
            warmup=2,
            estimate=130,
        ),
        _turns(
            "documents",
            "Two long documents a question, few of them popular",
            _spec(WorkloadKind.DOCUMENTS, 15, k=2),
            FAST,
            warmup=3,
            estimate=100,
        ),
        _turns(
            "passages",
            "Six short passages a question, with a long tail",
            _spec(WorkloadKind.PASSAGES, 14, k=6),
            FAST,
            warmup=2,
            estimate=65,
        ),
        Experiment(
            name="bursts",
            title="Questions that come in bursts",
            drive=Drive.LOAD,
            workload=_spec(
                WorkloadKind.QUESTIONS, 15, k=4, arrivals=Arrivals(kind=ArrivalKind.BURSTY, rate=0.7, cv=3.0)
            ),
            contestants=FAST,
            repeats=2,
            warmup=3,
            estimate=215,
        ),
        Experiment(
            name="goodput",
            title="The highest rate that is kept up with",
            drive=Drive.GOODPUT,
            workload=_spec(WorkloadKind.PASSAGES, 176, k=4, pool=176, output_tokens=8, arrivals=_poisson(1.0)),
            contestants=FAST,
            estimate=320,
        ),
        *_grid(6, ((2, 128), (4, 128), (8, 128), (2, 512), (4, 512), (8, 512)), FAST),
        Experiment(
            name="quality",
            title="Answers beside those of full prefill",
            drive=Drive.QUALITY,
            workload=_spec(WorkloadKind.QUESTIONS, 14, k=4, output_tokens=48),
            repairs=REPAIRS,
            estimate=75,
        ),
        Experiment(
            name="simulation",
            title="Hit rate by size of the cache",
            drive=Drive.SIMULATION,
            workload=_spec(WorkloadKind.PASSAGES, 1000),
            estimate=40,
        ),
    ),
)


def _larger(experiment: Experiment) -> Experiment:
    """Return an experiment of the README with every engine, twice the requests and two passes."""
    if not experiment.contestants:
        return experiment
    spec, engines = experiment.workload, 1 if len(experiment.contestants) == len(EVERYBODY) else 3
    update = {
        "workload": spec.model_copy(update={"count": 2 * spec.count}),
        "contestants": EVERYBODY,
        "repeats": 2,
        "estimate": 4 / experiment.repeats * engines * experiment.estimate,
    }
    return experiment.model_copy(update=update)


FULL = Suite(
    name="full",
    experiments=(
        *(_larger(one) for one in README.experiments),
        *_grid(16, ((2, 256), (4, 256), (8, 256), (2, 1024), (4, 1024)), EVERYBODY),
        _turns(
            "ragpulse",
            "Replay of a recorded week",
            _spec(WorkloadKind.RAGPULSE, 60),
            EVERYBODY,
            warmup=10,
            estimate=1200,
        ),
    ),
)

SUITES = {one.name: one for one in (QUICK, README, FULL, checks_suite())}
