"""Log-probabilities of tokens with the tokens' texts."""

from collections.abc import Iterable
from dataclasses import dataclass

from engine.logprobs import TokenLogprob as EngineLogprob
from engine.tokenizer import REPLACEMENT, Tokenizer
from rag.schemas import TokenLogprob, TopLogprob

__all__ = ["LogprobTexts"]


@dataclass(frozen=True, slots=True)
class LogprobTexts:
    """Looks up what tokens say.

    Attributes:
        tokenizer: of the model.
    """

    tokenizer: Tokenizer

    def of(self, logprobs: Iterable[EngineLogprob]) -> list[TokenLogprob]:
        """Return what the engine tells of tokens, with their texts."""
        return [
            TokenLogprob(
                **self._top(item.token_id, item.logprob).model_dump(), top=[self._top(*other) for other in item.top]
            )
            for item in logprobs
        ]

    def _top(self, token_id: int, logprob: float) -> TopLogprob:
        text = self.tokenizer.decode([token_id], skip_special_tokens=False)
        return TopLogprob(token=text, bytes=None if REPLACEMENT in text else list(text.encode()), logprob=logprob)
