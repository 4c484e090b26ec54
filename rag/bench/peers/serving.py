"""Serves requests in a peer's process: takes lines while it computes, and tells of tokens as they come.

Standard library only, since the peer's own Python runs it. What an adapter has to have is in `Engine` and `Answering`.
"""

import json
import os
import select
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Protocol, TextIO

__all__ = ["Answering", "Engine", "LineReader", "OneByOne", "one_line", "send", "serve"]

READ_BYTES = 1 << 20

Job = dict[str, Any]
News = dict[str, Any]


class Engine(Protocol):
    """An adapter that answers several requests at once.

    A job has `number`, `segments` (each kind, tokens, name), `prompt` (their tokens), `tokens` (of the answer, no more
    and no less) and `conversation`. News of a request are the fields of `rag.bench.suite.contestant.Event`; what is
    left out has the event's default, and `at` is set where they are sent.
    """

    @property
    def busy(self) -> bool:
        """Whether a step would advance anything."""
        ...

    def submit(self, job: Job) -> None:
        """Queue a request."""
        ...

    def step(self) -> list[News]:
        """Compute for a moment, and tell what became of requests."""
        ...

    def cancel(self) -> None:
        """Drop every request."""
        ...

    def prepare(self, template: list[int], passages: list[list[int]]) -> dict[str, float]:
        """Forget everything, then read ahead what ingestion would; return `tokens` and `seconds`."""
        ...


class Answering(Protocol):
    """An adapter that answers one request at a time, see `OneByOne`."""

    def answer(self, job: Job) -> Iterator[News]:
        """Answer a request; nothing is computed between two of its news, which need not have a `number`."""
        ...

    def forget(self) -> None:
        """Forget everything that was cached."""
        ...


class OneByOne:
    """Makes an engine of an adapter that answers one request at a time: the others wait, first come, first served.

    Args:
        adapter: does the work.
    """

    def __init__(self, adapter: Answering) -> None:
        self._adapter = adapter
        self._waiting: deque[Job] = deque()
        self._current: tuple[int, Iterator[News]] | None = None

    @property
    def busy(self) -> bool:
        """Whether a request runs or waits."""
        return self._current is not None or bool(self._waiting)

    def submit(self, job: Job) -> None:
        """Queue a request."""
        self._waiting.append(job)

    def step(self) -> list[News]:
        """Advance the oldest request to its next news; one that fails has failed alone."""
        if self._current is None:
            job = self._waiting.popleft()
            self._current = job["number"], iter(self._adapter.answer(job))
        number, answer = self._current
        try:
            news = next(answer, None)
        except Exception as error:  # noqa: BLE001 - told to the parent, which reports it
            news = {"done": True, "error": one_line(error)}
        if news is None or news.get("done"):
            self._current = None
        return [] if news is None else [{"number": number, **news}]

    def cancel(self) -> None:
        """Drop every request."""
        self._waiting.clear()
        self._current = None

    def prepare(self, _template: list[int], _passages: list[list[int]]) -> dict[str, float]:
        """Forget everything; nothing is read ahead."""
        self.cancel()
        self._adapter.forget()
        return {"tokens": 0, "seconds": 0.0}


class LineReader:
    """Reads lines from a pipe, without waiting longer than it is told to.

    Args:
        descriptor: of the pipe's end.

    Attributes:
        ended: whether the other end was closed and everything has been read.
    """

    def __init__(self, descriptor: int) -> None:
        self.ended = False
        self._descriptor = descriptor
        self._rest = b""

    def lines(self, timeout: float | None) -> list[bytes]:
        """Return the lines that are there, waiting up to so many seconds for the first; None waits for ever."""
        found: list[bytes] = []
        until = None if timeout is None else time.monotonic() + timeout
        while not self.ended:
            wait = 0.0 if found else None if until is None else max(until - time.monotonic(), 0.0)
            if not select.select([self._descriptor], [], [], wait)[0]:
                break
            piece = os.read(self._descriptor, READ_BYTES)
            self.ended = not piece
            *complete, self._rest = (self._rest + piece).split(b"\n")
            found += complete
        return found


def serve(adapter: Any, reader: LineReader, answers: TextIO) -> None:
    """Do what lines ask for, and advance requests between them, until there are no more lines."""
    engine: Engine = adapter if hasattr(adapter, "step") else OneByOne(adapter)
    server = _Server(adapter, engine, answers)
    while not reader.ended:
        for line in reader.lines(0.0 if engine.busy else None):
            server.take(json.loads(line))
        if engine.busy:
            server.advance()


class _Server:
    """What is done with lines, and which requests have not ended."""

    def __init__(self, adapter: Any, engine: Engine, answers: TextIO) -> None:
        self._adapter = adapter
        self._engine = engine
        self._answers = answers
        self._open: set[int] = set()

    def take(self, work: dict[str, Any]) -> None:
        """Do what a line asks for; what fails is told."""
        if work["do"] == "submit":
            self._submit(work)
            return
        try:
            send(self._answers, self._done(work))
        except NotImplementedError as error:
            send(self._answers, {"unsupported": str(error)})
        except Exception as error:  # noqa: BLE001 - told to the parent, which prints it
            send(self._answers, {"error": one_line(error)})

    def advance(self) -> None:
        """Step; where that fails, every request has."""
        try:
            found = self._engine.step()
        except Exception as error:  # noqa: BLE001 - told to the parent, which reports it
            found = [{"number": number, "done": True, "error": one_line(error)} for number in sorted(self._open)]
            with suppress(Exception):  # it is broken already
                self._engine.cancel()
        for news in found:
            self._tell(news)

    def _submit(self, job: Job) -> None:
        self._open.add(job["number"])
        job["prompt"] = [token for _, tokens, _ in job["segments"] for token in tokens]
        try:
            self._engine.submit(job)
        except Exception as error:  # noqa: BLE001 - told to the parent, which reports it
            self._tell({"number": job["number"], "done": True, "error": one_line(error)})

    def _tell(self, news: News) -> None:
        if news.get("done"):
            self._open.discard(news["number"])
        send(self._answers, {"at": time.monotonic(), **news})

    def _done(self, work: dict[str, Any]) -> dict[str, Any]:
        if work["do"] == "prepare":
            self._open.clear()
            return {"prepared": self._engine.prepare(work["template"], work["passages"])}
        if work["do"] == "cancel":
            self._open.clear()
            self._engine.cancel()
            return {"cancelled": True}
        if work["do"] == "first_token":
            return {"seconds": self._adapter.first_token(work["prompt"], work["cached"])}
        return {"seconds": self._adapter.decode(work["prompts"], work["cached"], work["steps"])}


def send(answers: TextIO, message: dict[str, Any]) -> None:
    """Write a line, at once."""
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def one_line(error: Exception) -> str:
    """Describe an error in one line of bearable length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
