"""Requests to a running server: what goes wrong becomes a `ServerError`, and events are read as they come."""

import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from rag.errors import ServerError

__all__ = ["Remote"]

CONNECT_SECONDS = 5.0

T = TypeVar("T")


class Remote:
    """One server.

    Args:
        url: its address, such as `http://127.0.0.1:8000`.
        key: an API key, or the token of the server's data directory; empty is none.
        transport: used instead of the network (tests).
    """

    def __init__(self, url: str, *, key: str = "", transport: httpx.BaseTransport | None = None) -> None:
        self.url = url
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)  # an answer takes as long as it takes
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, timeout=timeout, headers=headers, transport=transport, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def call(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Send a request and return the response.

        Raises:
            ServerError: the server does not answer, or refuses.
        """
        response = self.send(method, path, **arguments)
        self.check(response)
        return response

    def send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Send a request and return the response, even where it is a refusal.

        Raises:
            ServerError: the server does not answer.
        """
        with self._errors():
            return self._http.request(method, path, **arguments)

    def check(self, response: httpx.Response) -> None:
        """Go on only where a response is no refusal.

        Raises:
            ServerError: it is; the message is what it says.
        """
        if response.is_error:
            raise ServerError(_detail(response.text) or f"the server at {self.url} answered {response.status_code}")

    def events(self, method: str, path: str, kind: TypeAdapter[T], **arguments: Any) -> Generator[T, None, None]:
        """Send a request and yield the events of its answer.

        Raises:
            ServerError: the server does not answer, refuses, or ends the events with a problem.
        """
        with self._errors(), self._http.stream(method, path, **arguments) as response:
            if response.is_error:
                response.read()
            self.check(response)
            for data in _server_sent(_lines(response.iter_text())):
                yield self._parsed(data, kind)

    def _parsed(self, data: str, kind: TypeAdapter[T]) -> T:
        """Read an event; what is none of its kind is the problem that ended the stream."""
        try:
            return kind.validate_json(data)
        except ValidationError:
            raise ServerError(f"the server at {self.url} ended it: {_detail(data)}") from None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise ServerError(
                f"the server at {self.url} does not answer ({error or type(error).__name__}); "
                "wait until it is ready, or stop it and run the command again"
            ) from error


def _detail(body: str) -> str:
    """Return what a problem document (RFC 9457) says, or the body itself."""
    try:
        problem = json.loads(body)
    except ValueError:
        return body.strip()
    return str(problem.get("detail") or problem.get("title") or body) if isinstance(problem, dict) else body


def _lines(texts: Iterator[str]) -> Iterator[str]:
    """Yield lines that end with a line feed, as our server writes them.

    `Response.iter_lines` also cuts at U+2028, U+0085 and others, which JSON carries as they are.
    """
    rest = ""
    for text in texts:
        *lines, rest = (rest + text).split("\n")
        yield from lines
    yield rest


def _server_sent(lines: Iterator[str]) -> Iterator[str]:
    """Yield the data of each server-sent event."""
    data: list[str] = []
    for line in lines:
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield "\n".join(data)
            data = []
    if data:
        yield "\n".join(data)
