"""Events that are made in a task of their own, so that their reader may wait, ping, or leave at any moment."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, Generic, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

__all__ = ["EventFeed", "SilenceError", "until_gone"]

T = TypeVar("T")


class SilenceError(Exception):
    """Report that nothing came in the time given; the next event is still to come."""


class EventFeed(Generic[T]):
    """Runs an answer, or other work that tells of itself, to its end, or until it is closed.

    Args:
        events: the work; closed by the task that runs it.
    """

    def __init__(self, events: AsyncGenerator[T, None]) -> None:
        self._queue: asyncio.Queue[T | Exception | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._run(events))

    async def next(self, patience: float | None = None) -> T | None:
        """Return the next event, None after the last one; what ended the work early is raised.

        Raises:
            SilenceError: there was none for `patience` seconds.
        """
        try:
            async with asyncio.timeout(patience):
                item = await self._queue.get()
        except TimeoutError:
            raise SilenceError from None
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        """Cancel what has not ended."""
        self._task.cancel()

    async def _run(self, events: AsyncGenerator[T, None]) -> None:
        end: Exception | None = None
        try:
            async with aclosing(events):
                async for event in events:
                    self._queue.put_nowait(event)
        except Exception as error:  # noqa: BLE001 - it belongs to the reader
            end = error
        self._queue.put_nowait(end)


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do some work for a request and cancel it when the client goes away.

    Raises:
        ClientDisconnect: it has gone.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
