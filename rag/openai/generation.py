"""Answers as they are made, one or several at once, whether a collection's pipeline makes them or the bare model."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pydantic import ValidationError

from rag.caller import CHAT, Caller
from rag.openai.messages import Conversation
from rag.openai.results import Evidence
from rag.openai.retrieval_options import RetrievalOptions
from rag.openai.targets import Target
from rag.schemas import (
    Answer,
    AnswerEvent,
    AnswerRequest,
    DeltaEvent,
    DoneEvent,
    LogprobsEvent,
    RetrievalEvent,
    Sampling,
    TokenLogprob,
    Turn,
)
from rag.server.problems import refused
from rag.service import Service

__all__ = ["Collected", "answering", "collect", "interleave"]

T = TypeVar("T")


def answering(
    service: Service,
    target: Target,
    asked: Conversation,
    sampling: Sampling,
    max_tokens: int | None,
    caller: Caller,
    options: RetrievalOptions | None = None,
) -> AsyncGenerator[AnswerEvent, None]:
    """Answer a conversation's question.

    Raises:
        RequestValidationError: it is nothing that a collection can be asked.
    """
    if target.collection is None:
        return service.bare_model.chat(asked.turns, sampling, max_tokens, caller)
    try:
        request = AnswerRequest(
            question=asked.question,
            history=[Turn.model_validate({"role": role, "content": text}) for role, text in asked.history],
            instructions=asked.instructions or None,
            collection=target.collection,
            max_tokens=max_tokens,
            **dict(sampling),
            **dict(options or ()),
        )
    except ValidationError as error:
        raise refused(error) from error
    return service.answer_async(request, replace(caller, conversation=CHAT))


async def interleave(sources: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Yield the items of several generators as they come, each with its generator's index.

    The first error ends all of them, and so does closing this one.
    """
    queue: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue()

    async def drain(index: int, source: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(source) as items:
                async for item in items:
                    queue.put_nowait((index, item))
            queue.put_nowait(None)
        except Exception as error:  # noqa: BLE001 - it belongs to the reader
            queue.put_nowait(error)

    tasks = [asyncio.create_task(drain(index, source)) for index, source in enumerate(sources)]
    running = len(tasks)
    try:
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class Collected:
    """What has come of one answer.

    Attributes:
        text: what can be read so far.
        logprobs: of the tokens so far.
        warnings: what could not be used, and why.
        answer: the whole, at the end.
    """

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    answer: Answer | None = None

    def take(self, event: AnswerEvent) -> None:
        """Take an event of the answer."""
        if isinstance(event, RetrievalEvent):
            self.warnings = event.warnings
        elif isinstance(event, DeltaEvent):
            self.text += event.text
        elif isinstance(event, LogprobsEvent):
            self.logprobs += event.logprobs
        elif isinstance(event, DoneEvent):
            self.answer = event.answer

    @property
    def whole(self) -> Answer:
        """The answer, which has ended."""
        assert self.answer is not None, "an answer ends with a done event or raises"
        return self.answer

    @property
    def evidence(self) -> Evidence | None:
        """What the answer rests on; None of one without sources."""
        answer = self.whole
        if not answer.sources:
            return None
        return Evidence(
            sources=answer.sources,
            citations=answer.citations,
            warnings=self.warnings,
            cache=answer.cache,
            timings_ms=answer.timings_ms,
        )


async def collect(sources: Sequence[AsyncGenerator[AnswerEvent, None]]) -> list[Collected]:
    """Wait for the ends of several answers; an error ends all of them."""
    collected = [Collected() for _ in sources]
    async with aclosing(interleave(sources)) as events:
        async for index, event in events:
            collected[index].take(event)
    return collected
