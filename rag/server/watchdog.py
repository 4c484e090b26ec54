"""Tells of an engine that hangs, with what every thread is doing."""

import asyncio
import logging
import sys
import threading
import traceback

from rag.server.state import ServerState

__all__ = ["watch"]

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0


async def watch(state: ServerState, *, poll_seconds: float = POLL_SECONDS) -> None:
    """Look after the engine until cancelled; each time that it hangs is logged once."""
    hangs = False
    while True:
        await asyncio.sleep(poll_seconds)
        if state.is_stalled and not hangs:
            logger.critical(
                "the engine has been at one step for more than %g s: GET /livez answers 503 until it goes on; restart "
                "the server if it does not. What runs:\n%s",
                state.settings.stall_seconds,
                _stacks(),
            )
        if hangs and not state.is_stalled:
            logger.warning("the engine goes on")
        hangs = state.is_stalled


def _stacks() -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():  # noqa: SLF001 - the documented way to other threads' stacks
        parts.append(f"thread {names.get(ident, ident)}:\n" + "".join(traceback.format_stack(frame)))
    return "\n".join(parts)
