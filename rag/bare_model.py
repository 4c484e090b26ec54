"""The language model without documents: conversations and plain prompts, each principal's apart from all others'.

A prompt is one TEXT segment in a namespace of its principal's, where prompts and answers are shared between that
principal's own requests: the next turn of a conversation begins with all of the one before.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from time import perf_counter
from typing import TYPE_CHECKING

from engine.errors import PromptTooLongError
from engine.output import Event, Generation
from engine.prompt import Prompt
from rag.answer import AnswerAssembler
from rag.caller import CHAT, Caller
from rag.chat_format import ChatFormat
from rag.components import Components
from rag.dialogue import written_tokens
from rag.errors import InvalidRequestError
from rag.logprobs import LogprobTexts
from rag.sampling import sampling_params
from rag.schemas import AnswerEvent, DeltaEvent, DoneEvent, LogprobsEvent, Sampling
from rag.transcripts import Said, Transcripts

if TYPE_CHECKING:
    from engine.worker import EngineWorker

__all__ = ["DEFAULT_MAX_TOKENS", "BareModel", "PlainAssembler"]

DEFAULT_MAX_TOKENS = 1024
NAMESPACE = "prompts/"  # collections' are numbers
MAX_TOKEN_CHARACTERS = 32  # on average; no text that is said has half as many


class PlainAssembler(AnswerAssembler):
    """Assembles what the model writes as it is: nothing is cited, quoted or cut off."""

    def take(self, event: Event) -> Iterator[AnswerEvent]:
        """Take an event of the engine and yield what the reader gets."""
        if isinstance(event, Generation):
            yield DoneEvent(answer=self._answer(event))
            return
        if event.logprobs:
            yield LogprobsEvent(logprobs=self._logprob_texts.of(event.logprobs))
        if event.text:
            self._text.append(event.text)
            yield DeltaEvent(text=event.text)


class BareModel:
    """Answers without retrieval.

    Args:
        components: tokenizer and engine.
    """

    def __init__(self, components: Components) -> None:
        self._components = components
        self._transcripts = Transcripts()

    async def chat(
        self, turns: Sequence[Said], sampling: Sampling, max_tokens: int | None, caller: Caller
    ) -> AsyncGenerator[AnswerEvent, None]:
        """Answer the last of these turns; cancelling the task cancels the answer.

        Raises:
            PromptError: the model has no chat format, or it refuses such turns.
            PromptTooLongError: the conversation does not fit the model's context.
        """
        await asyncio.to_thread(self._components.load)
        tokenizer, whose = self._components.tokenizer(), (caller.principal,)
        tokens = await asyncio.to_thread(self._encode, whose, turns)
        async with aclosing(self._run("chat", tokens, sampling, max_tokens, caller)) as events:
            async for event, generation in events:
                if generation is not None and isinstance(event, DoneEvent):
                    written = written_tokens(generation, tokenizer)
                    if written:
                        self._transcripts.note(whose, [*turns, ("assistant", event.answer.answer)], written)
                yield event

    def _encode(self, whose: Sequence[str], turns: Sequence[Said]) -> list[int]:
        """Turn a conversation into a prompt, which takes seconds for a text that is far too long: that is refused."""
        tokenizer, context = self._components.tokenizer(), self._components.worker().engine.max_model_len
        characters = sum(len(text) for _, text in turns)
        if characters > context * MAX_TOKEN_CHARACTERS:
            raise PromptTooLongError(
                f"the conversation has {characters} characters, and the model reads {context} tokens; leave out its "
                "oldest messages, or use a model with a longer context"
            )
        return ChatFormat(tokenizer).encode(self._transcripts.spoken(whose, turns, tokenizer))

    async def complete(
        self, tokens: Sequence[int], sampling: Sampling, max_tokens: int | None, caller: Caller
    ) -> AsyncGenerator[AnswerEvent, None]:
        """Go on after a prompt; cancelling the task cancels it.

        Raises:
            InvalidRequestError: the prompt is empty.
            ConfigError: a token that the model does not have.
            PromptTooLongError: the prompt does not fit the model's context.
        """
        await asyncio.to_thread(self._components.load)
        async with aclosing(self._run("completion", tokens, sampling, max_tokens, caller)) as events:
            async for event, _ in events:
                yield event

    async def _run(
        self, pipeline: str, tokens: Sequence[int], sampling: Sampling, max_tokens: int | None, caller: Caller
    ) -> AsyncGenerator[tuple[AnswerEvent, Generation | None], None]:
        """Yield what readers get, each with the engine's generation where it comes from that."""
        if not tokens:
            raise InvalidRequestError("the prompt has no tokens; send some text")
        components = self._components
        worker: EngineWorker = components.worker()
        if max_tokens is None:
            room = worker.engine.cache.pool.num_blocks * worker.engine.config.block_size - len(tokens)
            max_tokens = max(min(DEFAULT_MAX_TOKENS, room), 1)
        params = sampling_params(sampling, max_tokens)
        assembler = PlainAssembler(
            "",
            (),
            components.config.model,
            started=perf_counter(),
            retrieval_ms=(0.0, 0.0),
            settings=components.config.answer,
            logprob_texts=LogprobTexts(components.tokenizer()),
        )
        followed = components.telemetry().answering(caller, pipeline=pipeline, model=components.config.model)
        with caller.reserve(len(tokens) + max_tokens), components.activity.busy(), followed as answering:
            handle = await worker.submit(
                Prompt.from_tokens(tokens),
                params,
                namespace=f"{NAMESPACE}{caller.principal}",
                principal=caller.principal,
                conversation=CHAT,
                deadline=caller.deadline,
            )
            answering.submitted(handle.request)
            try:
                async for event in worker.stream(handle):
                    answering.take(event)
                    for out in assembler.take(event):
                        yield out, event if isinstance(event, Generation) else None
            finally:
                worker.cancel(handle)
