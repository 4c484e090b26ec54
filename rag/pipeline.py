"""Retrieve, order, lay out, stream: from a question to an answer with its evidence.

One `Pipeline` serves any number of threads and coroutines at once; the engine's thread does the batching.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from engine.errors import OutdatedPromptError
from engine.output import Generation
from engine.prompt import Reuse
from rag.answer import AnswerAssembler, source_of
from rag.answering import answering_of, filled_in
from rag.caller import NOBODY, Caller
from rag.components import Components
from rag.dialogue import Dialogues, said_before, search_query
from rag.errors import NoPassagesError
from rag.living_store import claims_of, namespace_of
from rag.logprobs import LogprobTexts
from rag.overlap import Overlap
from rag.sampling import sampling_params
from rag.schemas import (
    AnswerEvent,
    AnswerRequest,
    DoneEvent,
    RetrievalEvent,
    SearchRequest,
    SearchResult,
    SearchTimings,
    Source,
)
from rag.transcripts import Transcripts
from retriever.ingest import check_embedder
from retriever.search import ignore_candidates

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.config import SamplingParams
    from engine.output import Event
    from engine.prompt import Prompt
    from engine.worker import EngineWorker
    from rag.config import AnswerSettings
    from rag.telemetry.answering import Answering
    from retriever.document import Hit
    from retriever.records import Collection

__all__ = ["Pipeline", "Prepared", "Retrieved", "tied_groups"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Retrieved:
    """Passages by falling score in groups that tie, of a collection as it was, and how many milliseconds that took."""

    groups: "tuple[tuple[Hit, ...], ...]"
    collection: "Collection"
    embed_ms: float
    search_ms: float

    @property
    def hits(self) -> "tuple[Hit, ...]":
        """The passages, best first."""
        return tuple(hit for group in self.groups for hit in group)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A question that is ready for the engine.

    Attributes:
        request: what was asked, with what the collection's settings say where it says nothing.
        started: when the question arrived, in seconds of `time.perf_counter`.
        prompt: template, passages, tail.
        sampling: how the engine chooses tokens.
        namespace: the collection's tree of cached KV.
        as_of: the collection's generation before the search.
        reuse: which cached KV may serve.
        groups: sizes of consecutive passages of the prompt that may change places; empty where none may.
        caller: who asks.
        sources: the passages of the prompt, numbered by rank.
        warnings: what could not be used, and why.
        embed_ms: time spent on the question's vector.
        search_ms: time spent on the search.
    """

    request: AnswerRequest
    started: float
    prompt: "Prompt"
    sampling: "SamplingParams"
    namespace: str
    as_of: int
    reuse: Reuse
    groups: tuple[int, ...]
    caller: Caller
    sources: tuple[Source, ...]
    warnings: tuple[str, ...]
    embed_ms: float
    search_ms: float

    @property
    def how(self) -> dict[str, Any]:
        """Arguments of `Engine.submit` besides prompt and sampling."""
        return {
            "namespace": self.namespace,
            "as_of": self.as_of,
            "reuse": self.reuse,
            "groups": self.groups,
            "principal": self.caller.principal,
            "conversation": self.caller.conversation,
            "deadline": self.caller.deadline,
        }


class Pipeline:
    """Answers questions.

    Args:
        components: embedder, library, layout and engine.
        answer: settings used instead of those of the components' configuration.
    """

    def __init__(self, components: Components, answer: "AnswerSettings | None" = None) -> None:
        self._components = components
        self._dialogues = Dialogues(Transcripts())
        config = components.config
        self._config = config if answer is None else config.model_copy(update={"answer": answer})

    def search(self, request: SearchRequest) -> SearchResult:
        """Find passages; does not need the language model.

        Raises:
            UnknownCollectionError: there is no such collection.
            EmbedderMismatchError: it was made with another embedder.
        """
        self._components.library().collection(request.collection)  # a wrong name is told before the embedder loads
        _ = self._components.embedder().dimension  # loads it; no timing counts that
        started = perf_counter()
        found = self.retrieve(request.query, request.collection, request.k, where=request.where)
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
            prepared = self.prepare(request, caller)
            with suppress(OutdatedPromptError):  # a document was deleted meanwhile: it may be among what was found
                handle = worker.submit_sync(prepared.prompt, prepared.sampling, **prepared.how)
        answering.retrieved(prepared.started, prepared.embed_ms, prepared.search_ms)
        answering.submitted(handle.request)
        assembler = self._assembler(prepared)
        events = worker.stream_sync(handle)
        try:
            yield RetrievalEvent(sources=list(prepared.sources), warnings=list(prepared.warnings))
            for event in events:
                self._observe(prepared, event)
                answering.take(event)
                for out in assembler.take(event):
                    self._note(request, prepared, event, out)
                    yield out
                if assembler.wants_end:
                    answering.stop()
                    worker.cancel(handle)
        finally:
            worker.cancel(handle)

    async def answer_async(self, request: AnswerRequest, caller: Caller = NOBODY) -> AsyncGenerator[AnswerEvent, None]:
        """Do what `answer` does without blocking the event loop; cancelling the task cancels the answer."""
        await asyncio.to_thread(self._components.load)
        with self._components.activity.busy(), self._answering(request, caller) as answering:
            async with aclosing(self._answer_async(request, caller, answering)) as events:
                async for event in events:
                    yield event

    async def _answer_async(
        self, request: AnswerRequest, caller: Caller, answering: "Answering"
    ) -> AsyncGenerator[AnswerEvent, None]:
        worker: EngineWorker = self._components.worker()
        handle = None
        while handle is None:
            prepared = await asyncio.to_thread(self.prepare, request, caller)
            with suppress(OutdatedPromptError):  # a document was deleted meanwhile: it may be among what was found
                handle = await worker.submit(prepared.prompt, prepared.sampling, **prepared.how)
        answering.retrieved(prepared.started, prepared.embed_ms, prepared.search_ms)
        answering.submitted(handle.request)
        assembler = self._assembler(prepared)
        try:
            yield RetrievalEvent(sources=list(prepared.sources), warnings=list(prepared.warnings))
            async for event in worker.stream(handle):
                self._observe(prepared, event)
                answering.take(event)
                for out in assembler.take(event):
                    self._note(request, prepared, event, out)
                    yield out
                if assembler.wants_end:
                    answering.stop()
                    worker.cancel(handle)
        finally:
            worker.cancel(handle)

    def retrieve(
        self,
        query: str,
        collection: str,
        k: int | None,
        overlap: Overlap | None = None,
        where: "Mapping[str, Any] | None" = None,
    ) -> Retrieved:
        """Embed a question and find the k closest passages, near ties in a fixed order; tell `overlap` candidates.

        With `where`, they are the k closest of those whose documents fit that condition.
        """
        library = self._components.library()
        row = library.collection(collection)
        check_embedder(row, self._components.embedder())
        started = perf_counter()
        vector = library.embed_query(query)
        embedded = perf_counter()
        begin = partial(overlap.begin, row) if overlap else ignore_candidates
        k = k or answering_of(row).k or self._config.top_k
        hits = library.search(collection, vector, k, where=where, on_candidates=begin)
        groups = tied_groups(hits, self._config.answer.order_epsilon)
        return Retrieved(groups, row, 1e3 * (embedded - started), _since(embedded))

    def prepare(self, request: AnswerRequest, caller: Caller = NOBODY) -> Prepared:
        """Retrieve passages and lay the prompt out, best passages first while they fit."""
        started = perf_counter()
        request = filled_in(request, self._components.library().collection(request.collection))
        overlap = Overlap(self._components, self._config.answer, self._reuse(request))
        query = search_query(request.question, said_before(request))
        found = self.retrieve(query, request.collection, request.k, overlap, request.where)
        if not found.hits:
            raise _no_passages(request)
        max_tokens = request.max_tokens or self._config.answer.max_tokens
        limit = self._limit(len(found.hits))
        laid_out = self._components.layout_of(found.collection).lay_out(
            request.question,
            [hit.passage for hit in found.hits],
            max_tokens=limit - min(max_tokens, limit // 4),
            history=self._dialogues.history(request, caller, self._components.tokenizer()),
            instructions=request.instructions or "",
        )
        used = {passage.id for passage in laid_out.passages}
        hits = [hit for hit in found.hits if hit.passage.id in used]
        overlap.settle([hit.passage.id for hit in hits])
        self._components.library().popularity.note(used)
        self._expect_kv(found.collection.id, laid_out.prompt)
        warnings = []
        if laid_out.left_out:
            labels = ", ".join(f"{passage.label} ({passage.title})" for passage in laid_out.left_out)
            warnings.append(
                f"{len(laid_out.left_out)} of {len(found.hits)} passages did not fit the {limit} tokens of prompt and "
                f"answer and were left out: {labels}; ask for fewer passages (k) or a shorter answer"
            )
            logger.info(warnings[-1])
        return Prepared(
            request=request,
            started=started,
            prompt=laid_out.prompt,
            sampling=sampling_params(request, min(max_tokens, limit - laid_out.prompt.num_tokens)),
            namespace=namespace_of(found.collection.id),
            as_of=found.collection.generation,
            reuse=overlap.reuse,
            groups=self._movable(request, found, used),
            caller=caller,
            sources=tuple(source_of(n, hit) for n, hit in enumerate(hits, 1)),
            warnings=tuple(warnings),
            embed_ms=found.embed_ms,
            search_ms=found.search_ms,
        )

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

    def _reuse(self, request: AnswerRequest) -> Reuse:
        """Return which cached KV may serve; no more than is exact once answers were found to drift."""
        wanted = Reuse(request.reuse or self._config.answer.reuse)
        shadow = self._components.shadow.if_made
        return shadow.reuse(wanted) if shadow else wanted

    def _observe(self, prepared: Prepared, event: "Event") -> None:
        """Show a finished answer to what may look at it again."""
        shadow = self._components.shadow.if_made
        if shadow and isinstance(event, Generation):
            shadow.observe(prepared.prompt, event, prepared.namespace, prepared.as_of)

    def _note(self, request: AnswerRequest, prepared: Prepared, event: "Event", out: AnswerEvent) -> None:
        """Remember what the model wrote for a finished answer."""
        if isinstance(event, Generation) and isinstance(out, DoneEvent) and out.answer.finish_reason != "cancelled":
            tokenizer = self._components.tokenizer()
            self._dialogues.note(request, prepared.caller, out.answer.answer, event, tokenizer)

    def _expect_kv(self, collection_id: int, prompt: "Prompt") -> None:
        """Tell the KV store whose KV this prompt may give it."""
        if store := self._components.store.if_made:
            head, *passages, _ = prompt.segments
            identity = self._components.worker().engine.identity
            store.expect(claims_of(identity, collection_id, head, passages))

    def _movable(self, request: AnswerRequest, found: Retrieved, used: set[int]) -> tuple[int, ...]:
        """Return the sizes of groups of passages that may change places; empty where each is alone in its group."""
        if (request.order or self._config.answer.order) == "cache":
            return (len(used),)
        sizes = [sum(hit.passage.id in used for hit in group) for group in found.groups]
        return tuple(size for size in sizes if size) if max(sizes) > 1 else ()

    def _limit(self, num_passages: int) -> int:
        """How many tokens a prompt with so many passages and its answer may have, by context and by blocks."""
        engine = self._components.worker().engine
        segments = num_passages + 2  # each begins a block of its own
        blocks = engine.cache.pool.num_blocks - segments
        return min(engine.max_model_len, blocks * engine.config.block_size)

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


def _no_passages(request: AnswerRequest) -> NoPassagesError:
    if request.where:
        return NoPassagesError(
            f"no document of collection {request.collection!r} fits the condition {request.where}; "
            "look at its documents' metadata, and ask with another `where`"
        )
    return NoPassagesError(
        f"collection {request.collection!r} has no passages to answer from; "
        f"add documents with `rag ingest PATH --collection {request.collection}`"
    )


def tied_groups(hits: "Sequence[Hit]", epsilon: float) -> "tuple[tuple[Hit, ...], ...]":
    """Group hits, best first: those within `epsilon` of the first of their group tie, and are put by passage id."""
    groups: list[list[Hit]] = []
    for hit in hits:
        if not groups or groups[-1][0].score - hit.score > epsilon:
            groups.append([])
        groups[-1].append(hit)
    return tuple(tuple(sorted(group, key=lambda item: item.passage.id)) for group in groups)


def _since(moment: float) -> float:
    return 1e3 * (perf_counter() - moment)
