"""What the model thought of a token that was chosen, and of the ones that were most likely."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TokenLogprob"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A chosen token's log-probability among the model's own, before anything that the request asks of sampling.

    So it is comparable between requests whatever their temperature, penalties, biases and grammar, as vLLM's
    `raw_logprobs` are (whose values do see the grammar, and become infinite with it).

    Attributes:
        token_id: the token that was chosen.
        logprob: its natural logarithm of probability.
        top: the most likely tokens and their log-probabilities, the likeliest first; the chosen one need not be there.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, logits: "Tensor", token_id: int, num_top: int) -> "TokenLogprob":
        """Read a token's and the `num_top` most likely ones' off the model's logits [vocab] float32."""
        logprobs = logits.log_softmax(-1)
        best = logprobs.topk(min(num_top, len(logprobs)))
        top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return cls(token_id, float(logprobs[token_id]), tuple(top))
