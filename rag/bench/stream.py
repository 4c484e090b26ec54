"""Asks the questions of a stream in every mode, one after the other, through the pipeline and the engine.

Exactly what `rag ask` does up to the engine's tokens, except that each mode has a cache namespace of its own.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from blake3 import blake3

from engine.output import Generation
from engine.prompt import SegmentKind
from engine.stats import SegmentReport
from rag.bench.report import MODES, AskedQuestion, Mode, Record
from rag.schemas import AnswerRequest
from rag.service import Service

if TYPE_CHECKING:
    from data.questions import Question
    from rag.preparation import Prepared
    from retriever.document import Hit

__all__ = ["QuestionStream", "cache_of", "gold_rank"]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the run an answer is measured; see `Record`."""

    mode: Mode
    repeat: int
    index: int
    question: int
    turn: int


def cache_of(mode: Mode, repeat: int, index: int) -> str:
    """Name the cache namespace of a mode: one an answer, one a pass over the stream, one for the whole run."""
    parts = {Mode.OFF: f"{repeat}/{index}", Mode.COLD: f"{repeat}", Mode.WARM: ""}
    return f"bench/{mode}/{parts[mode]}"


def gold_rank(question: "Question", hits: "Sequence[Hit]") -> int | None:
    """Return the rank, from 1, of the first passage that answers the question, or None where none does."""
    answers = (n for n, hit in enumerate(hits, 1) if question.is_answered_by(hit.passage.uri, hit.passage.text))
    return next(answers, None)


class QuestionStream:
    """A stream of questions over one collection.

    Args:
        service: with the collection; nobody else uses its engine.
        collection: its name.
        questions: in the order of the stream, with repetitions.
        k: passages a question.
        max_tokens: length of an answer at most.
        seed: of the order of the modes.
    """

    def __init__(
        self,
        service: Service,
        collection: str,
        questions: "Sequence[Question]",
        *,
        k: int,
        max_tokens: int,
        seed: int,
    ) -> None:
        self.distinct = tuple(dict.fromkeys(questions))
        numbers = {question: number for number, question in enumerate(self.distinct)}
        self._order = [numbers[question] for question in questions]
        self._pipeline = service.pipeline
        self._worker = service.components.worker()
        self._collection = collection
        self._k = k
        self._max_tokens = max_tokens
        self._random = random.Random(seed)

    def __len__(self) -> int:
        return len(self._order)

    def retrieve(self) -> Iterator[AskedQuestion]:
        """Find the passages of each distinct question once."""
        for question in self.distinct:
            hits = self._pipeline.preparation.retrieve(question.text, self._collection, self._k).hits
            yield AskedQuestion(
                text=question.text,
                gold_uris=sorted({gold.uri for gold in question.golds}),
                gold_rank=gold_rank(question, hits),
                passage_ids=[str(hit.passage.id) for hit in hits],
                scores=[hit.score for hit in hits],
            )

    def fill(self) -> Iterator[None]:
        """Let the warm cache see the whole stream, unmeasured; yields after each distinct question."""
        for number in range(len(self.distinct)):
            self._answer(number, cache_of(Mode.WARM, 0, 0), max_tokens=1)
            yield

    def measure(self, repeat: int, advance: Callable[[], None]) -> Iterator[list[Record]]:
        """Ask each question of the stream in every mode, in an order drawn anew; yield one record a mode.

        Args:
            repeat: which pass over the stream; each has a cold cache of its own.
            advance: called after every answer.
        """
        for index, number in enumerate(self._order):
            records = []
            for turn, mode in enumerate(self._random.sample(MODES, len(MODES))):
                place = _Place(mode, repeat, index, number, turn)
                records.append(_record(place, *self._answer(number, cache_of(mode, repeat, index))))
                if mode is Mode.OFF:
                    self._drop(mode, repeat, index)
                advance()
            yield records
        self._drop(Mode.COLD, repeat, 0)

    def _answer(self, number: int, namespace: str, *, max_tokens: int | None = None) -> "tuple[Prepared, Generation]":
        """Answer a question; a `max_tokens` of its own cuts the answer and leaves the prompt as it is."""
        request = AnswerRequest(
            question=self.distinct[number].text,
            collection=self._collection,
            k=self._k,
            max_tokens=self._max_tokens,
        )
        prepared = self._pipeline.preparation.prepare(request)
        sampling = replace(prepared.sampling, max_tokens=max_tokens or prepared.sampling.max_tokens)
        handle = self._worker.submit_sync(prepared.prompt, sampling, namespace=namespace)
        *_, generation = self._worker.stream_sync(handle)
        assert isinstance(generation, Generation), f"an answer ended with {generation}"
        return prepared, generation

    def _drop(self, mode: Mode, repeat: int, index: int) -> None:
        namespace = cache_of(mode, repeat, index)
        self._worker.call(lambda engine: engine.cache.drop_namespace(namespace)).result()


def _record(place: _Place, prepared: "Prepared", generation: Generation) -> Record:
    times, segments = generation.timings, generation.cache.segments
    assert times.first_scheduled is not None, "a finished answer was scheduled"
    assert times.first_token is not None, "an answer has at least one token"
    assert times.finished is not None, "a generation is finished"
    passages = [segment for segment in segments if segment.kind is SegmentKind.PASSAGE]
    tokens = " ".join(map(str, prepared.prompt.tokens))
    return Record(
        mode=place.mode,
        repeat=place.repeat,
        index=place.index,
        question=place.question,
        turn=place.turn,
        ttft_ms=1e3 * (times.first_token - prepared.started),
        embed_ms=prepared.embed_ms,
        search_ms=prepared.search_ms,
        queue_ms=1e3 * (times.first_scheduled - times.arrival),
        prefill_ms=1e3 * (times.first_token - times.first_scheduled),
        total_ms=1e3 * (times.finished - prepared.started),
        prompt=blake3(tokens.encode()).hexdigest()[:16],
        prompt_tokens=generation.num_prompt_tokens,
        passage_tokens=sum(passage.num_tokens for passage in passages),
        cached_tokens=generation.cache.cached_tokens,
        passage_hit_tokens=sum(passage.hit_tokens for passage in passages),
        hit_tokens=_by_outcome(segments, lambda segment: segment.hit_tokens),
        passage_outcomes=_by_outcome(passages, lambda _: 1),
        answer_tokens=list(generation.token_ids),
        finish_reason=generation.finish_reason.value,
    )


def _by_outcome(segments: Sequence[SegmentReport], amount: Callable[[SegmentReport], int]) -> dict[str, int]:
    """Add up an amount by outcome; outcomes without any are left out."""
    sums: dict[str, int] = {}
    for segment in segments:
        if n := amount(segment):
            sums[segment.outcome.value] = sums.get(segment.outcome.value, 0) + n
    return sums
