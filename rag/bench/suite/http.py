"""A contestant behind an OpenAI-compatible API that takes token ids: vLLM, SGLang, llama.cpp's server, our own."""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from rag.bench.peers.errors import PeerError
from rag.bench.suite.completion_stream import BrokenAnswerError, CompletionStream
from rag.bench.suite.contestant import Event, Footprint, Prepared
from rag.bench.suite.requests import BenchRequest, RequestStream

if TYPE_CHECKING:
    import httpx

__all__ = ["UrlContestant", "url_of"]

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 600.0  # for anything but a request of the stream, whose silence is for who drives to judge
IDLE_SECONDS = 2.0  # that a connection is kept for; servers close theirs after 5, perhaps while we send
READY_SECONDS = 300.0  # for loading a model
UNAVAILABLE = 503
BUSY = 400  # what SGLang answers instead of emptying its cache
EMPTY_SECONDS = 30.0  # a server may refuse to empty its cache until requests that were dropped have ended
EMPTYING = ("/reset_prefix_cache", "/flush_cache")  # vLLM in development mode; SGLang
PROBE = {"prompt": [40, 41, 42, 43], "max_tokens": 2}
REASON = 200  # characters of an error's text

Result = TypeVar("Result")


class UrlContestant:
    """Sends every request at once, each as a stream; a thread of its own notes when tokens come.

    Args:
        name: of the contestant.
        url: of the server, with or without `/v1`.
        transport: to ask through (tests).

    Raises:
        PeerError: it does not answer, serves no model, or takes no token ids.
    """

    def __init__(self, name: str, url: str, *, transport: "httpx.AsyncBaseTransport | None" = None) -> None:
        import httpx

        self.name = name
        self._base = url.rstrip("/").removesuffix("/v1")
        self._news: SimpleQueue[Event | PeerError] = SimpleQueue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(keepalive_expiry=IDLE_SECONDS),
            trust_env=False,
            transport=transport,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name=f"{name}-http", daemon=True)
        self._thread.start()
        try:
            self._run(self._look())
        except BaseException:
            UrlContestant.close(self)
            raise

    def prepare(self, stream: RequestStream) -> Prepared:
        """See `Contestant.prepare`; what cannot be emptied stays as it is, which `detail` says."""
        del stream
        self.cancel()
        if self._emptying is not None and not self._run(self._empty(self._emptying)):
            raise PeerError(f"{self.name} does not empty its cache")
        return Prepared()

    def submit(self, request: BenchRequest) -> None:
        """See `Contestant.submit`."""
        self._loop.call_soon_threadsafe(self._begin, request)

    def events(self, timeout: float) -> Sequence[Event]:
        """See `Contestant.events`."""
        found = []
        with suppress(Empty):
            found.append(self._news.get(timeout=timeout) if timeout > 0 else self._news.get_nowait())
            while True:
                found.append(self._news.get_nowait())
        for one in found:
            if isinstance(one, PeerError):
                raise one
        return [one for one in found if isinstance(one, Event)]

    def cancel(self) -> None:
        """See `Contestant.cancel`; a server drops what nobody listens to."""
        self._run(self._drop())
        with suppress(Empty):
            while True:
                self._news.get_nowait()

    def footprint(self) -> Footprint:
        """See `Contestant.footprint`; nothing is known of another machine."""
        return Footprint()

    def pause(self) -> None:
        """Leave it alone: without requests it has nothing to do."""

    def resume(self) -> None:
        """Leave it alone."""

    def close(self) -> None:
        """See `Contestant.close`."""
        if self._loop.is_closed():
            return
        self._run(self._drop())
        self._run(self._client.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do something in the thread, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _look(self) -> None:
        """Find out what is served, and what it can do."""
        self._model = self._served(await self._call("GET", "/v1/models"))
        self.version = str((await self._optional("GET", "/version") or {}).get("version", ""))
        await self._until_ready()
        self._tells_ids = await self._optional("POST", "/v1/completions", self._body(PROBE, ids=True)) is not None
        usage = (await self._call("POST", "/v1/completions", self._body(PROBE, ids=self._tells_ids))).get("usage")
        if usage is not None and not isinstance(usage, dict):
            raise PeerError(f"{self.name} tells {str(usage)[:REASON]!r} as usage of a completion, which is no object")
        self._emptying = None
        for path in EMPTYING:
            if self._emptying is None and await self._empty(path):
                self._emptying = path
        facts = ["over HTTP"]
        if not (usage or {}).get("prompt_tokens_details"):
            facts.append("tells nothing of cached tokens")
        if self._emptying is None:
            facts.append("its cache cannot be emptied: it stays warm from one pass to the next")
        self.detail = f"model {self._model}, {', '.join(facts)}"

    def _served(self, answer: dict[str, Any]) -> str:
        """Return the name of the first model that is served."""
        models = answer.get("data")
        if not models:
            raise PeerError(f"{self.name} serves no model")
        first = models[0] if isinstance(models, list) else models
        if not isinstance(first, dict) or not isinstance(first.get("id"), str):
            raise PeerError(f"{self.name} names no model that it serves, but tells {str(first)[:REASON]!r}")
        return str(first["id"])

    async def _until_ready(self) -> None:
        """Wait while it loads its model, or let `_call` say why it does not answer."""
        until = time.monotonic() + READY_SECONDS
        while (await self._send("POST", "/v1/completions", self._body(PROBE, ids=False))).status_code == UNAVAILABLE:
            if time.monotonic() > until:
                return
            await asyncio.sleep(0.2)

    def _body(self, asked: dict[str, Any], *, ids: bool) -> dict[str, Any]:
        """Make a request for so many greedy tokens, whatever they are."""
        body = {"model": self._model, "temperature": 0, "ignore_eos": True, **asked}
        return {**body, "return_token_ids": True} if ids else body

    def _begin(self, request: BenchRequest) -> None:
        task = self._loop.create_task(self._follow(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, request: BenchRequest) -> None:
        """Ask, and tell of every token when it comes.

        A request that fails has failed alone; a server that cannot be reached is gone.
        """
        import httpx

        try:
            await self._read(request)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            self._news.put(PeerError(f"{self.name} does not answer: {_text(error)}"))
        except (httpx.HTTPError, BrokenAnswerError, TypeError, ValueError, AttributeError) as error:
            self._news.put(Event(request.number, time.monotonic(), done=True, error=_text(error)))

    async def _read(self, request: BenchRequest) -> None:
        import httpx

        body = self._body(
            {
                "prompt": request.prompt.tokens,
                "max_tokens": request.output_tokens,
                "stream": True,
                "stream_options": {"include_usage": True},
            },
            ids=self._tells_ids,
        )
        answer = CompletionStream(request.number)
        patience = httpx.Timeout(None, connect=CONNECT_SECONDS)
        url = f"{self._base}/v1/completions"
        async with self._client.stream("POST", url, json=body, timeout=patience) as response:
            if response.is_error:
                text = " ".join((await response.aread()).decode(errors="replace").split())
                raise BrokenAnswerError(f"answers {response.status_code}: {text[:REASON]}")
            async for line in response.aiter_lines():
                if event := answer.take(line, time.monotonic()):
                    self._news.put(event)
        self._news.put(answer.end())

    async def _drop(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _empty(self, path: str) -> bool:
        """Empty its cache, once it has ended what was dropped; tell whether it did."""
        until = time.monotonic() + EMPTY_SECONDS
        while True:
            response = await self._send("POST", path, None)
            if response.status_code != BUSY and (response.is_error or _object(response).get("success") is not False):
                return not response.is_error
            if time.monotonic() > until:
                return False
            await asyncio.sleep(0.1)

    async def _optional(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """Return the answer to what not every server knows; None where it refuses."""
        response = await self._send(method, path, body)
        return None if response.is_error else _object(response)

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        response = await self._send(method, path, body)
        if response.is_error:
            text = " ".join(response.text.split())[:REASON]
            raise PeerError(f"{self.name} answers {response.status_code} to {path}: {text}")
        return _object(response)

    async def _send(self, method: str, path: str, body: dict[str, Any] | None) -> "httpx.Response":
        import httpx

        try:
            return await self._client.request(method, f"{self._base}{path}", json=body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise PeerError(f"{self.name} does not answer: {_text(error)}") from error


def url_of(name: str) -> str | None:
    """Return the URL of a contestant that is given as NAME=URL; None where it is not."""
    label, _, url = name.partition("=")
    return url if label and url.startswith(("http://", "https://")) else None


def _object(response: "httpx.Response") -> dict[str, Any]:
    """Return the object that a response holds; an empty one where it holds anything else."""
    try:
        found = response.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _text(error: Exception) -> str:
    return " ".join(str(error).split())[:REASON] or type(error).__name__
