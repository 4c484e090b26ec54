"""A request on its way through one engine: what was heard of it, and the record that this makes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rag.bench.suite.contestant import Event
from rag.bench.suite.records import AnswerRecord
from rag.bench.suite.requests import BenchRequest, prompt_digest

__all__ = ["OVERRUN", "Asked"]

OVERRUN = "more tokens came than were asked for"


@dataclass(slots=True)
class Asked:
    """A request and the news of it; times are those of the clock that the engines share.

    Attributes:
        request: what was asked.
        arrival: when it was due.
        sent: when it was handed over; None where that failed.
        first: when its first token came.
        finished: when its last token came.
        count: tokens that came.
        tokens: their ids, where the engine tells them.
        ended: whether nothing more is to come.
        error: why it has no answer.
    """

    request: BenchRequest
    arrival: float
    sent: float | None = None
    started: float | None = None
    first: float | None = None
    finished: float | None = None
    count: int = 0
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    error: str = ""
    cached: Mapping[str, int] | None = None
    outcomes: Mapping[str, int] = field(default_factory=dict)
    repair: int | None = None
    certified: bool | None = None

    def hear(self, event: Event) -> None:
        """Take in what an engine tells of it."""
        if self.ended:
            return  # its end was told, or it was given up
        if self.started is None:
            self.started = event.started
        if event.count:
            self.first = event.at if self.first is None else self.first
            self.finished = event.at
            self.count += event.count
            self.tokens += event.tokens
        if event.done or event.error:
            self._end(event)

    def give_up(self, error: str) -> None:
        """Let it end without an answer, if it has not ended."""
        if not self.ended:
            self.ended, self.error = True, error

    @property
    def overrun(self) -> bool:
        """Whether it has more tokens than were asked for."""
        return self.count > self.request.output_tokens

    @property
    def ok(self) -> bool:
        """Whether its times count."""
        return self.ended and not self.error and self.count == self.request.output_tokens

    @property
    def ttft(self) -> float:
        """Seconds from its arrival to its first token; infinite where its times do not count."""
        return self.first - self.arrival if self.ok and self.first is not None else float("inf")

    def record(self, unit: str, contestant: str, began: float, *, warmup: bool) -> AnswerRecord:
        """Make the record of it, with times since the unit began."""
        ids = self.tokens if len(self.tokens) == self.count else []
        return AnswerRecord(
            unit=unit,
            contestant=contestant,
            request=self.request.number,
            warmup=warmup,
            status=self._status,
            error=self._problem,
            arrival=self.arrival - began,
            sent=(self.arrival if self.sent is None else self.sent) - began,
            started=_since(self.started, began),
            first=_since(self.first, began),
            finished=_since(self.finished, began),
            prompt=prompt_digest(self.request.prompt.tokens),
            prompt_tokens=self.request.prompt.num_tokens,
            wanted=self.request.output_tokens,
            count=self.count,
            tokens=tuple(ids),
            cached=None if self.cached is None else dict(self.cached),
            outcomes=dict(self.outcomes),
            repair=self.repair,
            certified=self.certified,
        )

    def _end(self, event: Event) -> None:
        self.ended, self.error = True, event.error
        self.cached, self.outcomes = event.cached, event.outcomes
        self.repair, self.certified = event.repair, event.certified

    @property
    def _status(self) -> Literal["ok", "short", "failed"]:
        if self.ok:
            return "ok"
        return "short" if not self.error and 0 < self.count < self.request.output_tokens else "failed"

    @property
    def _problem(self) -> str:
        if self.error or self.ok:
            return self.error
        if not self.count:
            return "no token came"
        return f"{self.count} tokens came, {self.request.output_tokens} were asked for"


def _since(moment: float | None, began: float) -> float | None:
    return None if moment is None else moment - began
