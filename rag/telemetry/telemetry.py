"""Everything that is told of answers: to the metrics, to the ledger."""

import logging
from threading import Event, Thread
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest

from rag.caller import Caller
from rag.ledger import Account, Ledger, Tokens
from rag.telemetry.answering import Answering
from rag.telemetry.metrics import AnswerMetrics

if TYPE_CHECKING:
    from rag.telemetry.served import Served

__all__ = ["FLUSH_SECONDS", "Telemetry"]

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0  # what a crash may lose of the ledger


class Telemetry:
    """What an operator sees; every method may be called from any thread.

    Args:
        ledger: counts tokens.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.registry = CollectorRegistry()
        self._answers = AnswerMetrics(self.registry)
        self._stopping = Event()
        self._thread = Thread(target=self._loop, name="telemetry", daemon=True)
        self._thread.start()

    def answering(self, caller: Caller, *, pipeline: str, model: str, collection: str = "") -> Answering:
        """Follow an answer until the block ends: `with telemetry.answering(...) as answering`."""
        return Answering(self.observe, caller, pipeline=pipeline, model=model, collection=collection)

    def observe(self, served: "Served") -> None:
        """Tell of an answer that has ended; takes some hundredths of a millisecond."""
        self._answers.observe(served)
        if served.prompt_tokens:
            tokens = Tokens(1, served.prompt_tokens, served.cache.cached_tokens, served.output_tokens)
            self.ledger.add(Account(served.caller.principal, served.collection, served.pipeline, served.model), tokens)

    def count(self, caller: Caller, *, pipeline: str, model: str, collection: str = "", prompt_tokens: int) -> None:
        """Count tokens that no answer came of, such as those of texts that were embedded."""
        self._answers.count_tokens(model, pipeline, collection, prompt_tokens, 0, 0)
        self.ledger.add(Account(caller.principal, collection, pipeline, model), Tokens(1, prompt_tokens))

    def text(self) -> bytes:
        """Return the metrics as Prometheus reads them."""
        return generate_latest(self.registry)

    def close(self) -> None:
        """Write down what was counted, and stop."""
        self._stopping.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stopping.wait(FLUSH_SECONDS):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        try:
            self.ledger.flush()
        except Exception:
            logger.exception("used tokens could not be written down; it is tried again")
