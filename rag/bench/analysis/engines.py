"""The figures of one engine in one experiment."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from rag.bench.analysis.models import ContestantFigures, Times
from rag.bench.analysis.times import Time, decode_ms, grid_of, prefill_ms, speedup, times_of, total_ms, ttft_ms
from rag.bench.suite.experiment import Drive, Experiment
from rag.bench.suite.records import AnswerRecord, WindowRecord

__all__ = ["engine_figures"]


def engine_figures(
    answers: Sequence[AnswerRecord],
    windows: Sequence[WindowRecord],
    baseline: Sequence[AnswerRecord],
    experiment: Experiment,
    repeats: Mapping[str, int],
    *,
    cores: int,
) -> ContestantFigures:
    """Compute them.

    Args:
        answers: at least one, of the engine in all units.
        windows: of the engine.
        baseline: the baseline's answers; empty where it did not take part, for itself, and where a window of its was
            cut or not finished under load.
        experiment: as it was planned; times of different rates are not mixed, so goodput has none.
        repeats: the pass of each unit.
        cores: of the machine.
    """
    cut = {window.unit for window in windows if window.cut}
    driven = {window.unit for window in windows}  # a window in which the engine was lost has no record
    failed = [answer for answer in answers if answer.status == "failed"]
    counted = [answer for answer in answers if answer.status == "ok"]
    steady = [answer for answer in counted if not answer.warmup]
    warming = [answer for answer in counted if answer.warmup]
    fields: dict[str, Any] = {}
    if experiment.drive is not Drive.GOODPUT:
        in_turns, base = experiment.drive is Drive.TURNS, [answer for answer in baseline if not answer.warmup]
        if not in_turns and (cut or any(answer.unit not in driven for answer in answers)):
            base = []
        asked = steady if in_turns else [answer for answer in answers if not answer.warmup]
        base = [answer for answer in base if answer.status == "ok"] if in_turns else base
        fields = _times(asked, warming, base, repeats, paired=in_turns)
        fields |= {} if in_turns else _throughput(answers, windows)
    return ContestantFigures(
        contestant=answers[0].contestant,
        warmup=len(warming),
        short=sum(answer.status == "short" for answer in answers),
        failed=len(failed),
        unanswered=sum(answer.unit in cut for answer in failed),
        hit_rate=_hit_rate(steady),
        warmup_hit_rate=_hit_rate(warming),
        tiers=_sums(answer.cached or {} for answer in steady),
        outcomes=_sums(answer.outcomes for answer in steady),
        prompt_tokens=sum(answer.prompt_tokens for answer in steady),
        repairs=tuple(sorted({answer.repair for answer in steady if answer.repair is not None})),
        uncertified=sum(answer.certified is False for answer in steady),
        shares=_shares(counted, repeats),
        **_held(windows, sum(answer.unit in driven for answer in answers), cores),
        **fields,
    )


def _times(
    asked: Sequence[AnswerRecord],
    warming: Sequence[AnswerRecord],
    base: Sequence[AnswerRecord],
    repeats: Mapping[str, int],
    *,
    paired: bool,
) -> dict[str, Any]:
    """Times of what was asked after the warm-up; who did not answer took forever."""
    steady = [answer for answer in asked if answer.status == "ok"]
    requests = sorted({answer.request for answer in (*asked, *base)})
    passes = sorted({repeats[answer.unit] for answer in (*asked, *base)}) if paired else None
    grids = [grid_of(answers, _or_never(ttft_ms), repeats, requests, passes) for answers in (asked, base)]
    ordered = sorted(steady, key=lambda answer: (repeats[answer.unit], answer.request))
    return {
        "ttft": _distribution(asked, _or_never(ttft_ms), repeats),
        "warmup_ttft": _distribution(warming, ttft_ms, repeats),
        "prefill": _distribution(asked, _or_never(prefill_ms), repeats),
        "tpot": _distribution(steady, decode_ms, repeats),
        "total": _distribution(asked, _or_never(total_ms), repeats),
        "speedup": speedup(grids[0], grids[1], paired=paired) if base and steady else None,
        "ttft_ms": tuple(value for answer in ordered if (value := ttft_ms(answer)) is not None),
    }


def _or_never(time: Time) -> Time:
    return lambda answer: time(answer) if answer.status == "ok" else inf


def _distribution(answers: Sequence[AnswerRecord], time: Time, repeats: Mapping[str, int]) -> Times | None:
    import numpy as np

    requests = sorted({answer.request for answer in answers})
    return times_of(np.exp(grid_of(answers, time, repeats, requests))) if answers else None


def _throughput(answers: Sequence[AnswerRecord], windows: Sequence[WindowRecord]) -> dict[str, float]:
    driven = {window.unit for window in windows}
    answered = [one for one in answers if one.status == "ok" and one.unit in driven]  # with the warm-up, as the time
    seconds = sum(window.seconds for window in windows)
    if not seconds:
        return {}
    return {
        "requests_per_second": len(answered) / seconds,
        "tokens_per_second": sum(answer.count for answer in answered) / seconds,
    }


def _held(windows: Sequence[WindowRecord], requests: int, cores: int) -> dict[str, Any]:
    processor = [window.engine_cpu for window in windows if window.engine_cpu is not None]
    return {
        "memory": max((window.memory for window in windows if window.memory is not None), default=None),
        "disk": max((window.disk for window in windows), default=0),
        "prepared_tokens": max((window.prepared_tokens for window in windows), default=0),
        "prepared_seconds": max((window.prepared_seconds for window in windows), default=0.0),
        "engine_cpu": sum(processor) / requests if processor else None,
        "generator": max(
            (one.generator_cpu / (one.seconds * cores) for one in windows if one.seconds > 1), default=0.0
        ),
        "lateness_ms": max((window.lateness_ms for window in windows), default=0.0),
    }


def _hit_rate(answers: Sequence[AnswerRecord]) -> float | None:
    told = [answer for answer in answers if answer.cached is not None]
    tokens = sum(answer.prompt_tokens for answer in told)
    return sum(sum((answer.cached or {}).values()) for answer in told) / tokens if tokens else None


def _shares(answers: Sequence[AnswerRecord], repeats: Mapping[str, int]) -> tuple[tuple[int, float], ...]:
    """Cached shares of prompts over the stream, in the first pass."""
    told = [answer for answer in answers if answer.cached is not None and answer.prompt_tokens]
    first = min((repeats[answer.unit] for answer in told), default=0)
    found = {
        answer.request: sum((answer.cached or {}).values()) / answer.prompt_tokens
        for answer in told
        if repeats[answer.unit] == first
    }
    return tuple(sorted(found.items()))


def _sums(parts: "Any") -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)
