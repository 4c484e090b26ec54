"""Teacher forcing through the engine: what each way to compute the same passages makes of full prefill's answer."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations
from math import factorial
from typing import TYPE_CHECKING, Any

from engine.config import SamplingParams
from engine.output import Generation
from engine.prompt import Prompt, Segment, SegmentKind
from rag.certify.answers import score_answer
from rag.certify.figures import AnswerFigures, SetFigures, WayFigures
from rag.certify.ways import Question, ask_all, at_repair, check_reused, passages_of, with_order, without_passages

if TYPE_CHECKING:
    from torch import Tensor

    from engine.engine import Engine

__all__ = ["Scorer", "draw_orders", "drift_of", "figures_of"]

FULL, CHUNK = "certify-full", "certify-chunk"  # namespaces: what full prefill leaves behind is no chunk's path


def drift_of(full: "Tensor", other: "Tensor") -> "tuple[Tensor, Tensor]":
    """Compare log-probabilities [tokens, vocab]: KL(full || other) in nats [tokens], and whether top tokens agree."""
    import torch

    kl = (full.exp() * (full - other)).sum(-1, dtype=torch.float64).clamp_min(0)
    return kl, full.argmax(-1) == other.argmax(-1)


def figures_of(full: "Tensor", other: "Tensor") -> WayFigures:
    """Summarise an answer's tokens; arguments are those of `drift_of`."""
    kl, agrees = drift_of(full, other)
    return WayFigures(kl=float(kl.mean()), agreement=float(agrees.double().mean()), first_kl=float(kl[0]))


def draw_orders(count: int, k: int, seed: str) -> list[tuple[int, ...]]:
    """Draw distinct orders of k things, none of them the one that they have; fewer where there are not so many."""
    generator, given = random.Random(seed), tuple(range(k))
    if factorial(k) - 1 <= count:
        return [order for order in permutations(given) if order != given]
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        order = tuple(generator.sample(given, k))
        if order != given:
            found[order] = None
    return list(found)


@dataclass(frozen=True, slots=True)
class Scorer:
    """Measures questions, one at a time.

    Attributes:
        engine: nobody else uses it.
        repairs: tokens, each a whole number of blocks.
        max_tokens: length of an answer at most.
        orders: random orders a set.
        template: whether passages are read after the template when their KV is made for reuse; without it only after
            its first token, which no certificate should survive.
    """

    engine: "Engine"
    repairs: Sequence[int]
    max_tokens: int
    orders: int
    template: bool = True

    def measure(self, prompts: Mapping[int, Prompt], *, seed: str) -> dict[int, SetFigures]:
        """Measure a question's prompts of template, passages in the order of retrieval, and tail; keep nothing.

        Args:
            prompts: by number of passages, at least two; every one has the first passages of the longest.
            seed: of the orders.
        """
        with self._computed(prompts):
            questions = [(prompt, FULL, dict[str, Any]()) for prompt in prompts.values()]
            answers = ask_all(self.engine, questions, max_tokens=self.max_tokens)
            return {
                k: self._measure_set(prompt, answer.token_ids, f"{seed}/{k}")
                for (k, prompt), answer in zip(prompts.items(), answers, strict=True)
            }

    def answer(
        self, prompts: Mapping[int, Prompt], golds: Sequence[str], *, seed: str
    ) -> dict[int, dict[str, AnswerFigures]]:
        """Let every way answer freely, and score the answers; keep nothing.

        Args:
            prompts: as for `measure`.
            golds: texts that answer the question; there may be none.
            seed: of the orders.
        """
        with self._computed(prompts):
            return {k: self._answer_freely(prompt, golds, f"{seed}/{k}") for k, prompt in prompts.items()}

    @contextmanager
    def _computed(self, prompts: Mapping[int, Prompt]) -> Iterator[None]:
        """Hold the KV of full prefill and that for reuse."""
        longest = prompts[max(prompts)]
        try:
            self._compute([Prompt(longest.segments[:-1])], FULL)
            self._compute([Prompt([self._reused(longest).segments[0], one]) for one in passages_of(longest)], CHUNK)
            yield
        finally:
            for namespace in (FULL, CHUNK):
                self.engine.cache.drop_namespace(namespace)

    def _measure_set(self, prompt: Prompt, answer: Sequence[int], seed: str) -> SetFigures:
        passages = passages_of(prompt)
        full = self._forced(prompt, answer, FULL)
        swapped = [with_order(prompt, order) for order in draw_orders(self.orders, len(passages), seed)]
        reordered = [figures_of(full, self._forced(other, answer, FULL)) for other in swapped]
        blind, reused = without_passages(prompt), self._reused(prompt)
        return SetFigures(
            passage_tokens=tuple(len(passage.tokens) for passage in passages),
            answer_tokens=len(answer),
            reordered=_mean(reordered),
            no_passages=figures_of(full, self._forced(blind, answer, FULL)),
            chunk={repair: figures_of(full, self._repaired(reused, answer, repair)) for repair in self.repairs},
        )

    def _answer_freely(self, prompt: Prompt, golds: Sequence[str], seed: str) -> dict[str, AnswerFigures]:
        order = draw_orders(self.orders, len(passages_of(prompt)), seed)[0]
        ways: dict[str, Question] = {
            "full": (prompt, FULL, {}),
            "another order": (with_order(prompt, order), FULL, {}),
            "no passages": (without_passages(prompt), FULL, {}),
        }
        reused = self._reused(prompt)
        ways |= {f"repair {repair}": (reused, CHUNK, at_repair(repair)) for repair in self.repairs}
        texts = [one.text for one in ask_all(self.engine, list(ways.values()), max_tokens=self.max_tokens)]
        return {way: score_answer(text, texts[0], golds) for way, text in zip(ways, texts, strict=True)}

    def _forced(self, prompt: Prompt, answer: Sequence[int], namespace: str) -> "Tensor":
        generation = self._ask(prompt, namespace, forced=answer)
        assert generation.forced_logprobs is not None, "a forced answer comes with its log-probabilities"
        return generation.forced_logprobs

    def _repaired(self, prompt: Prompt, answer: Sequence[int], repair: int) -> "Tensor":
        """Force the answer over reused KV; every passage but the first must really come from elsewhere."""
        generation = self._ask(prompt, CHUNK, forced=answer, **at_repair(repair))
        check_reused(generation, repair)
        assert generation.forced_logprobs is not None, "a forced answer comes with its log-probabilities"
        return generation.forced_logprobs

    def _reused(self, prompt: Prompt) -> Prompt:
        return prompt if self.template else _without_template(prompt)

    def _compute(self, prompts: Sequence[Prompt], namespace: str) -> None:
        self.engine.generate(prompts, SamplingParams(max_tokens=0), namespace=namespace)

    def _ask(self, prompt: Prompt, namespace: str, **how: Any) -> Generation:
        return ask_all(self.engine, [(prompt, namespace, how)], max_tokens=self.max_tokens)[0]


def _without_template(prompt: Prompt) -> Prompt:
    """Return the same tokens with the template cut behind its first token; the rest of it is read as a passage."""
    template, *others = prompt.segments
    head = Segment(template.tokens[:1], SegmentKind.TEMPLATE)
    return Prompt([head, Segment(template.tokens[1:], SegmentKind.PASSAGE, "rest of the template"), *others])


def _mean(ways: Sequence[WayFigures]) -> WayFigures:
    return WayFigures(
        kl=sum(way.kl for way in ways) / len(ways),
        agreement=sum(way.agreement for way in ways) / len(ways),
        first_kl=sum(way.first_kl for way in ways) / len(ways),
    )
