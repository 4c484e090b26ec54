"""What a request gives back: text as it comes, then one `Generation`."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

from engine.config import SamplingParams
from engine.errors import EngineError
from engine.logprobs import TokenLogprob
from engine.request import FinishReason, Request
from engine.stats import CacheReport, Timings, cache_report
from engine.tokenizer import Detokenizer, StopStrings, Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Event", "Generation", "OutputStream", "TokenDelta", "stop_tokens"]


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """New tokens, and the text that they make certain (possibly none yet).

    Attributes:
        token_ids: the tokens.
        text: what is certain of the answer's text and was not given before.
        logprobs: one for each of the tokens, where the request asks for them.
    """

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished request.

    Attributes:
        token_ids: every sampled token, the stop token included.
        text: their text up to the stop string or token; the deltas' texts joined.
        finish_reason: stop, length or cancelled.
        num_prompt_tokens: length of the prompt.
        cache: how each segment got its KV.
        timings: arrival, first scheduled, first token, finished.
        num_preemptions: how often it had to give its blocks back.
        logprobs: one for each of the tokens, where the request asks for them.
        forced_logprobs: of a forced answer [tokens, vocab] float32, before each token; else None.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    num_prompt_tokens: int
    cache: CacheReport
    timings: Timings
    num_preemptions: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    forced_logprobs: "Tensor | None" = field(default=None, repr=False, compare=False)


Event = TokenDelta | Generation


def stop_tokens(params: SamplingParams, tokenizer: Tokenizer) -> frozenset[int]:
    """Return the tokens that end an answer: those that the request names, and the model's own unless ignored."""
    return frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else tokenizer.eos_token_ids)


class OutputStream:
    """Turns one request's sampled tokens into events and decides when the answer ends.

    Args:
        request: whose tokens they are.
        params: when the answer ends.
        tokenizer: turns them into text.
        before: times of the requests that compute what this one needs: it has begun when they have.
    """

    def __init__(
        self, request: Request, params: SamplingParams, tokenizer: Tokenizer, before: Sequence[Timings] = ()
    ) -> None:
        self.events: deque[Event | EngineError] = deque()
        self.timings = Timings(arrival=perf_counter())
        self._before = before
        self._request = request
        self._params = params
        self._stop_tokens = stop_tokens(params, tokenizer)
        self._detokenizer = Detokenizer(tokenizer)
        self._stop_strings = StopStrings(params.stop)
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []

    def push(
        self, token: int, ending: FinishReason | None = None, logprobs: tuple[TokenLogprob, ...] = ()
    ) -> FinishReason | None:
        """Take the token that the request just sampled; return why the answer ends with it, if it does.

        Args:
            token: already in the request's `output_tokens`.
            ending: why no further token may follow, if so.
            logprobs: the token's, if they were asked for.
        """
        self.timings.first_token = self.timings.first_token or perf_counter()
        self._logprobs += logprobs
        if token in self._stop_tokens:
            self._emit((token,), "", logprobs)
            return FinishReason.STOP
        armed = len(self._request.output_tokens) > self._params.min_tokens
        text, stopped = self._stop_strings.push(self._detokenizer.push(token), armed=armed)
        self._emit((token,), text, logprobs)
        if stopped:
            self._detokenizer.flush()
            return FinishReason.STOP
        return ending

    def finish(self, reason: FinishReason, forced_logprobs: "Tensor | None" = None) -> Generation:
        """Emit what was held back, then the generation."""
        rest, _ = self._stop_strings.push(self._detokenizer.flush())
        rest += self._stop_strings.flush()
        if rest:
            self._emit((), rest)
        self.timings.finished = perf_counter()
        begun = [times.first_scheduled for times in (*self._before, self.timings) if times.first_scheduled is not None]
        self.timings.first_scheduled = max(min(begun), self.timings.arrival) if begun else None
        generation = Generation(
            token_ids=tuple(self._request.output_tokens),
            text="".join(self._text),
            finish_reason=reason,
            num_prompt_tokens=self._request.prompt.num_tokens,
            cache=cache_report(self._request),
            timings=self.timings,
            num_preemptions=self._request.num_preemptions,
            logprobs=tuple(self._logprobs),
            forced_logprobs=forced_logprobs,
        )
        self.events.append(generation)
        return generation

    def _emit(self, token_ids: tuple[int, ...], text: str, logprobs: tuple[TokenLogprob, ...] = ()) -> None:
        self._text.append(text)
        self.events.append(TokenDelta(token_ids, text, logprobs))
