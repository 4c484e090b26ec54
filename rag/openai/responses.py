"""`/v1/responses`: answers that the server remembers, so that the next question need not repeat what was said."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response as HttpResponse

from rag.dialogue import search_query
from rag.openai.documentation import JSON_BODY, error_responses
from rag.openai.generation import answering
from rag.openai.messages import conversation
from rag.openai.response_events import Event, ResponseDraft, ResponseFrames
from rag.openai.response_requests import ResponseRequest
from rag.openai.response_schemas import Response
from rag.openai.results import Result
from rag.openai.retrieval_options import RetrievalOptions
from rag.openai.stored import ResponseStore, Stored
from rag.openai.targets import PIPELINE, Target, resolve
from rag.schemas import AnswerEvent
from rag.schemas.answers import MAX_TURNS
from rag.server.access import Access, AccessDep
from rag.server.feed import EventFeed, until_gone
from rag.server.problems import ProblemError
from rag.server.sse import EventStream, event_content
from rag.server.state import ReadyState, ServerState, SharedState
from rag.transcripts import Said

__all__ = [
    "DeletedResponse",
    "router",
]

router = APIRouter(prefix="/v1/responses", tags=["openai"])

STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The response; with `stream: true` the events by which it comes about.",
        "content": event_content(),
    }
}


class DeletedResponse(Result):
    """That a response is forgotten."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


@router.post("", response_model=Response, responses=STREAM | error_responses(), dependencies=[JSON_BODY])
async def create_response(
    body: ResponseRequest, request: Request, state: ReadyState, access: AccessDep
) -> HttpResponse | Response:
    """Answer a question, over a collection with the model `rag/<collection>` or with the tool `file_search`.

    Citations are annotations of the text, `index` being the place of the marker; sources, the use of the cache and
    timings are the message's `preread`. A response can be gone on from with `previous_response_id` by the key that
    asked for it, until the server restarts or has answered too many others.
    """
    work = await to_thread.run_sync(_Work.of, body, state, access)
    if not body.stream:
        return await until_gone(request.receive, work.whole())
    feed = EventFeed(work.events())
    return await EventStream.begin(feed, request, ResponseFrames(), scope="read", collection=work.collection)


@router.get("/{response_id}", responses=error_responses())
def get_response(response_id: str, state: SharedState, access: AccessDep) -> Response:
    """Return a response that was asked for with the same key."""
    return _stored(response_id, state.responses, access).response


@router.delete("/{response_id}", responses=error_responses())
def delete_response(response_id: str, state: SharedState, access: AccessDep) -> DeletedResponse:
    """Forget a response that was asked for with the same key."""
    _stored(response_id, state.responses, access)
    state.responses.remove(access.caller.principal, response_id)
    return DeletedResponse(id=response_id)


@dataclass(frozen=True)
class _Work:
    """A response on its way."""

    body: ResponseRequest
    said: tuple[Said, ...]
    draft: ResponseDraft
    answer: AsyncGenerator[AnswerEvent, None]
    store: ResponseStore
    principal: str
    collection: str | None

    @classmethod
    def of(cls, body: ResponseRequest, state: ServerState, access: Access) -> "_Work":
        target, options = _target(body, state, access)
        said = _said(body, state.responses, access)
        first = [("system", body.instructions)] if body.instructions else []
        asked = conversation([*first, *said])
        caller = state.quotas.reserving(access)
        answer = answering(state.service, target, asked, body.sampling, body.max_output_tokens, caller, options)
        draft = ResponseDraft(body, None if target.collection is None else search_query(asked.question, asked.history))
        return cls(body, tuple(said), draft, answer, state.responses, caller.principal, target.collection)

    async def whole(self) -> Response:
        async with aclosing(self.answer) as events:
            async for event in events:
                self.draft.take(event)
        return self._keep()

    async def events(self) -> AsyncGenerator[Event, None]:
        async with aclosing(self.answer) as answer:
            async for event in self.draft.events(answer):
                if event["type"] in ("response.completed", "response.incomplete"):
                    event = {**event, "response": self._keep()}  # noqa: PLW2901 - the last one says whether it is kept
                yield event

    def _keep(self) -> Response:
        """Store the response where that is wanted; return it, with `store` saying whether it is stored."""
        response = self.draft.response
        stored = Stored(response, (*self.said, ("assistant", self.draft.text)))
        if not response.store or self.store.add(self.principal, stored):
            return response
        return response.model_copy(update={"store": False})


def _target(body: ResponseRequest, state: ServerState, access: Access) -> tuple[Target, RetrievalOptions]:
    """Return what answers, and how: the tool names a collection for the bare model."""
    target = resolve(body.model, state.service, access)
    options = body.preread or RetrievalOptions()
    tools = [] if body.tool_choice == "none" else body.tools or []
    for tool in tools:
        (collection,) = tool.vector_store_ids
        if target.collection not in (None, collection):
            raise ProblemError(
                422,
                "invalid-request",
                f"{body.model} looks in {target.collection!r}; leave the tool out, or use the bare model with it",
            )
        target = Target(body.model, resolve(f"{PIPELINE}{collection}", state.service, access).collection)
        given = {"k": tool.max_num_results, "where": tool.filters.where if tool.filters else None}
        options = options.model_copy(update={name: value for name, value in given.items() if value is not None})
    return target, options


def _said(body: ResponseRequest, store: ResponseStore, access: Access) -> list[Said]:
    """Return what was said, without instructions of earlier responses."""
    before: list[Said] = []
    if body.previous_response_id is not None:
        before = list(_stored(body.previous_response_id, store, access).turns)
    if isinstance(body.input, str):
        said = [*before, ("user", body.input)]
    else:
        messages = [item for item in body.input if item.type == "message"]
        said = [*before, *(("system" if m.role == "developer" else m.role, m.text) for m in messages)]
    if len(said) > MAX_TURNS:
        raise ProblemError(
            422, "invalid-request", f"the conversation has {len(said)} messages, above {MAX_TURNS}; begin a new one"
        )
    return said


def _stored(response_id: str, store: ResponseStore, access: Access) -> Stored:
    found = store.get(access.caller.principal, response_id)
    if found is None:
        raise ProblemError(
            404,
            "unknown-response",
            f"there is no response {response_id!r} of yours; it was not stored, or it is among those forgotten since: "
            "send the conversation's messages as input instead",
        )
    return found
