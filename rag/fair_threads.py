"""Threads in which questions are prepared, for one principal after the other: a flood of one does not hold up another.

They are nobody else's, so that a question waits neither for uploads nor for what reads ahead.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, TypeVar

from engine.errors import ShareFullError

__all__ = ["FairThreads"]

T = TypeVar("T")


class FairThreads:
    """Runs functions in a few threads: in order for each principal, and each principal in its turn.

    Args:
        threads: how many functions run at once.
        most_waiting: so many of one principal's may wait; None is any number.
    """

    def __init__(self, threads: int, most_waiting: int | None = None) -> None:
        self._most_waiting = most_waiting
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="question")
        self._waiting: dict[str, deque[tuple[Future[Any], Callable[[], Any]]]] = {}  # whose turn is next comes first
        self._lock = Lock()

    def submit(self, principal: str, function: Callable[[], T]) -> "Future[T]":
        """Run a function for a principal; one that is cancelled before its turn does not run.

        Raises:
            ShareFullError: as many of the principal's wait as may.
        """
        future: Future[T] = Future()
        with self._lock:
            waiting = len(self._waiting.get(principal, ()))
            if self._most_waiting is not None and waiting >= self._most_waiting:
                raise ShareFullError(
                    f"{waiting} questions of yours are waiting already; try again when some have ended"
                )
            self._waiting.setdefault(principal, deque()).append((future, function))
        self._threads.submit(self._run_next)
        return future

    def close(self) -> None:
        """Return when everything has run."""
        self._threads.shutdown()

    def _run_next(self) -> None:
        with self._lock:
            principal = next(iter(self._waiting))
            queue = self._waiting.pop(principal)
            future, function = queue.popleft()
            if queue:
                self._waiting[principal] = queue  # behind all others
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
            future.set_exception(error)
