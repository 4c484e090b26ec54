"""Retrieve, order, lay out, stream: from a question to an answer with its evidence.

One `Pipeline` serves any number of threads and coroutines at once; the engine's thread does the batching.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import ExitStack, aclosing, suppress
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

from engine.errors import DeadlineExceededError, OutdatedPromptError
from engine.output import Generation
from rag.answer import AnswerAssembler, source_of
from rag.caller import NOBODY, Caller
from rag.components import Components
from rag.dialogue import Dialogues
from rag.logprobs import LogprobTexts
from rag.preparation import Preparation, Prepared
from rag.schemas import (
    Answer,
    AnswerEvent,
    AnswerRequest,
    DoneEvent,
    RetrievalEvent,
    SearchRequest,
    SearchResult,
    SearchTimings,
)
from rag.transcripts import Transcripts

if TYPE_CHECKING:
    from concurrent.futures import Future

    from engine.output import Event
    from engine.request import Request
    from engine.worker import EngineWorker
    from rag.config import AnswerSettings
    from rag.telemetry.answering import Answering

__all__ = ["Pipeline"]


class Pipeline:
    """Answers questions.

    Args:
        components: embedder, library, layout and engine.
        answer: settings used instead of those of the components' configuration.

    Attributes:
        preparation: makes prompts of questions.
    """

    def __init__(self, components: Components, answer: "AnswerSettings | None" = None) -> None:
        self._components = components
        self._dialogues = Dialogues(Transcripts())
        config = components.config
        self._config = config if answer is None else config.model_copy(update={"answer": answer})
        self.preparation = Preparation(components, self._config, self._dialogues)

    def search(self, request: SearchRequest) -> SearchResult:
        """Find passages; does not need the language model.

        Raises:
            UnknownCollectionError: there is no such collection.
            EmbedderMismatchError: it was made with another embedder.
        """
        self._components.library().collection(request.collection)  # a wrong name is told before the embedder loads
        _ = self._components.embedder().dimension  # loads it; no timing counts that
        started = perf_counter()
        found = self.preparation.retrieve(request.query, request.collection, request.k, where=request.where)
        timings = SearchTimings(embed=found.embed_ms, search=found.search_ms, total=_since(started))
        return SearchResult(
            query=request.query,
            collection=request.collection,
            results=[source_of(n, hit) for n, hit in enumerate(found.hits, 1)],
            timings_ms=timings,
        )

    def answer(self, request: AnswerRequest, caller: Caller = NOBODY) -> Generator[AnswerEvent, None, None]:
        """Answer a question: retrieval, then deltas and citations, then done. Leaving early cancels it.

        Raises:
            UnknownCollectionError: there is no such collection.
            NoPassagesError: the collection is empty.
            QuestionTooLongError: the question leaves no room for a passage.
            EngineError: the engine is full or has stopped.
        """
        self._components.load()
        with self._components.activity.busy(), self._answering(request, caller) as answering:
            yield from self._answer(request, caller, answering)

    def _answer(
        self, request: AnswerRequest, caller: Caller, answering: "Answering"
    ) -> Generator[AnswerEvent, None, None]:
        worker = self._components.worker()
        handle = None
        while handle is None:
            prepared = self.preparation.prepare(request, caller)
            with (
                suppress(OutdatedPromptError),
                prepared.overlap,
            ):  # a document was deleted meanwhile: it may be among what was found
                handle = worker.submit_sync(prepared.prompt, prepared.sampling, **prepared.how)
        run = self._run(prepared, answering, handle.request)
        try:
            yield run.first
            for event in worker.stream_sync(handle):
                yield from run.take(event)
                if run.wants_end:
                    worker.cancel(handle)
        finally:
            worker.cancel(handle)

    async def answer_async(self, request: AnswerRequest, caller: Caller = NOBODY) -> AsyncGenerator[AnswerEvent, None]:
        """Do what `answer` does without blocking the event loop; cancelling the task cancels the answer."""
        if not self._components.is_loaded:
            await asyncio.to_thread(self._components.load)
        activity = self._components.activity
        with ExitStack() as reserved, activity.busy(), self._answering(request, caller) as answering:
            async with aclosing(self._answer_async(request, caller, answering, reserved)) as events:
                async for event in events:
                    yield event

    async def _answer_async(
        self, request: AnswerRequest, caller: Caller, answering: "Answering", reserved: ExitStack
    ) -> AsyncGenerator[AnswerEvent, None]:
        worker: EngineWorker = self._components.worker()
        handle = None
        while handle is None:
            prepare = partial(self.preparation.prepare, request, caller)
            prepared = await self._prepared(self._components.threads.submit(caller.principal, prepare), caller)
            with (
                suppress(OutdatedPromptError),
                prepared.overlap,
            ):  # a document was deleted meanwhile: it may be among what was found
                reserved.close()  # of what could not be submitted
                reserved.enter_context(caller.reserve(prepared.most_tokens))
                handle = await worker.submit(prepared.prompt, prepared.sampling, **prepared.how)
        run = self._run(prepared, answering, handle.request)
        try:
            yield run.first
            async for event in worker.stream(handle):
                for out in run.take(event):
                    yield out
                if run.wants_end:
                    worker.cancel(handle)
        finally:
            worker.cancel(handle)

    async def _prepared(self, preparing: "Future[Prepared]", caller: Caller) -> Prepared:
        """Wait for a question's preparation; who leaves meanwhile leaves nothing behind that was begun for him.

        Raises:
            DeadlineExceededError: it was not ready before the caller's deadline.
        """
        left = None if caller.deadline is None else caller.deadline - perf_counter()
        limit = asyncio.timeout(left)
        try:
            async with limit:
                return await asyncio.wrap_future(preparing)
        except (asyncio.CancelledError, TimeoutError) as end:
            preparing.add_done_callback(_drop_begun)
            if limit.expired() and isinstance(end, TimeoutError):
                raise DeadlineExceededError(
                    "the passages were not found before the deadline; allow more time, or ask again when fewer wait"
                ) from None
            raise

    def _answering(self, request: AnswerRequest, caller: Caller) -> "Answering":
        """Follow an answer to its end, for who watches the server."""
        telemetry = self._components.telemetry()
        return telemetry.answering(
            caller,
            pipeline="rag",
            model=self._config.model,
            collection=request.collection,
            question=request.question,
        )

    def _run(self, prepared: Prepared, answering: "Answering", submitted: "Request") -> "_Run":
        answering.retrieved(prepared.started, prepared.embed_ms, prepared.search_ms)
        answering.submitted(submitted)
        return _Run(prepared, self._assembler(prepared), answering, self._ended)

    def _ended(self, prepared: Prepared, generation: Generation, answer: Answer) -> None:
        """Show a finished answer to what may look at it again, and remember what the model wrote."""
        if shadow := self._components.shadow.if_made:
            shadow.observe(prepared.prompt, generation, prepared.namespace, prepared.as_of)
        if answer.finish_reason != "cancelled":
            tokenizer = self._components.tokenizer()
            self._dialogues.note(prepared.request, prepared.caller, answer.answer, generation, tokenizer)

    def _assembler(self, prepared: Prepared) -> AnswerAssembler:
        request, settings, changed = prepared.request, self._config.answer, {}
        if request.extractive is not None:
            changed["extractive"] = request.extractive
        if request.is_structured:  # neither a quotation after it nor an early end would leave it JSON
            changed = {"extractive": False, "stop_repetition": False}
        return AnswerAssembler(
            request.question,
            prepared.sources,
            self._config.model,
            started=prepared.started,
            retrieval_ms=(prepared.embed_ms, prepared.search_ms),
            settings=settings.model_copy(update=changed),
            logprob_texts=LogprobTexts(self._components.tokenizer()),
        )


class _Run:
    """An answer under way.

    Args:
        prepared: the question.
        assembler: turns the engine's events into those of the answer.
        answering: follows it for who watches the server.
        ended: is shown the whole answer.
    """

    def __init__(
        self,
        prepared: Prepared,
        assembler: AnswerAssembler,
        answering: "Answering",
        ended: Callable[[Prepared, Generation, Answer], None],
    ) -> None:
        self._prepared = prepared
        self._assembler = assembler
        self._answering = answering
        self._ended = ended

    @property
    def first(self) -> RetrievalEvent:
        """The first event: what was found."""
        return RetrievalEvent(sources=list(self._prepared.sources), warnings=list(self._prepared.warnings))

    @property
    def wants_end(self) -> bool:
        """Whether the answer is complete, though the engine would go on."""
        return self._assembler.wants_end

    def take(self, event: "Event") -> Iterator[AnswerEvent]:
        """Take an event of the engine and yield what the reader gets."""
        self._answering.take(event)
        for out in self._assembler.take(event):
            if isinstance(event, Generation) and isinstance(out, DoneEvent):
                self._ended(self._prepared, event, out.answer)
            yield out
        if self.wants_end:
            self._answering.stop()


def _drop_begun(preparing: "Future[Prepared]") -> None:
    """Drop what was begun for a question that is ready when nobody waits for it any more."""
    if not preparing.cancelled() and preparing.exception() is None:
        preparing.result().overlap.drop()


def _since(moment: float) -> float:
    return 1e3 * (perf_counter() - moment)
