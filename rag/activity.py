"""Whether anybody waits for something: work that nobody waits for stands back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from time import monotonic

__all__ = ["Activity"]


class Activity:
    """Counts what somebody waits for; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._running = 0
        self._last = monotonic()
        self._on_busy: Callable[[], None] = lambda: None

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Somebody waits until the block ends."""
        with self._lock:
            self._running += 1
            interrupt = self._on_busy
        interrupt()
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                self._last = monotonic()

    @property
    def idle_seconds(self) -> float:
        """For how long nobody has waited; 0 while somebody does."""
        with self._lock:
            return 0.0 if self._running else monotonic() - self._last

    @contextmanager
    def interrupting(self, on_busy: Callable[[], None]) -> Iterator[bool]:
        """Call a function, in the thread of whoever comes, as soon as somebody waits before the block ends.

        Yields whether nobody waits now; the function is not called for those who do already.
        """
        with self._lock:
            self._on_busy = on_busy
            idle = not self._running
        try:
            yield idle
        finally:
            with self._lock:
                self._on_busy = lambda: None
