"""The answers under way: who chooses a request's tokens, who hands them out, and until when anybody waits for them.

Knows sampled tokens; which requests run, and the blocks that they hold, are the scheduler's business.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.config import SamplingParams
from engine.constraint import Grammars
from engine.errors import EngineError, GrammarError
from engine.output import Event, OutputStream, stop_tokens
from engine.penalties import adjustments
from engine.request import FinishReason, Request, RequestState
from engine.sampler import ForcedSampler, Sampler, sample_rows
from engine.scheduler import ScheduledWork
from engine.stats import Totals
from engine.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher
    from torch import Tensor

__all__ = ["Answer", "Answers"]

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Answer:
    """One request's answer, from its submission until its last event is taken.

    Attributes:
        stream: its events.
        sampler: chooses its tokens.
        deadline: when nobody waits for it any more, in seconds of `time.perf_counter`; None has none.
        is_read: False where it is run for another request, and nobody takes its events.
    """

    stream: OutputStream
    sampler: Sampler
    deadline: float | None = None
    is_read: bool = True


class Answers(Mapping[Request, Answer]):
    """The answers of all requests whose last event has not been taken.

    Args:
        tokenizer: turns sampled tokens into text.
        vocab_size: of the model.
        totals: where tokens are counted.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, totals: Totals) -> None:
        self.grammars = Grammars(tokenizer, vocab_size)
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._totals = totals
        self._answers: dict[Request, Answer] = {}

    def __getitem__(self, request: Request) -> Answer:
        return self._answers[request]

    def __iter__(self) -> Iterator[Request]:
        return iter(self._answers)

    def __len__(self) -> int:
        return len(self._answers)

    def sampler(self, request: Request, params: SamplingParams, compiled: "LLMatcher | None") -> Sampler:
        """Make what chooses a request's tokens.

        Raises:
            GrammarError: a grammar that cannot be compiled.
        """
        if request.forced is not None:
            return ForcedSampler(request.forced)
        ends = sorted(stop_tokens(params, self._tokenizer))
        wanted = adjustments(params, request.prompt.tokens, ends, self._vocab_size)
        constraint = None if params.grammar is None else self.grammars.constraint(params.grammar, compiled)
        return Sampler(params, wanted, constraint)

    def prepare(
        self, request: Request, params: SamplingParams, sampler: Sampler, deadline: float | None
    ) -> dict[Request, Answer]:
        """Make the answers of those requests that are new and come before this one, and last its own; keep none yet."""
        new = {
            other: Answer(OutputStream(other, params, self._tokenizer), Sampler(SamplingParams()), is_read=False)
            for other in request.prerequisites
            if other not in self
        }
        before = [(new.get(other) or self[other]).stream.timings for other in request.prerequisites]
        return {**new, request: Answer(OutputStream(request, params, self._tokenizer, before), sampler, deadline)}

    def keep(self, answers: Mapping[Request, Answer]) -> None:
        """Take answers in whose requests are queued."""
        self._answers |= answers
        self._totals.requests += len(answers)

    def late(self, now: float) -> list[Request]:
        """Return the requests under way for which nobody waits any more."""
        return [
            request
            for request, answer in self._answers.items()
            if answer.deadline is not None and answer.deadline <= now and request.state is not RequestState.FINISHED
        ]

    def is_awaited(self, request: Request) -> bool:
        """Tell whether a request that has not ended needs this one first."""
        others = (other for other in self._answers if other.state is not RequestState.FINISHED)
        return any(request in other.prerequisites for other in others)

    def sample(self, item: ScheduledWork, logits: "Tensor") -> list[int] | Exception:
        """Sample from an item's own rows; what goes wrong concerns no other."""
        try:
            return sample_rows(logits, [self[item.request].sampler], [item.draft])[0]
        except GrammarError as error:
            return error
        except Exception as error:
            logger.exception("request %d: its next token cannot be chosen", item.request.id)
            return error

    def append(self, request: Request, tokens: Sequence[int]) -> FinishReason | None:
        """Take sampled tokens until the answer ends; return why it does, if so."""
        answer = self[request]
        for i, token in enumerate(tokens):
            if i:  # the token before was in the draft, so its KV is there
                request.held.num_computed_tokens += 1
                self._totals.accepted_tokens += 1
            request.output_tokens.append(token)
            request.held.grow()
            self._totals.output_tokens += 1
            count = len(request.output_tokens)
            ending = FinishReason.LENGTH if count >= request.max_tokens else None
            if i == len(tokens) - 1 and answer.sampler.is_complete:
                ending = FinishReason.STOP
            reason = answer.stream.push(token, ending, tuple(answer.sampler.logprobs[count - 1 : count]))
            if reason is not None:
                return reason
        return None

    def finish(self, request: Request, reason: FinishReason) -> None:
        """Give a request its generation."""
        answer = self[request]
        forced_logprobs = answer.sampler.forced_logprobs if isinstance(answer.sampler, ForcedSampler) else None
        generation = answer.stream.finish(reason, forced_logprobs)
        self._totals.prompt_tokens += generation.num_prompt_tokens
        self._totals.cached_tokens += generation.cache.cached_tokens

    def fail(self, request: Request, error: EngineError) -> None:
        """Give a request an error in the place of its generation."""
        self[request].stream.events.append(error)

    def take(self, request: Request) -> list[Event | EngineError]:
        """Return the events of a request that nobody has taken yet; after the last of them it is forgotten."""
        events = list(self[request].stream.events)
        self[request].stream.events.clear()
        if request.state is RequestState.FINISHED:
            del self._answers[request]
        return events

    def close(self, request: Request) -> None:
        """Note that a request has its last event: one that nobody takes is forgotten."""
        self._totals.finished += 1
        if not self[request].is_read:
            del self._answers[request]
