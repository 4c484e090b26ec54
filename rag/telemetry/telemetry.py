"""Everything that is told of answers: to metrics, ledger, log and traces."""

import asyncio
import logging
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from engine.prompt import SegmentKind
from rag.caller import Caller
from rag.ledger import Account, Ledger, Tokens
from rag.telemetry.answering import Answering
from rag.telemetry.http_metrics import HttpMetrics
from rag.telemetry.logs import FIELDS, fields_of
from rag.telemetry.metrics import AnswerMetrics

if TYPE_CHECKING:
    from rag.retrieval_log import RetrievalLog
    from rag.telemetry.served import Served
    from rag.telemetry.spans import Tracing
    from rag.telemetry.state_metrics import StateMetrics

__all__ = ["FLUSH_SECONDS", "Telemetry"]

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0  # what a crash may lose of ledger and retrieval log


class Telemetry:
    """What an operator sees; every method may be called from any thread.

    Args:
        ledger: counts tokens.
        retrievals: notes which passages were read.
        state: of the parts, told when the metrics are asked for.
        tracing: makes spans; None makes none.
        log_questions: whether the text of questions goes to log and spans.

    Attributes:
        registry: of every metric.
        http: counts requests.
    """

    def __init__(
        self,
        ledger: Ledger,
        retrievals: "RetrievalLog",
        state: "StateMetrics",
        *,
        tracing: "Tracing | None" = None,
        log_questions: bool = False,
    ) -> None:
        self.registry = CollectorRegistry()
        self.http = HttpMetrics(self.registry)
        self.tracing = tracing
        self._ledger = ledger
        self._retrievals = retrievals
        self._log_questions = log_questions
        self._answers = AnswerMetrics(self.registry)
        self._state = state
        self.registry.register(state)
        ProcessCollector(registry=self.registry)
        self._ended: SimpleQueue[Served | None] = SimpleQueue()  # those that spans are made of; None ends the thread
        self._thread = Thread(target=self._loop, name="telemetry", daemon=True)
        self._thread.start()

    def answering(
        self, caller: Caller, *, pipeline: str, model: str, collection: str = "", question: str | None = None
    ) -> Answering:
        """Follow an answer until the block ends: `with telemetry.answering(...) as answering`.

        Args:
            caller: who asks.
            pipeline: what answers: `rag`, or another short name of few.
            model: what computes it.
            collection: where its passages are from; empty where none is asked.
            question: its text, which is dropped at once unless questions are logged.
        """
        return Answering(
            self.observe,
            caller,
            pipeline=pipeline,
            model=model,
            collection=collection,
            question=question if self._log_questions else None,
            parent=self.tracing.parent() if self.tracing else None,
        )

    def observe(self, served: "Served") -> None:
        """Tell of an answer that has ended; takes less than a tenth of a millisecond."""
        self._answers.observe(served)
        if served.prompt_tokens:
            account = Account(served.caller.principal, served.collection, served.pipeline, served.model)
            cached = served.cache.cached_tokens
            self._ledger.add(account, Tokens(1, served.prompt_tokens, cached, served.output_tokens))
        if served.retrieval is not None and served.cache.segments:
            segments = (segment for segment in served.cache.segments if segment.kind is SegmentKind.PASSAGE)
            self._retrievals.note(int(served.namespace), [(int(one.name), one.num_tokens) for one in segments])
        if logger.isEnabledFor(logging.INFO):
            logger.info("answered", extra={FIELDS: fields_of(served)})
        if self.tracing:
            self._ended.put(served)

    def count(self, caller: Caller, *, pipeline: str, model: str, collection: str = "", prompt_tokens: int) -> None:
        """Count tokens that no answer came of, such as those of texts that were embedded."""
        self._answers.count_tokens(model, pipeline, collection, prompt_tokens, 0, 0)
        self._ledger.add(Account(caller.principal, collection, pipeline, model), Tokens(1, prompt_tokens))

    async def text(self) -> bytes:
        """Return the metrics as Prometheus reads them, with the engine's figures as of now."""
        await self._state.refresh()
        return await asyncio.to_thread(generate_latest, self.registry)  # some ten milliseconds of formatting

    def close(self) -> None:
        """Write down and send what there is, and stop."""
        self._ended.put(None)
        self._thread.join()
        if self.tracing:
            self.tracing.close()

    def _loop(self) -> None:
        due = monotonic() + FLUSH_SECONDS
        running = True
        while running:
            try:
                served = self._ended.get(timeout=max(due - monotonic(), 0))
            except Empty:
                self._flush()
                due = monotonic() + FLUSH_SECONDS
                continue
            running = served is not None
            if served is not None and self.tracing is not None:
                self._record(self.tracing, served)
        self._flush()

    def _record(self, tracing: "Tracing", served: "Served") -> None:
        try:
            tracing.record(served)
        except Exception:
            logger.exception("the spans of an answer could not be made; please report this")

    def _flush(self) -> None:
        try:
            self._ledger.flush()
            self._retrievals.flush()
        except Exception:
            logger.exception("used tokens could not be written down; it is tried again")
