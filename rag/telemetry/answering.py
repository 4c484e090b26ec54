"""Follows one answer from its question to its end, whichever end it is, and tells of it once."""

import asyncio
import logging
from collections.abc import Callable
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from engine.output import Event, Generation
from engine.request import FinishReason
from engine.stats import CacheReport, cache_report
from rag.caller import Caller
from rag.telemetry.served import Ending, Retrieval, Served, Stages

if TYPE_CHECKING:
    from engine.request import Request

__all__ = ["Answering"]

logger = logging.getLogger(__name__)

LEAVING = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt)


class Answering:
    """A context manager around the work on one answer.

    Args:
        tell: is given the answer at its end.
        caller: who asks.
        pipeline: what answers: `rag`, or another short name.
        model: what computes it.
        collection: where its passages are from; empty where none is asked.
        question: its text, only where it may be logged.
        parent: of its spans, only where they are recorded.
    """

    def __init__(
        self,
        tell: Callable[[Served], None],
        caller: Caller,
        *,
        pipeline: str,
        model: str,
        collection: str = "",
        question: str | None = None,
        parent: Any = None,
    ) -> None:
        self._tell = tell
        self._caller = caller
        self._pipeline = pipeline
        self._model = model
        self._collection = collection
        self._question = question
        self._parent = parent
        self._started = perf_counter()
        self._retrieval: Retrieval | None = None
        self._request: Request | None = None
        self._generation: Generation | None = None
        self._output_tokens = 0
        self._stopped = False

    def retrieved(self, started: float, embed_ms: float, search_ms: float) -> None:
        """Take note of when embedding began, in seconds of `time.perf_counter`, and how long it and search took."""
        self._retrieval = Retrieval(started, embed_ms / 1e3, search_ms / 1e3)

    def submitted(self, request: "Request") -> None:
        """Take note of the engine's request."""
        self._request = request

    def take(self, event: Event) -> None:
        """Take note of an event of the engine."""
        if isinstance(event, Generation):
            self._generation = event
        else:
            self._output_tokens += len(event.token_ids)

    def stop(self) -> None:
        """Take note that the answer is complete, though the engine would go on: its end is no abort."""
        self._stopped = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._tell(self._served(error))
        except Exception:
            logger.exception("an answer could not be counted; please report this")  # it is given all the same

    def _served(self, error: BaseException | None) -> Served:
        generation, request = self._generation, self._request
        stages: Stages | None = None
        cache, prompt_tokens, output_tokens = CacheReport(), 0, self._output_tokens
        if generation is not None:
            cache = generation.cache
            stages = Stages.of(generation.timings, cache.load_seconds)
            prompt_tokens = generation.num_prompt_tokens if cache.segments else 0
            output_tokens = len(generation.token_ids)
        elif request is not None and request.first_admission:  # begun: it has cost what it has cost
            cache, prompt_tokens = cache_report(request), request.prompt.num_tokens
        ending = self._ending(error)
        return Served(
            caller=self._caller,
            pipeline=self._pipeline,
            model=self._model,
            collection=self._collection,
            started=self._started,
            ended=perf_counter(),
            ending=ending,
            error=type(error).__name__ if ending == "error" else "",
            retrieval=self._retrieval,
            stages=stages,
            cache=cache,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            namespace=request.namespace if request is not None else "",
            question=self._question,
            parent=self._parent,
        )

    def _ending(self, error: BaseException | None) -> Ending:
        generation = self._generation
        if generation is None:
            return "error" if error is not None and not isinstance(error, LEAVING) else "abort"
        if self._stopped or generation.finish_reason is FinishReason.STOP:
            return "stop"
        return "length" if generation.finish_reason is FinishReason.LENGTH else "abort"
