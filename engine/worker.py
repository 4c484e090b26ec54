"""One thread that owns an engine; everyone else sends it commands.

A request whose reader has gone away is cancelled, and its blocks are freed before the next step.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Event as ThreadEvent
from threading import Lock, Thread
from time import perf_counter
from typing import Any, TypeVar

from engine.config import SamplingParams
from engine.engine import Engine, PromptLike
from engine.errors import EngineError, EngineStoppedError, StepFailedError
from engine.output import Event, Generation
from engine.request import Request, RequestState

__all__ = ["EngineWorker", "Handle"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
IDLE_SECONDS = 1.0
MOST_FAILURES = 3  # steps one after the other in which nothing succeeds


@dataclass(eq=False, slots=True)
class Handle:
    """A submitted request as its reader sees it."""

    request: Request
    deliver: Callable[[Event | Exception], None]
    queue: "SimpleQueue[Event | Exception] | asyncio.Queue[Event | Exception]"


class EngineWorker:
    """Runs an engine's steps in a thread of its own.

    Args:
        engine: used by this worker's thread alone from `start` on.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._handles: dict[Request, Handle] = {}
        self._stopping = ThreadEvent()
        self._busy_since: float | None = None  # on a step or a command; None while it waits for one
        self._failures = 0
        self._lock = Lock()  # no command is accepted after `_stopping` is set
        self._thread = Thread(target=self._loop, name="engine", daemon=True)

    def start(self) -> "EngineWorker":
        """Start the thread."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Cancel what runs, stop the thread and close the engine; readers get `EngineStoppedError`."""
        with self._lock:
            self._stopping.set()
        self._commands.put(lambda: None)
        if self._thread.is_alive():
            self._thread.join()
        self.engine.close()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs and takes requests."""
        return self._thread.is_alive() and not self._stopping.is_set()

    @property
    def is_well(self) -> bool:
        """Whether steps succeed: not when all of the last ones have failed; then it tries one a second itself."""
        return self._failures < MOST_FAILURES

    @property
    def busy_seconds(self) -> float:
        """For how long the step or the call that runs now has run; 0 where none does."""
        since = self._busy_since
        return 0.0 if since is None else perf_counter() - since

    def call(self, function: Callable[[Engine], T]) -> "Future[T]":
        """Run a function on the engine between two steps."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            if self._stopping.is_set():
                future.set_exception(EngineStoppedError("the engine has stopped; start a new one"))
                return
            try:
                future.set_result(function(self.engine))
            except Exception as error:  # noqa: BLE001 - it belongs to the caller, who gets it from the future
                future.set_exception(error)

        with self._lock:
            if not self.is_alive:
                raise EngineStoppedError("the engine is not running; start one")
            self._commands.put(run)
        return future

    async def submit(self, prompt: PromptLike, sampling: SamplingParams | None = None, **kwargs: Any) -> Handle:
        """Queue a prompt; arguments and errors are those of `Engine.submit`."""
        if sampling is not None and sampling.grammar is not None:  # steps go on while it is compiled
            kwargs["compiled"] = await asyncio.to_thread(self.engine.grammars.prepare, sampling.grammar)
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Event | Exception] = asyncio.Queue()

        def deliver(event: Event | Exception) -> None:
            with suppress(RuntimeError):  # the loop may close at any moment: then nobody waits for this
                loop.call_soon_threadsafe(queue.put_nowait, event)

        future = self.call(lambda engine: self._register(engine.submit(prompt, sampling, **kwargs), deliver, queue))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(self._cancel_orphan)
            raise

    async def stream(self, handle: Handle) -> AsyncIterator[Event]:
        """Yield a request's events; leaving early cancels it."""
        assert isinstance(handle.queue, asyncio.Queue), "use `stream_sync` for a handle of `submit_sync`"
        try:
            while True:
                event = await handle.queue.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Generation):
                    return
        finally:
            self.cancel(handle)

    def submit_sync(self, prompt: PromptLike, sampling: SamplingParams | None = None, **kwargs: Any) -> Handle:
        """Queue a prompt from a thread."""
        if sampling is not None and sampling.grammar is not None:
            kwargs["compiled"] = self.engine.grammars.prepare(sampling.grammar)
        queue: SimpleQueue[Event | Exception] = SimpleQueue()
        register = self.call(lambda engine: self._register(engine.submit(prompt, sampling, **kwargs), queue.put, queue))
        return register.result()

    def stream_sync(self, handle: Handle) -> Iterator[Event]:
        """Yield a request's events to a thread; leaving early cancels it."""
        assert isinstance(handle.queue, SimpleQueue), "use `stream` for a handle of `submit`"
        try:
            while True:
                event = handle.queue.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Generation):
                    return
        finally:
            self.cancel(handle)

    def cancel(self, handle: Handle) -> None:
        """End a request soon; harmless when it has ended."""
        if handle.request.state is not RequestState.FINISHED:
            self._commands.put(lambda: None if self._stopping.is_set() else self.engine.cancel(handle.request))

    def _register(
        self,
        request: Request,
        deliver: Callable[[Event | Exception], None],
        queue: "SimpleQueue[Event | Exception] | asyncio.Queue[Event | Exception]",
    ) -> Handle:
        handle = Handle(request, deliver, queue)
        self._handles[request] = handle
        return handle

    def _cancel_orphan(self, future: "Future[Handle]") -> None:
        """Cancel a request whose submitter was cancelled while it waited for the handle."""
        if not future.cancelled() and future.exception() is None:
            self.cancel(future.result())

    def _loop(self) -> None:
        try:
            while not self._stopping.is_set():
                self._take_commands()
                if self.engine.scheduler.has_work:
                    with self._busy():
                        self._step()
                self._deliver()
            self._fail(list(self._handles), EngineStoppedError("the engine has stopped before the answer was complete"))
        except Exception:
            logger.exception("the engine's thread failed and stops; please report this")
        finally:
            self._leave_nobody_waiting()

    def _take_commands(self) -> None:
        """Run every command that waits; with nothing to compute, wait for one."""
        checked = False
        while not (self.engine.scheduler.has_work or self._handles or self._stopping.is_set()):
            try:
                command = self._commands.get(timeout=None if checked and self.is_well else IDLE_SECONDS)
            except Empty:
                checked = True
                with self._busy():
                    self._use_idle_time()
            else:
                with self._busy():
                    command()
        while not self._commands.empty():
            with self._busy():
                self._commands.get()()

    @contextmanager
    def _busy(self) -> Iterator[None]:
        self._busy_since = perf_counter()
        yield
        self._busy_since = None

    def _use_idle_time(self) -> None:
        self._check()
        self._calibrate()
        if not self.is_well:
            self._try_a_step()

    def _try_a_step(self) -> None:
        """See whether the engine works again; while it does not, nobody may send the request that would show it."""
        try:
            self.engine.generate([[0]], SamplingParams(max_tokens=1))
        except Exception as error:  # noqa: BLE001 - what has failed before fails again
            logger.warning("the engine still fails (%s); it is tried again", error)
        else:
            self._failures = 0
            logger.warning("the engine works again")

    def _check(self) -> None:
        """Look for broken bookkeeping while there is nothing else to do."""
        try:
            self.engine.check_invariants()
        except AssertionError:
            logger.exception("an engine invariant does not hold; please report this")

    def _calibrate(self) -> None:
        """Measure what is only about speed; the engine works without."""
        try:
            self.engine.calibrate()
        except Exception:
            logger.exception("8-bit weights could not be measured; careful values stay in place")

    def _step(self) -> None:
        totals = self.engine.totals
        steps, failed = totals.steps, totals.failed
        try:
            self.engine.step()
        except Exception as error:
            logger.exception("a step failed; its requests are ended, the engine goes on")
            failure = StepFailedError(f"the engine failed while computing this answer ({error}); ask again")
            scheduler = self.engine.scheduler
            self._fail(list(scheduler.running or scheduler.waiting or scheduler.background), failure)
        if totals.steps > steps:
            self._failures = 0
        elif totals.failed > failed:
            self._failures += 1

    def _deliver(self) -> None:
        for request, handle in list(self._handles.items()):
            for event in self.engine.take_events(request):
                handle.deliver(event)
            if request.state is RequestState.FINISHED:
                del self._handles[request]

    def _fail(self, requests: list[Request], error: EngineError) -> None:
        """End requests with an error instead of a generation."""
        for request in requests:
            self.engine.end(request, error)
        self._deliver()

    def _leave_nobody_waiting(self) -> None:
        """Tell readers whose request was not ended, and refuse the commands that came too late."""
        with self._lock:
            self._stopping.set()
        for handle in self._handles.values():
            handle.deliver(EngineStoppedError("the engine has stopped before the answer was complete"))
        self._handles.clear()
        while not self._commands.empty():
            self._commands.get()()
