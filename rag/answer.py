"""Turns the engine's events into those of an answer: text, citations, and the answer with its evidence."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from engine.output import Event, Generation
from engine.request import FinishReason
from rag.cache_use import cache_use
from rag.citations import CitationFilter
from rag.extractive import best_sentence
from rag.repetition import RepetitionGuard
from rag.schemas import (
    Answer,
    AnswerEvent,
    Citation,
    CitationEvent,
    DeltaEvent,
    DoneEvent,
    LogprobsEvent,
    Source,
    Timings,
    Usage,
    UsageEvent,
)

if TYPE_CHECKING:
    from rag.config import AnswerSettings
    from rag.logprobs import LogprobTexts
    from retriever.document import Hit

__all__ = ["QUOTE_INTRODUCTION", "AnswerAssembler", "source_of"]

QUOTE_INTRODUCTION = "From the sources: "


def source_of(n: int, hit: "Hit") -> Source:
    """Number a passage that was found."""
    passage = hit.passage
    return Source(
        n=n,
        label=passage.label,
        document_id=passage.document_id,
        title=passage.title,
        uri=passage.uri,
        passage_id=passage.id,
        page=passage.page,
        start=passage.start,
        end=passage.end,
        score=hit.score,
        text=passage.text,
    )


class AnswerAssembler:
    """Assembles one answer.

    Args:
        question: for the quoted sentence.
        sources: the passages of the prompt, numbered.
        model: its name.
        started: when the question arrived, in seconds of `time.perf_counter`.
        retrieval_ms: time spent on embedding and on searching.
        settings: what to do with repetition and missing citations.
        logprob_texts: looks up what tokens say.
    """

    def __init__(
        self,
        question: str,
        sources: Sequence[Source],
        model: str,
        *,
        started: float,
        retrieval_ms: tuple[float, float],
        settings: "AnswerSettings",
        logprob_texts: "LogprobTexts",
    ) -> None:
        self._question = question
        self._sources = sources
        self._model = model
        self._started = started
        self._retrieval_ms = retrieval_ms
        self._settings = settings
        self._logprob_texts = logprob_texts
        self._guard = RepetitionGuard() if settings.stop_repetition else None
        self._filter = CitationFilter({source.label: source.n for source in sources})
        self._text: list[str] = []
        self._citations: list[Citation] = []
        self._begun = False
        self._space = ""
        self.wants_end = False

    def take(self, event: Event) -> Iterator[AnswerEvent]:
        """Take an event of the engine and yield what the reader gets; once `wants_end`, text is ignored."""
        if isinstance(event, Generation):
            yield from self._finish(event)
            return
        if self.wants_end:
            return
        if event.logprobs:
            yield LogprobsEvent(logprobs=self._logprob_texts.of(event.logprobs))
        text = event.text
        if self._guard:
            text, self.wants_end = self._guard.push(text)
        yield from self._push(text)

    def _finish(self, generation: Generation) -> Iterator[AnswerEvent]:
        if self._guard and not self.wants_end:
            yield from self._push(self._guard.flush())
        yield from self._show(*self._filter.flush())
        cancelled = generation.finish_reason is FinishReason.CANCELLED and not self.wants_end
        if self._settings.extractive and not self._citations and not cancelled:
            yield from self._quote()
        answer = self._answer(generation)
        yield UsageEvent(usage=answer.usage)
        yield DoneEvent(answer=answer)

    def _push(self, text: str) -> Iterator[AnswerEvent]:
        """Show text, but hold white space back until more follows: an answer does not end with it."""
        text = self._space + text if self._begun else text.lstrip()
        kept = text.rstrip()
        self._begun = self._begun or bool(kept)
        self._space = text[len(kept) :]
        yield from self._show(*self._filter.push(kept))

    def _quote(self) -> Iterator[AnswerEvent]:
        """Append the best sentence of the sources, marked as a quotation; only its source where it was said already."""
        answer = "".join(self._text)
        found = best_sentence(self._question, [source.text for source in self._sources], answer)
        if found is None:
            return
        index, sentence = found
        if " ".join(sentence.lower().split()) in " ".join(answer.lower().split()):
            introduction = " "
        else:
            separator = "\n\n" if answer else ""
            introduction = f"{separator}{QUOTE_INTRODUCTION}“{sentence}” "
        text, citation = self._filter.quote(introduction, self._sources[index].n)
        yield from self._show(text, [citation])

    def _show(self, text: str, citations: Sequence[Citation]) -> Iterator[AnswerEvent]:
        if text:
            self._text.append(text)
            yield DeltaEvent(text=text)
        for citation in citations:
            self._citations.append(citation)
            yield CitationEvent(citation=citation)

    def _answer(self, generation: Generation) -> Answer:
        cache = generation.cache
        usage = Usage(
            prompt_tokens=generation.num_prompt_tokens,
            completion_tokens=len(generation.token_ids),
            cached_tokens=cache.cached_tokens,
        )
        return Answer(
            answer="".join(self._text),
            citations=self._citations,
            sources=list(self._sources),
            usage=usage,
            cache=cache_use(cache, self._sources),
            timings_ms=self._timings(generation),
            model=self._model,
            finish_reason="stop" if self.wants_end else generation.finish_reason.value,
        )

    def _timings(self, generation: Generation) -> Timings:
        times = generation.timings
        finished = times.finished or times.arrival
        first_token = times.first_token or finished
        scheduled = times.first_scheduled or finished
        load = generation.cache.load_seconds
        queue = max(scheduled - times.arrival - load, 0.0)  # a passage may be loaded later, while others are computed
        embed_ms, search_ms = self._retrieval_ms
        return Timings(
            embed=embed_ms,
            search=search_ms,
            queue=1e3 * queue,
            load=1e3 * load,
            prefill=1e3 * (first_token - times.arrival - queue - load),
            ttft=1e3 * (first_token - self._started),
            total=1e3 * (finished - self._started),
        )
