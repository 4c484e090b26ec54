"""Reads the stream of a completion: server-sent events in OpenAI's words, and what some servers add to them."""

import json
from typing import Any

from rag.bench.suite.contestant import Event

__all__ = ["BrokenAnswerError", "CompletionStream"]

DATA = "data:"
END = "[DONE]"


class BrokenAnswerError(Exception):
    """Say why an answer is none."""


class CompletionStream:
    """One answer, line by line.

    Where a server tells the ids of tokens, every token is told when it came. Where it does not, pieces of text show
    when the first one came and the last one; how many there were is told in the end.

    Args:
        number: of the request.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._pieces = 0
        self._told = 0
        self._first: float | None = None
        self._last = 0.0
        self._usage: dict[str, Any] = {}
        self._metrics: dict[str, Any] = {}
        self._timings: dict[str, Any] = {}
        self._ended = False

    def take(self, line: str, at: float) -> Event | None:
        """Read a line that came at some time; return the tokens that are known by it.

        Raises:
            BrokenAnswerError: it says that something failed, or makes no sense.
        """
        if not line.startswith(DATA):
            return None  # between events, or a comment
        text = line.removeprefix(DATA).strip()
        if text == END:
            self._ended = True
            return None
        chunk = self._parsed(text)
        self._usage = chunk.get("usage") or self._usage
        self._metrics = chunk.get("metrics") or self._metrics
        self._timings = chunk.get("timings") or self._timings
        for choice in chunk.get("choices") or ():
            ids = tuple(choice.get("token_ids") or ())
            ending = bool(choice.get("finish_reason"))
            if ids or choice.get("text") or not ending:
                return self._piece(ids, at)
        return None

    def end(self) -> Event:
        """Return the last event, when there are no more lines.

        Raises:
            BrokenAnswerError: the stream broke off.
        """
        if not self._ended or self._first is None:
            raise BrokenAnswerError("the answer broke off" if self._pieces else "the answer has no tokens")
        total = self._usage.get("completion_tokens", max(self._told, self._pieces))
        return Event(
            self._number,
            self._last,
            count=max(0, int(total) - self._told),
            started=self._started(),
            done=True,
            cached=self._cached(),
        )

    def _parsed(self, text: str) -> dict[str, Any]:
        try:
            chunk = json.loads(text)
        except ValueError:
            chunk = None
        if not isinstance(chunk, dict):
            raise BrokenAnswerError(f"no event of a completion: {text[:100]}")
        if error := chunk.get("error"):
            raise BrokenAnswerError(str(error.get("message", error) if isinstance(error, dict) else error)[:200])
        return chunk

    def _piece(self, ids: tuple[int, ...], at: float) -> Event | None:
        self._pieces += 1
        self._last = at
        first = self._first is None
        if first:
            self._first = at
        if not ids and not first:
            return None
        count = len(ids) or 1
        self._told += count
        return Event(self._number, at, tokens=ids, count=count)

    def _cached(self) -> dict[str, int] | None:
        """Return the prompt tokens that were cached: OpenAI's field, or that of llama.cpp's server."""
        told = (self._usage.get("prompt_tokens_details") or {}).get("cached_tokens", self._timings.get("cache_n"))
        return None if told is None else {"device": int(told)}

    def _started(self) -> float | None:
        """Return when the prompt's computation began, where vLLM tells how long it took."""
        took = self._metrics.get("time_to_first_token_ms")
        return None if took is None or self._first is None else self._first - took / 1000
