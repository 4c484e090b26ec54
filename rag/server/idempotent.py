"""The header `Idempotency-Key`: what was done under it is not done again, but answered again."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Header
from pydantic import BaseModel
from starlette.responses import Response

from rag.idempotency import KEPT_HOURS, Remembered
from rag.server.access import Access
from rag.server.state import ServerState

__all__ = ["REPLAYED", "IdempotencyKey", "once"]

REPLAYED = "Idempotency-Replayed"

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="Chosen by the client for what is to be done once: a request that is sent again with it gets the "
        f"first one's answer, for {KEPT_HOURS} hours.",
    ),
]


async def once(
    state: ServerState,
    access: Access,
    key: str | None,
    fingerprint: Callable[[], bytes],
    work: Callable[[], Awaitable[tuple[int, BaseModel]]],
) -> Response:
    """Do some work and answer with its status and body; under a key that was used before, answer as then.

    Args:
        state: where answers are remembered.
        access: who asks: keys are his own.
        key: without one, the work is simply done.
        fingerprint: makes a hash of what is asked for.
        work: what to do. Where it fails the key may be used again.

    Raises:
        KeyReusedError: the key was used for something else.
        KeyInUseError: the request that has it is still worked on.
    """
    if key is None:
        return _response(await work())
    remembered, owner = await asyncio.to_thread(state.idempotent_requests), access.caller.principal
    wanted = await asyncio.to_thread(fingerprint)
    done = await asyncio.to_thread(remembered.begin, owner, key, wanted)
    if done is not None:
        return Response(done.body, done.status, {REPLAYED: "true"}, media_type="application/json")
    try:
        status, result = await work()
        body = result.model_dump_json()
        await asyncio.shield(asyncio.to_thread(remembered.finish, owner, key, Remembered(status, body)))
    except BaseException:
        await asyncio.shield(asyncio.to_thread(remembered.forget, owner, key))
        raise
    return Response(body, status, media_type="application/json")


def _response(done: tuple[int, BaseModel]) -> Response:
    status, result = done
    return Response(result.model_dump_json(), status, media_type="application/json")
