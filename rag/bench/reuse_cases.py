"""Times prompts of one shape: in pieces with each repair, in one piece, and with nothing cached."""

import random
from collections.abc import Callable, Sequence
from functools import partial

from engine.prompt import Prompt
from rag.bench.reuse_engine import QUESTION, TEMPLATE, ReuseEngine
from rag.bench.reuse_report import ReuseCase, ReuseResult

__all__ = ["measure_shape", "tokens_of"]


def tokens_of(length: int, count: int) -> int:
    """Return the length of a prompt of so many passages."""
    return TEMPLATE + length * count + QUESTION


def measure_shape(
    own: ReuseEngine,
    length: int,
    count: int,
    repairs: Sequence[int],
    *,
    repeats: int,
    seed: int,
    advance: Callable[[], None],
) -> list[ReuseResult]:
    """Time every repair that is shorter than the passages, in turns; the first round does not count."""
    cases = [ReuseCase(passages=count, length=length, repair=repair) for repair in repairs if repair < length]
    known = own.passages(length, count + 1)
    own.read(known)
    full = list[float]()
    pieces: dict[int, list[float]] = {case.repair: [] for case in cases}
    one_piece: dict[int, list[float]] = {case.repair: [] for case in cases}
    turns = random.Random(f"{seed}/{length}/{count}")
    for _ in range(-1, repeats):
        prompt = own.question(own.shuffled(known, count))
        contests = [(full, partial(own.full_ms, prompt))]
        for case in cases:
            contests.append((pieces[case.repair], partial(own.chunk_ms, _again(own, prompt), case.repair)))
            contests.append((one_piece[case.repair], partial(own.contiguous_ms, case, prompt.num_tokens)))
        for samples, contest in turns.sample(contests, len(contests)):
            samples.append(contest())
        advance()
    return [
        ReuseResult.of(
            case,
            tokens_of(length, count),
            case.repair * (count - 1) + QUESTION,
            {"chunk": pieces[case.repair][1:], "full": full[1:], "contiguous": one_piece[case.repair][1:]},
            seed,
        )
        for case in cases
    ]


def _again(own: ReuseEngine, prompt: Prompt) -> Prompt:
    """Ask a new question over the passages of a prompt in another order."""
    passages = prompt.segments[1:-1]
    return own.question(own.shuffled(passages, len(passages)))
