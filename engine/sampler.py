"""From logits to the next token: greedy or drawn, with what a request wants of its tokens; seeded."""

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from engine.config import SamplingParams
from engine.constraint import Constraint
from engine.logprobs import TokenLogprob
from engine.penalties import Adjustment

__all__ = ["ForcedSampler", "Sampler", "sample_rows"]

GREEDY_BELOW = 1e-5  # dividing logits by less overflows float32
FEW = 1024  # a nucleus is rarely larger


class Sampler:
    """One request's way of choosing tokens; its state is its own, so batching does not change it.

    Args:
        params: how tokens are chosen.
        adjustments: change the scores before anything is cut off, one after the other.
        constraint: what the answer has to be; comes before the adjustments.

    Attributes:
        logprobs: of each token so far, if the parameters ask for them.
    """

    def __init__(
        self,
        params: SamplingParams,
        adjustments: Sequence[Adjustment] = (),
        constraint: Constraint | None = None,
    ) -> None:
        self.logprobs: list[TokenLogprob] = []
        self._params = params
        self._adjustments = adjustments if constraint is None else (constraint, *adjustments)
        self._constraint = constraint

    @property
    def is_complete(self) -> bool:
        """Whether what the answer has to be allows no further token."""
        return self._constraint is not None and self._constraint.is_complete

    @cached_property
    def _generator(self) -> torch.Generator:
        """Random numbers; greedy answers never wait for the system's."""
        generator = torch.Generator()
        if self._params.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self._params.seed)
        return generator

    def sample(self, logits: Tensor) -> int:
        """Choose a token from logits [vocab] float32, which are left as they are.

        Raises:
            GrammarError: the answer cannot be held to its grammar any further.
        """
        if not self._adjustments:
            token = self._choose(logits)
        else:
            scores = logits.clone()
            for adjustment in self._adjustments:
                adjustment.apply(scores)
            token = self._choose(scores)
            for adjustment in self._adjustments:
                adjustment.accept(token)
        if self._params.logprobs is not None:
            self.logprobs.append(TokenLogprob.of(logits, token, self._params.logprobs))
        return token

    def _choose(self, scores: Tensor) -> int:
        if self._params.temperature < GREEDY_BELOW:
            return int(scores.argmax())
        return self._draw(self._cut_off(scores / self._params.temperature).softmax(-1).cpu())

    def _draw(self, probabilities: Tensor) -> int:
        """Draw a token by inverse transform: one random number, many times faster than `torch.multinomial`.

        Over the vocabulary in its own order: the last bits of two scores must not swap what a number stands for.
        """
        sums = probabilities.double().cumsum(-1)
        total = float(sums[-1])
        assert total > 0, "the scores of tokens are not numbers"
        at = total * float(torch.rand(1, dtype=torch.float64, generator=self._generator))
        at = min(at, math.nextafter(total, 0))  # were it rounded up to the total, there would be no token
        return int(torch.searchsorted(sums, at, right=True))

    def _cut_off(self, scores: Tensor) -> Tensor:
        """Leave min-p, of those top-k, and of those the fewest that reach top-p; the others' scores become -inf.

        vLLM's order. Shares of top-p are of what the others have left.
        """
        if self._params.min_p:
            scores = scores.masked_fill(scores < scores.max() + math.log(self._params.min_p), -torch.inf)
        if self._params.top_k:
            best = scores.topk(min(self._params.top_k, len(scores)))
            kept = best.indices[: self._num_in_nucleus(best.values.softmax(-1))]
        elif self._params.top_p < 1:
            kept = self._nucleus(scores.softmax(-1))
        else:
            return scores
        return torch.full_like(scores, -torch.inf).index_copy_(-1, kept, scores[kept])

    def _nucleus(self, probabilities: Tensor) -> Tensor:
        """The fewest tokens that reach top-p, the likeliest first; sorting the whole vocabulary is the last resort."""
        values, tokens = probabilities.topk(min(FEW, len(probabilities)))
        if len(probabilities) > FEW and values.sum() < self._params.top_p:
            values, tokens = probabilities.sort(descending=True)
        return tokens[: self._num_in_nucleus(values)]

    def _num_in_nucleus(self, probabilities: Tensor) -> int:
        """Count, of probabilities in descending order, those before which top-p is not reached yet."""
        before = probabilities.cumsum(-1) - probabilities
        return len(probabilities) if self._params.top_p == 1 else int((before < self._params.top_p).sum())


class ForcedSampler(Sampler):
    """Gives a dictated answer, and keeps what the model thought of each token of it (teacher forcing).

    Args:
        tokens: the answer.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__(SamplingParams())
        self._tokens = tokens
        self._rows: list[Tensor] = []

    def sample(self, logits: Tensor) -> int:
        """Return the answer's next token."""
        self._rows.append(logits.log_softmax(-1).cpu())
        return self._tokens[len(self._rows) - 1]

    @property
    def forced_logprobs(self) -> Tensor:
        """Log-probabilities [tokens, vocab] float32 before each of the tokens given so far."""
        return torch.stack(self._rows) if self._rows else torch.empty(0, 0)


def sample_rows(logits: Tensor, samplers: Sequence[Sampler], drafts: Sequence[Sequence[int]] = ()) -> list[list[int]]:
    """Choose the next tokens of each request: one, and one more for each token of its draft that was right.

    A row is sampled as if there were no draft, with the same random numbers, and the draft is right as long as it has
    the tokens that come out. So a draft x is accepted with probability p(x), what replaces it has p without x, and a
    seed gives the same answer with drafts as without.

    Args:
        logits: [rows, vocab]; for each sampler the row of its newest token, then one for each token of its draft.
        samplers: one a request.
        drafts: one a sampler; none means that nobody has one.
    """
    rows, chosen = iter(logits), list[list[int]]()
    for sampler, draft in zip(samplers, drafts or [()] * len(samplers), strict=True):
        own = [next(rows) for _ in range(1 + len(draft))]
        tokens = [sampler.sample(own[0])]
        for guess, row in zip(draft, own[1:], strict=True):
            if tokens[-1] != guess or sampler.is_complete:
                break
            tokens.append(sampler.sample(row))
        chosen.append(tokens)
    return chosen
