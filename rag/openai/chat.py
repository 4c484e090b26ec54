"""`/v1/chat/completions`: conversations with a collection or with the language model itself."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial

from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from rag.openai.chat_schemas import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatDelta,
    ChatMessage,
    ChatRequest,
    ChunkChoice,
    annotations_of,
)
from rag.openai.documentation import JSON_BODY, error_responses, event_stream
from rag.openai.generation import Collected, answering, collect, interleave
from rag.openai.messages import conversation
from rag.openai.results import Logprob, Logprobs, Usage, finish_reason, new_id, now
from rag.openai.streams import DataFrames
from rag.openai.targets import resolve
from rag.schemas import AnswerEvent, DeltaEvent, DoneEvent, LogprobsEvent, TokenLogprob
from rag.server.access import AccessDep
from rag.server.feed import EventFeed, until_gone
from rag.server.sse import EventStream
from rag.server.state import ReadyState

__all__ = [
    "router",
]

router = APIRouter(prefix="/v1", tags=["openai"], dependencies=[JSON_BODY])

Answers = Sequence[AsyncGenerator[AnswerEvent, None]]


@router.post("/chat/completions", response_model=ChatCompletion, responses=event_stream(ChatChunk) | error_responses())
async def chat_completions(
    body: ChatRequest, request: Request, state: ReadyState, access: AccessDep
) -> Response | ChatCompletion:
    """Go on with a conversation: over a collection with the model `rag/<collection>`, else with the bare model.

    Answers from a collection have their citations as annotations, and sources, citations, the use of the cache and
    timings as `preread`, in the message, or in the delta with which a streamed answer ends. Passages are looked for by
    the last message, or with the user's message before where it has three words or fewer.
    """
    asked = conversation([("system" if m.role == "developer" else m.role, m.text) for m in body.messages])
    target = await to_thread.run_sync(resolve, body.model, state.service, access)
    state.quotas.take_more(access, body.num_answers - 1)
    caller = state.quotas.reserving(access, body.num_answers)
    answers = [
        answering(
            state.service,
            target,
            asked,
            body.sampling(index, logprobs=body.num_logprobs, response_format=body.response_format),
            body.most_tokens,
            caller,
            body.preread,
        )
        for index in range(body.num_answers)
    ]
    if not body.stream:
        return _completion(body, await until_gone(request.receive, collect(answers)))
    feed = EventFeed(_chunks(body, answers))
    return await EventStream.begin(feed, request, DataFrames(), scope="read", collection=target.collection)


def _completion(body: ChatRequest, collected: Sequence[Collected]) -> ChatCompletion:
    choices = [
        ChatChoice(
            index=index,
            message=ChatMessage(content=one.whole.answer, annotations=annotations_of(one.whole), preread=one.evidence),
            logprobs=_logprobs(one.logprobs) if body.logprobs else None,
            finish_reason=finish_reason(one.whole),
        )
        for index, one in enumerate(collected)
    ]
    usage = Usage.of([one.whole for one in collected])
    return ChatCompletion(id=new_id("chatcmpl-"), created=now(), model=body.model, choices=choices, usage=usage)


async def _chunks(body: ChatRequest, answers: Answers) -> AsyncGenerator[ChatChunk, None]:
    """Yield the events of a stream."""
    chunk = partial(ChatChunk, id=new_id("chatcmpl-"), created=now(), model=body.model)
    collected = [Collected() for _ in answers]
    begun = set[int]()
    async with aclosing(interleave(answers)) as events:
        async for index, event in events:
            collected[index].take(event)
            if index not in begun:
                begun.add(index)
                first = ChunkChoice(index=index, delta=ChatDelta(role="assistant", content=""))
                yield chunk(choices=[first])
            choice = _news(index, event, collected[index])
            if choice is not None:
                yield chunk(choices=[choice])
    if body.includes_usage:
        yield chunk(choices=[], usage=Usage.of([one.whole for one in collected]))


def _news(index: int, event: AnswerEvent, so_far: Collected) -> ChunkChoice | None:
    if isinstance(event, DeltaEvent):
        return ChunkChoice(index=index, delta=ChatDelta(content=event.text))
    if isinstance(event, LogprobsEvent):
        return ChunkChoice(index=index, delta=ChatDelta(content=""), logprobs=_logprobs(event.logprobs))
    if isinstance(event, DoneEvent):
        delta = ChatDelta(annotations=annotations_of(event.answer) or None, preread=so_far.evidence)
        return ChunkChoice(index=index, delta=delta, finish_reason=finish_reason(event.answer))
    return None


def _logprobs(items: Sequence[TokenLogprob]) -> Logprobs:
    return Logprobs(content=[Logprob.of(item) for item in items])
