"""How requests end: complete, cancelled, failed or too late; and what then goes with them."""

from collections.abc import Sequence
from time import perf_counter

from engine.admission_pace import AdmissionPace
from engine.answers import Answers
from engine.errors import DeadlineExceededError, EngineError, GrammarError, StepFailedError
from engine.intake import Intake
from engine.request import FinishReason, Request, RequestState
from engine.scheduler import Scheduler
from engine.stats import Totals

__all__ = ["TOO_LATE", "Endings"]

TOO_LATE = "the answer was not complete before its deadline; allow it more time, or ask again when fewer wait"


class Endings:
    """Ends requests, wherever they are, and frees what they hold.

    Args:
        scheduler: where they wait or run.
        intake: knows what others wait for.
        answers: where the last event goes.
        pace: is told when nothing is left to do.
        totals: where endings are counted.
    """

    def __init__(
        self, scheduler: Scheduler, intake: Intake, answers: Answers, pace: AdmissionPace, totals: Totals
    ) -> None:
        self._scheduler = scheduler
        self._intake = intake
        self._answers = answers
        self._pace = pace
        self._totals = totals

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request with its generation."""
        self._answers.finish(request, reason)
        self._close(request)

    def cancel(self, request: Request) -> None:
        """End a request that nobody wants any more; nothing happens when it has ended already."""
        if request.state is not RequestState.FINISHED:
            self._totals.cancelled += 1
            self.finish(request, FinishReason.CANCELLED)
            self._cancel_unawaited(request.prerequisites)

    def end(self, request: Request, error: EngineError) -> None:
        """End a request with an error in the place of its generation; nothing happens when it has ended already."""
        if request.state is not RequestState.FINISHED:
            is_late = isinstance(error, DeadlineExceededError)
            self._totals.late += is_late
            self._totals.failed += not is_late
            self._answers.fail(request, error)
            self._close(request)
            self._cancel_unawaited(request.prerequisites)

    def end_late(self) -> None:
        """End the requests for which nobody waits any more."""
        for request in self._answers.late(perf_counter()):
            self.end(request, DeadlineExceededError(TOO_LATE))

    def give_up(self, request: Request, error: Exception) -> None:
        """End a request that fails alone in a step."""
        if not isinstance(error, GrammarError):  # which says itself what to do
            error = StepFailedError(f"the engine failed while computing this answer ({error}); ask again")
        self.end(request, error)

    def _cancel_unawaited(self, requests: Sequence[Request]) -> None:
        """Cancel what was to be computed for a request that has ended, unless others wait for it too."""
        for other in requests:
            if other.state is RequestState.WAITING and not self._answers.is_awaited(other):
                self.cancel(other)

    def _close(self, request: Request) -> None:
        """Take a request out that has its last event."""
        self._scheduler.finish(request)
        self._intake.forget(request)
        self._answers.close(request)
        if not self._scheduler.has_work:
            self._pace.rest(perf_counter())
