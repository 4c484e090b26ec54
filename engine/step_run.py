"""The middle verb of a step: its work computed, what follows sampled, and what it took told to who plans the next."""

from collections.abc import Sequence
from time import perf_counter

from engine.admission_pace import AdmissionPace
from engine.answers import Answers
from engine.batch import build_batch
from engine.config import EngineConfig
from engine.model_runner import ModelRunner
from engine.scheduler import ScheduledWork
from engine.stats import Totals
from engine.step_budget import StepBudget

__all__ = ["StepRun"]


class StepRun:
    """Computes the work of steps.

    Args:
        config: block size and device.
        answers: whose tokens are sampled.
        budget: learns how long steps take.
        pace: learns how soon requests that wait begin.
        totals: where drafts are counted.
    """

    def __init__(
        self,
        config: EngineConfig,
        answers: Answers,
        budget: StepBudget,
        pace: AdmissionPace,
        totals: Totals,
    ) -> None:
        self._config = config
        self._answers = answers
        self._budget = budget
        self._pace = pace
        self._totals = totals

    def __call__(self, runner: ModelRunner, work: Sequence[ScheduledWork]) -> list[list[int] | Exception]:
        """Compute the step's tokens with a model and sample what follows.

        Returns:
            For each item its tokens, none where its end is not reached; or why they cannot be sampled.
        """
        started = perf_counter()
        batch = build_batch(work, self._config.block_size, self._config.device)
        self._note_begun(work, started)
        logits = runner.run(batch)
        tokens, row = list[list[int] | Exception](), 0
        for item in work:
            rows = (1 + len(item.draft)) * item.samples
            tokens.append(self._answers.sample(item, logits[row : row + rows]) if item.samples else [])
            row += rows
        self._record(work, perf_counter() - started)
        return tokens

    def _note_begun(self, work: Sequence[ScheduledWork], now: float) -> None:
        """Note for the requests that are in a step for the first time that they are."""
        for item in work:
            timings = self._answers[item.request].stream.timings
            if timings.first_scheduled is None:
                timings.first_scheduled = now
                self._pace.note(now)

    def _record(self, work: Sequence[ScheduledWork], seconds: float) -> None:
        """Tell the budget what a step without drafts took."""
        draft_rows = sum(len(item.draft) for item in work)
        self._totals.drafted_tokens += draft_rows
        if not draft_rows:
            decode_rows = sum(item.decodes for item in work)
            prefill_tokens = sum(item.num_tokens for item in work) - decode_rows
            self._budget.record(decode_rows, prefill_tokens, seconds)
