"""Runs the cases on our own engine, through `submit` and `step`: what a user gets."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from statistics import median
from time import perf_counter

from engine.config import SamplingParams
from engine.engine import Engine
from engine.output import Generation
from engine.prompt import Prompt, Segment, SegmentKind
from rag.bench.engine_cases import Case, passages_of

__all__ = ["STEPS_BEFORE", "CacheMismatchError", "Decoded", "OwnEngine", "blocks_needed", "fitting"]

KEPT = "bench-engine/kept"  # namespace of the cached passages
FRESH = "bench-engine/fresh"  # namespace of prompts that must not hit anything
STEPS_BEFORE = 2  # decode steps before those that are timed
ROOM = 4  # times the timed steps: how many tokens an answer may have, since a step may give several


class CacheMismatchError(AssertionError):
    """Report that a prompt hit more or less of the cache than its case says: its time would be of another case."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Decode steps of a batch.

    Attributes:
        seconds: a step, the median.
        tokens: of one sequence a step, on average.
    """

    seconds: float
    tokens: float


class OwnEngine:
    """A contestant: times first tokens and decode steps.

    Args:
        engine: nobody else uses it.
    """

    name = "preread"

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def first_token(self, prompt: Sequence[int], cached: int) -> float:
        """Return the seconds from submitting a prompt, whose first `cached` tokens are cached, to its first token.

        A prompt without cached tokens is plain text of a namespace of its own.
        """
        namespace = KEPT if cached else FRESH
        if cached:
            self._keep(prompt[:cached])
        made = _prompt(prompt, cached)
        began = perf_counter()
        request = self.engine.submit(made, SamplingParams(max_tokens=1, ignore_eos=True), namespace=namespace)
        *_, generation = self.engine.stream(request)
        assert isinstance(generation, Generation), f"request {request.id} ended with {generation}"
        assert generation.timings.first_token is not None, "a finished request has a token"
        self.engine.cache.drop_namespace(FRESH)
        _check(generation, cached)
        return generation.timings.first_token - began

    def decode(self, prompts: Sequence[Sequence[int]], cached: int, steps: int) -> Decoded:
        """Time decode steps of prompts that run together."""
        seconds = []
        with self.decoding(prompts, cached, steps) as step:
            tokens = 0
            for _ in range(steps):
                began = perf_counter()
                tokens += step()
                seconds.append(perf_counter() - began)
        return Decoded(median(seconds), tokens / steps / len(prompts))

    @contextmanager
    def decoding(self, prompts: Sequence[Sequence[int]], cached: int, steps: int) -> Iterator[Callable[[], int]]:
        """Bring prompts to where all of them decode; give what makes one step and returns the tokens sampled."""
        for prompt in prompts:
            self._keep(prompt[:cached])
        room = ROOM * (steps + STEPS_BEFORE)
        sampling = SamplingParams(max_tokens=room, ignore_eos=True)
        requests = [self.engine.submit(_prompt(prompt, cached), sampling, namespace=KEPT) for prompt in prompts]
        totals = self.engine.totals
        try:
            while not all(request.output_tokens for request in requests):
                self.engine.step()

            def step() -> int:
                before = totals.output_tokens
                self.engine.step()
                return totals.output_tokens - before

            for _ in range(STEPS_BEFORE):
                step()
            yield step
        finally:
            for request in requests:
                self.engine.cancel(request)
            generations = [self.engine.take_events(request)[-1] for request in requests]
        for generation in generations:
            assert isinstance(generation, Generation), f"a cancelled request ended with {generation}"
            _check(generation, cached)

    def _keep(self, tokens: Sequence[int]) -> None:
        """Compute and publish a passage unless it is cached."""
        passage = Segment(tuple(tokens), SegmentKind.PASSAGE)
        if not self.engine.cache.is_cached(KEPT, [passage]):
            self.engine.generate([Prompt([passage])], SamplingParams(max_tokens=0), namespace=KEPT)


def blocks_needed(cases: Sequence[Case], block_size: int, steps: int) -> int:
    """Count the KV blocks that hold every cached passage of the cases together and the largest running case."""
    kept = {passage for case in cases for passage in passages_of(case)}
    room = ROOM * (steps + STEPS_BEFORE)
    running = (case.batch * ceil((case.new + (room if case.decodes else 1)) / block_size) for case in cases)
    return sum(ceil(length / block_size) for length, _ in kept) + max(running, default=0)


def fitting(cases: Sequence[Case], *, blocks: int, block_size: int, context: int, steps: int) -> dict[Case, str]:
    """Return the cases that cannot be measured, each with the reason; the largest ones give way first."""
    room = ROOM * (steps + STEPS_BEFORE)
    left_out = {
        case: f"needs {case.context + (room if case.decodes else 1)} tokens of context, the model has {context}"
        for case in cases
        if case.context + (room if case.decodes else 1) > context
    }
    rest = [case for case in cases if case not in left_out]
    for case in sorted(rest, key=lambda case: case.batch * case.context, reverse=True):
        if blocks_needed(rest, block_size, steps) <= blocks:
            break
        left_out[case] = f"needs more KV memory than the engine has ({blocks} blocks); raise --kv-gib"
        rest.remove(case)
    return left_out


def _prompt(tokens: Sequence[int], cached: int) -> Prompt:
    if not cached:
        return Prompt.from_tokens(tokens)
    head, tail = Segment(tuple(tokens[:cached]), SegmentKind.PASSAGE), Segment(tuple(tokens[cached:]), SegmentKind.TAIL)
    return Prompt([head, tail])


def _check(generation: Generation, cached: int) -> None:
    if generation.cache.cached_tokens != cached:
        raise CacheMismatchError(
            f"{generation.cache.cached_tokens} of {generation.num_prompt_tokens} prompt tokens were cached instead of "
            f"{cached}"
        )
