"""Search, and answers: as one JSON document, or as server-sent events."""

from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from rag.schemas import Answer, AnswerEvent, AnswerRequest, DoneEvent, SearchRequest, SearchResult
from rag.server.access import AccessDep
from rag.server.feed import EventFeed, until_gone
from rag.server.problems import ProblemError, problem_responses
from rag.server.sse import EventStream, NamedFrames, event_content
from rag.server.state import ReadyState

__all__ = ["require_json", "router"]

STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream: true` events: retrieval, delta, citation, usage, done; or error.",
        "content": event_content("AnswerEvent"),
    }
}


async def require_json(request: Request) -> None:
    """Refuse a body that does not say that it is JSON."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ProblemError(
            415,
            "unsupported-media-type",
            f"the body's Content-Type is {media_type!r}; send application/json",
            headers={"Accept-Post": "application/json"},
        )


router = APIRouter(prefix="/v1", tags=["answers"], dependencies=[Depends(require_json)])


@router.post("/search", responses=problem_responses(400, 404, 409, 415))
def search(body: SearchRequest, state: ReadyState, access: AccessDep) -> SearchResult:
    """Find the passages closest to a query."""
    access.require("read", body.collection)
    return state.service.search(body)


@router.post("/answer", response_model=Answer, responses=STREAM | problem_responses(400, 404, 409, 415, 429, 504))
async def answer(body: AnswerRequest, request: Request, state: ReadyState, access: AccessDep) -> Response | Answer:
    """Answer a question from a collection, with its sources.

    With `stream: true` the answer is sent as it is written. Each event's data is JSON whose `type` is the event's name;
    the data of `error`, which ends a stream that fails, is a problem document. An error before the first event is a
    response with its own status. Whoever closes the connection cancels the answer.
    """
    access.require("read", body.collection)
    feed = EventFeed(state.service.answer_async(body, state.quotas.reserving(access)))
    if body.stream:
        return await EventStream.begin(feed, request, NamedFrames(), scope="read", collection=body.collection)
    try:
        return await until_gone(request.receive, _last(feed))
    except BaseException:
        feed.close()
        raise


async def _last(feed: EventFeed[AnswerEvent]) -> Answer:
    while (event := await feed.next()) is not None:
        if isinstance(event, DoneEvent):
            return event.answer
    raise AssertionError("an answer ends with a done event or raises")
