"""An engine whose answers are dictated, while every next-token distribution is kept.

All else is the engine's own: scheduling, cache, the model that its runner chooses for each step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.batch import Batch
from engine.config import SamplingParams
from engine.engine import Engine
from engine.model_runner import ModelRunner
from engine.output import Generation
from engine.prompt import Prompt, SegmentKind

__all__ = ["Dictated", "Teacher"]

NAMESPACE = "bench-fidelity"


@dataclass(frozen=True, slots=True)
class Dictated:
    """An answer and what the model thought of it.

    Attributes:
        tokens: of the answer.
        logits: [tokens, vocab] float32, before each of them.
        lean_rows: how many of those rows 8-bit weights computed.
    """

    tokens: tuple[int, ...]
    logits: Tensor
    lean_rows: int


class _Recorder(ModelRunner):
    """A runner that keeps the logits of one request, and puts a dictated token in front where there is one."""

    def __init__(self, runner: ModelRunner) -> None:
        vars(self).update(vars(runner))  # the same runner in all else
        self.logits: list[Tensor] = []
        self.lean_steps = 0
        self.dictated: Sequence[int] = ()

    def run(self, batch: Batch) -> Tensor:
        """Run the batch; of its logits nothing is changed before they are kept."""
        logits = super().run(batch)
        if len(logits):
            assert len(logits) == 1, f"{len(logits)} rows of logits from one request without drafts"
            self.logits.append(logits[0].to("cpu", torch.float32, copy=True))
            self.lean_steps += self._choose(batch) is not self.model
            if self.dictated:
                logits = torch.full_like(logits, -torch.inf)
                logits[0, self.dictated[len(self.logits) - 1]] = 0
        return logits


class Teacher:
    """Answers prompts one at a time over cached passages, as a warm question is answered.

    Args:
        engine: nobody else uses it; it must not guess tokens ahead.
    """

    def __init__(self, engine: Engine) -> None:
        assert engine.config.max_draft_tokens == 0, "drafts give several rows of logits a step"
        self.engine = engine
        self._recorder = _Recorder(engine.runner)
        engine.runner = self._recorder

    def answer(self, prompt: Prompt, *, max_tokens: int) -> Dictated:
        """Let the model answer greedily until it ends the answer."""
        return self._run(prompt, (), SamplingParams(max_tokens=max_tokens))

    def dictate(self, prompt: Prompt, tokens: Sequence[int]) -> Dictated:
        """Make the model give this answer, one decode step a token."""
        return self._run(prompt, tokens, SamplingParams(max_tokens=len(tokens), ignore_eos=True))

    def _run(self, prompt: Prompt, dictated: Sequence[int], sampling: SamplingParams) -> Dictated:
        shared = [segment for segment in prompt.segments if segment.kind is not SegmentKind.TAIL]
        if shared:
            self.engine.generate([Prompt(shared)], SamplingParams(max_tokens=0), namespace=NAMESPACE)
        recorder = self._recorder
        recorder.logits, recorder.lean_steps, recorder.dictated = [], 0, dictated
        *_, generation = self.engine.stream(self.engine.submit(prompt, sampling, namespace=NAMESPACE))
        assert isinstance(generation, Generation), f"an answer ended with {generation}"
        assert len(recorder.logits) == len(generation.token_ids), "a token without its logits"
        assert not dictated or generation.token_ids == tuple(dictated), "the answer is not the dictated one"
        self.engine.cache.drop_namespace(NAMESPACE)
        return Dictated(generation.token_ids, torch.stack(recorder.logits), recorder.lean_steps)
