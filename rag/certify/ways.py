"""Ways to put a question: passages in another order, none of them, or reused in pieces; several asked at once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engine.config import SamplingParams
from engine.ladder import Outcome
from engine.output import Generation
from engine.prompt import Prompt, Reuse, Segment, SegmentKind

if TYPE_CHECKING:
    from engine.engine import Engine

__all__ = ["Question", "ask_all", "at_repair", "check_reused", "passages_of", "with_order", "without_passages"]

Question = tuple[Prompt, str, dict[str, Any]]  # prompt, namespace, more arguments of `Engine.submit`


def ask_all(engine: "Engine", questions: Sequence[Question], *, max_tokens: int) -> list[Generation]:
    """Answer greedily, side by side: a step of a few rows takes hardly longer than one of a single row."""
    sampling = SamplingParams(max_tokens=max_tokens)
    requests = [engine.submit(prompt, sampling, namespace=name, **how) for prompt, name, how in questions]
    generations = []
    for request in requests:
        *_, generation = engine.stream(request)
        assert isinstance(generation, Generation), f"an answer ended with {generation}"
        generations.append(generation)
    return generations


def passages_of(prompt: Prompt) -> list[Segment]:
    """Return the passages of a prompt, in its order."""
    return [segment for segment in prompt.segments if segment.kind is SegmentKind.PASSAGE]


def with_order(prompt: Prompt, order: Sequence[int]) -> Prompt:
    """Return a prompt of template, passages and tail with its passages in another order."""
    passages = passages_of(prompt)
    return Prompt([prompt.segments[0], *(passages[i] for i in order), prompt.segments[-1]])


def without_passages(prompt: Prompt) -> Prompt:
    """Return a prompt that nothing was retrieved for."""
    return Prompt([segment for segment in prompt.segments if segment.kind is not SegmentKind.PASSAGE])


def at_repair(repair: int) -> dict[str, Any]:
    """Return how chunk reuse is asked for with so many repaired tokens a passage, certified or not."""
    return {"reuse": Reuse.CHUNK, "uncertified_repair": repair}


def check_reused(generation: Generation, repair: int) -> None:
    """Assert that every passage but the first came from elsewhere; without that nothing is measured."""
    reports = [one for one in generation.cache.segments if one.kind is SegmentKind.PASSAGE][1:]
    wrong = [one for one in reports if one.num_tokens > repair and one.outcome is not Outcome.SHIFTED]
    assert not wrong, f"passages were not reused, so nothing is measured: {wrong}"
