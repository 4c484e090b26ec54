"""From logits to the next token: greedy, temperature, top-k, top-p, seeded."""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.config import SamplingParams

__all__ = ["Sampler", "sample_rows"]

GREEDY_BELOW = 1e-5  # dividing logits by less overflows float32


class Sampler:
    """One request's way of choosing tokens; its random state is its own, so batching does not change it."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    def sample(self, logits: Tensor) -> int:
        """Choose a token from logits [vocab] float32."""
        if self._params.temperature < GREEDY_BELOW:
            return int(logits.argmax())
        order = logits.div(self._params.temperature).sort(descending=True)
        scores = order.values
        if self._params.top_k:
            scores[self._params.top_k :] = -torch.inf
        probabilities = scores.softmax(-1).cpu()
        if self._params.top_p < 1:
            before = probabilities.cumsum(-1) - probabilities
            probabilities[before >= self._params.top_p] = 0
        chosen = torch.multinomial(probabilities, 1, generator=self._generator)
        return int(order.indices[int(chosen)])


def sample_rows(logits: Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """Choose one token for each row of logits [rows, vocab]."""
    return [sampler.sample(row) for sampler, row in zip(samplers, logits, strict=True)]
