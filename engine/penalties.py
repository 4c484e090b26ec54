"""What a request wants of single tokens: ends that come too early, biases, penalties for what was said already.

Each is an `Adjustment`: it changes scores in place and follows the answer token by token, so that a token of a draft is
judged as if those before it had been sampled one by one.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from engine.config import SamplingParams
from engine.errors import ConfigError

__all__ = ["Adjustment", "AnswerPenalty", "Bias", "RepetitionPenalty", "TooEarly", "adjustments"]


class Adjustment(Protocol):
    """Changes the scores of a request's next token."""

    def apply(self, scores: Tensor) -> None:
        """Change scores [vocab] float32 in place."""

    def accept(self, token: int) -> None:
        """Take note of the token that was chosen."""


class TooEarly:
    """Lets no token end an answer before it has `min_tokens`.

    Args:
        min_tokens: how many tokens come first.
        ends: tokens that would end the answer.
    """

    def __init__(self, min_tokens: int, ends: Sequence[int]) -> None:
        self._left = min_tokens
        self._ends = list(ends)

    def apply(self, scores: Tensor) -> None:
        """Rule the ends out, unless nothing else is left: a grammar may be at its own end."""
        if self._left <= 0:
            return
        others = scores.index_fill(0, torch.tensor(self._ends, device=scores.device), -torch.inf)
        if others.max() > -torch.inf:
            scores.copy_(others)

    def accept(self, token: int) -> None:  # noqa: ARG002 - any token counts
        """Count it."""
        self._left -= 1


class Bias:
    """Adds to the scores of some tokens.

    Args:
        biases: what is added, by token.
    """

    def __init__(self, biases: Mapping[int, float]) -> None:
        self._tokens = torch.tensor(list(biases))
        self._biases = torch.tensor(list(biases.values()), dtype=torch.float32)

    def apply(self, scores: Tensor) -> None:
        """Add."""
        scores.index_add_(0, self._tokens.to(scores.device), self._biases.to(scores.device))

    def accept(self, token: int) -> None:
        """A bias is the same for every token of the answer."""


class RepetitionPenalty:
    """Makes all tokens of prompt and answer less likely, once each (Keskar et al. 2019, arXiv:1909.05858, section 4.1).

    Args:
        penalty: divides their scores; multiplies those below zero.
        prompt: the prompt's tokens.
    """

    def __init__(self, penalty: float, prompt: Sequence[int]) -> None:
        self._penalty = penalty
        self._known = set(prompt)
        self._tokens = torch.tensor(sorted(self._known), dtype=torch.int64)

    def apply(self, scores: Tensor) -> None:
        """Divide or multiply."""
        self._tokens = self._tokens.to(scores.device)
        known = scores[self._tokens]
        scores[self._tokens] = torch.where(known > 0, known / self._penalty, known * self._penalty)

    def accept(self, token: int) -> None:
        """Add it to what was said."""
        if token not in self._known:
            self._known.add(token)
            self._tokens = torch.cat([self._tokens, self._tokens.new_tensor([token])])


class AnswerPenalty:
    """Makes the answer's own tokens less likely: once for being there, and once more for each time.

    Args:
        presence: taken from the score of each token that is there.
        frequency: taken from it for each time that it is there.
    """

    def __init__(self, presence: float, frequency: float) -> None:
        self._presence = presence
        self._frequency = frequency
        self._counts: dict[int, int] = {}

    def apply(self, scores: Tensor) -> None:
        """Subtract."""
        tokens = torch.tensor(list(self._counts), dtype=torch.int64, device=scores.device)
        counts = torch.tensor(list(self._counts.values()), dtype=scores.dtype, device=scores.device)
        scores[tokens] -= self._frequency * counts + self._presence

    def accept(self, token: int) -> None:
        """Count it."""
        self._counts[token] = self._counts.get(token, 0) + 1


def adjustments(
    params: SamplingParams, prompt: Sequence[int], ends: Sequence[int], vocab_size: int
) -> list[Adjustment]:
    """Return what the parameters ask for, in vLLM's order; nothing for a plain request.

    The order is that of vLLM's sampler (`vllm/v1/sample/sampler.py`): ends that come too early, biases, then penalties:
    repetition, frequency, presence.

    Args:
        params: of the request.
        prompt: its prompt's tokens.
        ends: tokens that end its answer.
        vocab_size: how many tokens the model has.

    Raises:
        ConfigError: a bias for a token that the model does not have.
    """
    unknown = [token for token in params.logit_bias if token >= vocab_size]
    if unknown:
        raise ConfigError(f"logit_bias names the tokens {unknown}; the model has ids below {vocab_size} only")
    ends = [token for token in ends if token < vocab_size]
    wanted: list[Adjustment] = []
    if params.min_tokens and ends:
        wanted.append(TooEarly(params.min_tokens, ends))
    if params.logit_bias:
        wanted.append(Bias(params.logit_bias))
    if params.repetition_penalty != 1:
        wanted.append(RepetitionPenalty(params.repetition_penalty, prompt))
    if params.presence_penalty or params.frequency_penalty:
        wanted.append(AnswerPenalty(params.presence_penalty, params.frequency_penalty))
    return wanted
