"""From records to figures and self-checks. Pure: the same records give the same figures."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import median

from rag.bench.report import (
    MODES,
    AnswerComparison,
    AskedQuestion,
    Mode,
    ModeSummary,
    Ratios,
    Recall,
    Record,
    Summaries,
)
from rag.bench.statistics import median_ratio, ratio_of_means, summarise

__all__ = ["find_problems", "recall_at", "summaries_of"]

SHOWN = 5  # examples named in a message


def summaries_of(records: Sequence[Record], questions: Sequence[AskedQuestion], *, k: int, seed: int) -> Summaries:
    """Compute every figure from at least one question's records, which are complete: one a mode."""
    by_mode = {mode: [record for record in records if record.mode is mode] for mode in MODES}
    asked = [record.question for record in by_mode[Mode.OFF] if record.repeat == 0]
    distinct = [questions[number] for number in sorted(set(asked))]
    others = [mode for mode in MODES if mode is not Mode.OFF]
    return Summaries(
        measured=len(asked),
        distinct_questions=len(distinct),
        distinct_passages=len({passage for question in distinct for passage in question.passage_ids}),
        modes={mode: _mode_summary(by_mode[mode]) for mode in MODES},
        off_over={mode: _ratios(by_mode[Mode.OFF], by_mode[mode], seed) for mode in others},
        answers={mode: _compare_answers(by_mode[Mode.OFF], by_mode[mode]) for mode in others},
        recall=Recall(
            distinct=recall_at([question.gold_rank for question in distinct], k),
            stream=recall_at([questions[number].gold_rank for number in asked], k),
        ),
    )


def recall_at(ranks: Sequence[int | None], k: int) -> dict[int, float]:
    """Return the share of gold ranks (from 1; None is a miss) within the first n, for n of 1, 3 and k up to k."""
    cutoffs = sorted({1, min(3, k), k})
    return {n: sum(rank is not None and rank <= n for rank in ranks) / len(ranks) for n in cutoffs}


def find_problems(records: Iterable[Record], *, evicted_blocks: int) -> list[str]:
    """Return the self-checks that fail; with any of them the figures mean nothing."""
    records = list(records)
    problems = []
    reused = [r for r in records if r.mode is Mode.OFF and (r.cached_tokens or any(r.hit_tokens.values()))]
    if reused:
        problems.append(
            f"with the cache off, {len(reused)} answers had cached tokens ({_places(reused)}); it must be none"
        )
    prompts: defaultdict[int, set[str]] = defaultdict(set)
    for record in records:
        prompts[record.question].add(record.prompt)
    unequal = [number for number, digests in prompts.items() if len(digests) > 1]
    if unequal:
        problems.append(f"the modes did not get the same prompts for questions {unequal[:SHOWN]}")
    missed = [r for r in records if r.mode is Mode.WARM and r.passage_hit_tokens < r.passage_tokens]
    if missed and not evicted_blocks:
        problems.append(
            f"with the cache warm and nothing evicted, {len(missed)} answers computed passage tokens again "
            f"({_places(missed)})"
        )
    return problems


def _places(records: Sequence[Record]) -> str:
    shown = ", ".join(f"number {r.index} of pass {r.repeat}" for r in records[:SHOWN])
    return f"{shown}, ..." if len(records) > SHOWN else shown


def _mode_summary(records: Sequence[Record]) -> ModeSummary:
    prompt_tokens = sum(record.prompt_tokens for record in records)
    cached_tokens = sum(record.cached_tokens for record in records)
    hit_tokens: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for record in records:
        hit_tokens.update(record.hit_tokens)
        outcomes.update(record.passage_outcomes)
    return ModeSummary(
        ttft_ms=summarise([record.ttft_ms for record in records]),
        prefill_ms=summarise([record.prefill_ms for record in records]),
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        hit_rate=cached_tokens / prompt_tokens,
        passage_hit_rate=sum(r.passage_hit_tokens for r in records) / sum(r.passage_tokens for r in records),
        hit_tokens=dict(hit_tokens),
        passage_outcomes=dict(outcomes),
    )


def _ratios(off: Sequence[Record], other: Sequence[Record], seed: int) -> Ratios:
    ttft, prefill = _pairs(off, other, "ttft_ms"), _pairs(off, other, "prefill_ms")
    return Ratios(
        ttft=median_ratio(*ttft, seed=seed),
        prefill=median_ratio(*prefill, seed=seed),
        mean_ttft=ratio_of_means(*ttft, seed=seed),
        mean_prefill=ratio_of_means(*prefill, seed=seed),
    )


def _pairs(off: Sequence[Record], other: Sequence[Record], field: str) -> tuple[list[float], list[float]]:
    """The times of each place of the stream in both modes; of repeats, the median."""
    times: tuple[defaultdict[int, list[float]], ...] = (defaultdict(list), defaultdict(list))
    for records, found in zip((off, other), times, strict=True):
        for record in records:
            found[record.index].append(getattr(record, field))
    places = sorted(times[0])
    return [median(times[0][place]) for place in places], [median(times[1][place]) for place in places]


def _compare_answers(off: Sequence[Record], other: Sequence[Record]) -> AnswerComparison:
    expected = {(record.repeat, record.index): record.answer_tokens for record in off}
    differing = [(r.repeat, r.index) for r in other if r.answer_tokens != expected[r.repeat, r.index]]
    return AnswerComparison(compared=len(other), differing=len(differing), records=differing)
