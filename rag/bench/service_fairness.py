"""Whether one key's flood makes another key wait."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from time import perf_counter
from typing import TYPE_CHECKING, Any

from rag.bench.progress import Counter
from rag.bench.service_client import Asked, ask
from rag.bench.service_report import Condition, FairnessFigure, Inspection
from rag.bench.statistics import summarise
from rag.errors import ServerError

if TYPE_CHECKING:
    import httpx

    from rag.config import EngineSettings

__all__ = ["FairnessRun", "fairness_conditions", "fairness_figure", "measure_fairness"]

COLD_FACTOR = 2.0
FLOODED_STEPS = 2
PAUSE_SECONDS = 0.3  # at most, between two questions, so that they meet the flood at any moment


@dataclass(frozen=True, slots=True)
class FairnessRun:
    """What the clients saw: times to first tokens in seconds, and the flood's time on the clock."""

    ttft: dict[str, list[float]]
    flood_answers: int
    began: float
    ended: float


async def measure_fairness(
    asking: "httpx.AsyncClient",
    flooding: "httpx.AsyncClient",
    body: dict[str, Any],
    questions: Sequence[str],
    *,
    flood: int,
    each: int,
    counter: Counter,
) -> FairnessRun:
    """Ask cold and warm questions by turns: of an idle server first, then while the other key floods it.

    Args:
        asking: a client with the key that asks.
        flooding: one with the key that floods.
        body: of a question, without its text.
        questions: all different; cold ones are asked once.
        flood: how many of its requests are on their way at any time.
        each: cold, and as many warm questions, of each server.
        counter: of the questions asked.
    """
    warm, *others = questions
    cold = iter(others[: 2 * each])
    floods = cycle(others[2 * each :])
    ttft: dict[str, list[float]] = {}
    pauses = random.Random(0)

    async def measure(name: str, question: str) -> None:
        await asyncio.sleep(pauses.random() * PAUSE_SECONDS)
        ttft.setdefault(name, []).append(_first_token(await ask(asking, body | {"question": question})))
        counter.advance()

    async def by_turns(state: str) -> None:
        for _ in range(each):
            await measure(f"{state} cold", next(cold))
            await measure(f"{state} warm", warm)

    await ask(asking, body | {"question": warm})
    await by_turns("idle")
    answers = 0

    async def keep_asking() -> None:
        nonlocal answers
        while True:
            await ask(flooding, body | {"question": next(floods)})
            answers += 1

    began = perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(keep_asking()) for _ in range(flood)]
        await by_turns("flooded")
        ended = perf_counter()
        for task in tasks:
            task.cancel()
    return FairnessRun(ttft, answers, began, ended)


def fairness_figure(
    run: FairnessRun, inspection: Inspection, engine: "EngineSettings", *, flood: int
) -> FairnessFigure:
    """Put together what the clients saw and what the server's steps took meanwhile."""
    steps = [(length, count) for began, length, count in inspection.step_seconds if run.began <= began <= run.ended]
    samples = {name: [1e3 * value for value in values] for name, values in run.ttft.items()}
    return FairnessFigure(
        flood=flood,
        flood_answers=run.flood_answers,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_slowdown=engine.max_slowdown,
        step_ms=summarise([1e3 * length for length, _ in steps]),
        step_p95_ms=_p95([1e3 * length for length, _ in steps]),
        most_running=max(count for _, count in steps),
        ttft_ms={name: summarise(values) for name, values in samples.items()},
        p95_ms={name: _p95(values) for name, values in samples.items()},
        samples_ms=samples,
    )


def fairness_conditions(figure: FairnessFigure) -> list[Condition]:
    """Return what has to hold: cold questions within twice, warm ones within two of the flood's steps."""
    p95 = figure.p95_ms
    return [
        Condition(
            name="fairness, p95 of cold questions beside a flood",
            value=p95["flooded cold"],
            limit=COLD_FACTOR * p95["idle cold"],
            unit="ms",
        ),
        Condition(
            name="fairness, p95 of warm questions beside a flood",
            value=p95["flooded warm"],
            limit=p95["idle warm"] + FLOODED_STEPS * figure.step_p95_ms,
            unit="ms",
        ),
    ]


def _first_token(asked: Asked) -> float:
    if asked.first_token is None:
        raise ServerError(f"a question got status {asked.status} and ended with {asked.end!r}; see the server's log")
    return asked.first_token


def _p95(values: Sequence[float]) -> float:
    """The smallest value that 95 of 100 do not exceed."""
    ordered = sorted(values)
    return ordered[-(-95 * len(ordered) // 100) - 1]
