"""The header `Idempotency-Key`: what was done under it is not done again, but answered again."""

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Header
from pydantic import BaseModel
from starlette.responses import Response

from rag.idempotency import KEPT_HOURS, Claim, IdempotentRequests, Remembered
from rag.server.access import Access
from rag.server.state import ServerState
from retriever.errors import StoreError

__all__ = ["REPLAYED", "IdempotencyKey", "Keep", "once"]

logger = logging.getLogger(__name__)

Keep = Callable[[int, BaseModel, sqlite3.Connection], None]  # of status and body
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
    work: Callable[[Keep], Awaitable[tuple[int, BaseModel]]],
) -> Response:
    """Do some work and answer with its status and body; under a key that was used before, answer as then.

    Args:
        state: where answers are remembered.
        access: who asks: keys are his own.
        key: without one, the work is simply done.
        fingerprint: makes a hash of what is asked for.
        work: what to do. Where it fails the key may be used again. What must not be done twice even after a crash is
            written in one transaction with the answer, for which it is given a function.

    Raises:
        KeyReusedError: the key was used for something else.
        KeyInUseError: the request that has it is still worked on.
    """
    if key is None:
        return _response(await work(lambda *_: None))
    remembered = await asyncio.to_thread(state.idempotent_requests)
    claim = Claim(access.caller.principal, key, await asyncio.to_thread(fingerprint))
    kept: list[Remembered] = []

    def keep(status: int, result: BaseModel, connection: sqlite3.Connection) -> None:
        kept.append(Remembered(status, result.model_dump_json()))
        remembered.keep(claim, kept[-1], connection)

    remembered.begin(claim)
    try:
        done = await asyncio.to_thread(remembered.find, claim)
        if done is not None:
            return Response(done.body, done.status, {REPLAYED: "true"}, media_type="application/json")
        response = _response(await work(keep))
        if not kept:
            await _remember(remembered, claim, Remembered(response.status_code, bytes(response.body).decode()))
    finally:
        remembered.release(claim)
    return response


async def _remember(remembered: IdempotentRequests, claim: Claim, answer: Remembered) -> None:
    """Remember an answer; where the disk does not take it, what was done is told none the less."""
    try:
        await asyncio.shield(asyncio.to_thread(remembered.finish, claim, answer))
    except StoreError as error:
        logger.warning("the answer under an idempotency key is not remembered: %s", error)


def _response(done: tuple[int, BaseModel]) -> Response:
    status, result = done
    return Response(result.model_dump_json(), status, media_type="application/json")
