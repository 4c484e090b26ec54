"""`/v1/completions`: the language model goes on after a prompt."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from rag.bare_model import DEFAULT_MAX_TOKENS
from rag.openai.completions_schemas import Completion, CompletionChoice, CompletionLogprobs, CompletionRequest
from rag.openai.documentation import JSON_BODY, error_responses, event_stream
from rag.openai.generation import Collected, collect, interleave
from rag.openai.results import Usage, finish_reason, new_id, now
from rag.openai.streams import DataFrames
from rag.openai.targets import resolve
from rag.schemas import Answer, AnswerEvent, DeltaEvent, DoneEvent, LogprobsEvent, TokenLogprob
from rag.server.access import Access, AccessDep
from rag.server.feed import EventFeed, until_gone
from rag.server.problems import ProblemError
from rag.server.sse import EventStream
from rag.server.state import ReadyState
from rag.service import Service

__all__ = [
    "router",
]

router = APIRouter(prefix="/v1", tags=["openai"], dependencies=[JSON_BODY])


@router.post("/completions", response_model=Completion, responses=event_stream(Completion) | error_responses())
async def completions(
    body: CompletionRequest, request: Request, state: ReadyState, access: AccessDep
) -> Response | Completion:
    """Go on after one or several prompts with the bare model; nothing is looked for in collections."""
    target = await to_thread.run_sync(resolve, body.model, state.service, access)
    if target.collection is not None:
        raise ProblemError(
            422,
            "invalid-request",
            f"{body.model} answers questions; send it messages at /v1/chat/completions, or use the bare model here",
        )
    if body.echo and body.logprobs is not None:
        raise ProblemError(422, "invalid-request", "echo has no logprobs of the prompt; leave one of the two out")
    state.quotas.take_more(access, len(body.prompts) * body.num_answers - 1)
    work = await to_thread.run_sync(_Work.of, body, state.service, access)
    reserved = state.quotas.reserved(access, work.most_tokens)
    if not body.stream:
        with reserved:
            return work.whole(await until_gone(request.receive, collect(work.answers)))
    feed = EventFeed(work.chunks(reserved))
    return await EventStream.begin(feed, request, DataFrames(), scope="read", collection=None)


@dataclass(frozen=True)
class _Work:
    """Completions that are asked for, prompt by prompt, `n` of each."""

    body: CompletionRequest
    answers: Sequence[AsyncGenerator[AnswerEvent, None]]
    echoes: Sequence[str]  # what each begins with
    most_tokens: int  # of all prompts and answers
    offsets: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, body: CompletionRequest, service: Service, access: Access) -> "_Work":
        tokenizer = service.components.tokenizer()
        answers, echoes, most_tokens = [], [], 0
        for prompt in body.prompts:
            tokens = tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else prompt
            text = prompt if isinstance(prompt, str) else tokenizer.decode(tokens, skip_special_tokens=False)
            for index in range(body.num_answers):
                sampling = body.sampling(index, logprobs=body.logprobs, response_format=None)
                answers.append(service.bare_model.complete(tokens, sampling, body.most_tokens, access.caller))
                echoes.append(text if body.echo else "")
                most_tokens += len(tokens) + (DEFAULT_MAX_TOKENS if body.most_tokens is None else body.most_tokens)
        return cls(body, answers, echoes, most_tokens)

    def whole(self, collected: Sequence[Collected]) -> Completion:
        choices = [
            CompletionChoice(
                index=index,
                text=echo + one.whole.answer,
                logprobs=None if self.body.logprobs is None else self._logprobs(index, one.logprobs),
                finish_reason=finish_reason(one.whole),
            )
            for index, (one, echo) in enumerate(zip(collected, self.echoes, strict=True))
        ]
        usage = self._usage([one.whole for one in collected])
        return Completion(id=new_id("cmpl-"), created=now(), model=self.body.model, choices=choices, usage=usage)

    async def chunks(self, reserved: AbstractContextManager[None]) -> AsyncGenerator[Completion, None]:
        """Yield what comes, while the tokens for it are reserved."""
        with reserved:
            async with aclosing(self._chunks()) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def _chunks(self) -> AsyncGenerator[Completion, None]:
        chunk = partial(Completion, id=new_id("cmpl-"), created=now(), model=self.body.model)
        ended: dict[int, Answer] = {}
        for index, echo in enumerate(self.echoes):
            if echo:
                yield chunk(choices=[CompletionChoice(index=index, text=echo)])
        async with aclosing(interleave(self.answers)) as events:
            async for index, event in events:
                if isinstance(event, DoneEvent):
                    ended[index] = event.answer
                if (choice := self._news(index, event)) is not None:
                    yield chunk(choices=[choice])
        if self.body.includes_usage:
            yield chunk(choices=[], usage=self._usage([ended[index] for index in range(len(self.answers))]))

    def _news(self, index: int, event: AnswerEvent) -> CompletionChoice | None:
        if isinstance(event, DeltaEvent):
            return CompletionChoice(index=index, text=event.text)
        if isinstance(event, LogprobsEvent):
            return CompletionChoice(index=index, text="", logprobs=self._logprobs(index, event.logprobs))
        if isinstance(event, DoneEvent):
            return CompletionChoice(index=index, text="", finish_reason=finish_reason(event.answer))
        return None

    def _logprobs(self, index: int, items: Sequence[TokenLogprob]) -> CompletionLogprobs:
        offsets, end = [], self.offsets.get(index, 0)
        for item in items:
            offsets.append(end)
            end += len(item.token)
        self.offsets[index] = end
        return CompletionLogprobs(
            tokens=[item.token for item in items],
            token_logprobs=[item.logprob for item in items],
            top_logprobs=[{other.token: other.logprob for other in item.top} for item in items],
            text_offset=offsets,
        )

    def _usage(self, answers: list[Answer]) -> Usage:
        """Add up what the completions took; each prompt counts once."""
        of_prompts = iter(answers)
        return Usage.total(
            Usage.of(list(islice(of_prompts, self.body.num_answers))) for _ in range(len(self.body.prompts))
        )
