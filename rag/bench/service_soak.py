"""Many clients that do everything at once, rudely: ask, leave, upload, delete, send too much."""

import asyncio
import random
import threading
from collections import Counter as Counts
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Any

from rag.bench.progress import BenchEvent, Progress
from rag.bench.service_client import ServerProcess, ask
from rag.bench.service_report import Condition, Inspection, SoakFigure
from rag.bench.statistics import summarise

if TYPE_CHECKING:
    import httpx

__all__ = ["COLLECTION", "Soak", "soak_conditions"]

COLLECTION = "soak"
PATIENCE_SECONDS = 180.0  # a request that takes longer is stuck
HEALTH_ROUTES = ("/livez", "/readyz", "/healthz")
HEALTH_PAUSE_SECONDS = 0.05
HEALTH_LIMIT_MS = 200.0
MEMORY_SAMPLES = 60
GROWTH_LIMIT = 0.1
UPLOAD_CHARACTERS = 1200
TOO_BUSY = {429, 503}


@dataclass(slots=True)
class _Seen:
    requests: Counts[str] = field(default_factory=Counts)
    statuses: Counts[str] = field(default_factory=Counts)
    unexpected: list[str] = field(default_factory=list)
    stuck: int = 0
    present: set[str] = field(default_factory=set)  # uris of documents that were acknowledged
    absent: set[str] = field(default_factory=set)  # of those whose deletion was


class Soak:
    """One run.

    Args:
        http: a client that may do everything.
        server: that it asks.
        body: of a question, without its text.
        questions: that are asked.
        texts: that uploaded documents are cut from.
        too_large: so many bytes are more than the server takes.
    """

    def __init__(
        self,
        http: "httpx.AsyncClient",
        server: ServerProcess,
        body: dict[str, Any],
        *,
        questions: Sequence[str],
        texts: Sequence[str],
        too_large: int,
    ) -> None:
        self._http = http
        self._server = server
        self._body = body
        self._questions = questions
        self._texts = texts
        self._too_large = bytes(too_large)
        self._seen = _Seen()
        self._names = count()
        self._random = random.Random(0)
        self._ways: dict[str, tuple[int, Callable[[], Awaitable[int | str]], set[int]]] = {
            "answers": (12, self._answer, {200, *TOO_BUSY}),
            "streams": (9, self._stream, {200, *TOO_BUSY}),
            "departures": (4, self._leave, {200, *TOO_BUSY}),
            "uploads": (3, self._upload, {200, *TOO_BUSY}),
            "deletions": (2, self._delete, {200, *TOO_BUSY}),
            "oversized bodies": (2, self._oversized, {413}),
        }

    async def run(self, clients: int, seconds: float, progress: Progress) -> SoakFigure:
        """Let so many clients do what they do for a while, then look what is left."""
        health, memory, done = list[float](), list[float](), threading.Event()
        watcher = threading.Thread(
            target=_watch_health, args=(self._server.url, dict(self._http.headers), health, done)
        )
        watcher.start()
        began = perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(clients):
                    group.create_task(self._client(began + seconds))
                while (spent := perf_counter() - began) < seconds:
                    memory.append(self._server.memory_mib)
                    progress(BenchEvent("soak", int(spent), int(seconds)))
                    await asyncio.sleep(seconds / MEMORY_SAMPLES)
        finally:
            done.set()
            await asyncio.to_thread(watcher.join)
        progress(BenchEvent("soak", int(seconds), int(seconds)))
        seen, ordered = self._seen, sorted(health)
        return SoakFigure(
            clients=clients,
            seconds=perf_counter() - began,
            requests=dict(seen.requests),
            statuses=dict(seen.statuses),
            health_ms=summarise(health),
            health_p99_ms=ordered[-(-99 * len(ordered) // 100) - 1],
            lost=await self._lost(),
            stuck=seen.stuck,
            unexpected=seen.unexpected,
            memory_mib=memory,
            growth=_growth(memory),
        )

    async def _client(self, end: float) -> None:
        names, weights = list(self._ways), [weight for weight, _, _ in self._ways.values()]
        while perf_counter() < end:
            name = self._random.choices(names, weights)[0]
            _, act, expected = self._ways[name]
            self._seen.requests[name] += 1
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    status = await act()
            except TimeoutError:
                self._seen.stuck += 1
                continue
            self._seen.statuses[str(status)] += 1
            if isinstance(status, int) and status not in expected:
                self._seen.unexpected.append(f"{name}: status {status}")
            if status in TOO_BUSY:
                await asyncio.sleep(1)

    def _question(self) -> dict[str, Any]:
        return self._body | {"question": self._random.choice(self._questions)}

    async def _answer(self) -> int | str:
        return (await self._http.post("/v1/answer", json=self._question())).status_code

    async def _stream(self) -> int | str:
        asked = await ask(self._http, self._question())
        if asked.status == 200 and asked.end != "done":
            self._seen.unexpected.append(f"streams: the last event is {asked.end!r}")
        return asked.status

    async def _leave(self) -> int | str:
        asked = await ask(self._http, self._question(), leave_after=self._random.randint(1, 6))
        return "closed" if asked.status == 200 else asked.status

    async def _upload(self) -> int | str:
        text = self._random.choice(self._texts)
        begin = self._random.randrange(max(len(text) - UPLOAD_CHARACTERS, 1))
        uri = f"soak:{next(self._names)}"
        document = {"uri": uri, "text": f"{uri}\n\n{text[begin : begin + UPLOAD_CHARACTERS]}"}
        response = await self._http.post(f"/v1/collections/{COLLECTION}/documents", json={"documents": [document]})
        if response.status_code == 200:
            self._seen.present.add(uri)
        return response.status_code

    async def _delete(self) -> int | str:
        documents = await self._documents()
        mine = [uri for uri in self._seen.present if uri in documents]
        if not mine:
            return 200
        uri = self._random.choice(mine)
        self._seen.present.remove(uri)  # nobody else may delete it meanwhile
        response = await self._http.delete(f"/v1/collections/{COLLECTION}/documents/{documents[uri]}")
        if response.status_code == 200:
            self._seen.absent.add(uri)
        else:
            self._seen.present.add(uri)
        return response.status_code

    async def _oversized(self) -> int | str:
        import httpx

        headers = {"Content-Type": "application/json"}
        try:
            response = await self._http.post("/v1/answer", content=self._too_large, headers=headers)
        except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
            return "closed"  # the server has answered and hung up while the body was still coming
        return response.status_code

    async def _documents(self) -> dict[str, str]:
        response = await self._http.get(f"/v1/collections/{COLLECTION}/documents")
        if response.status_code != 200:
            return {}  # there is none before the first upload
        return {item["uri"]: item["id"] for item in response.json()["documents"]}

    async def _lost(self) -> list[str]:
        there = await self._documents()
        return sorted((self._seen.present - there.keys()) | (self._seen.absent & there.keys()))


def soak_conditions(figure: SoakFigure, inspection: Inspection) -> list[Condition]:
    """Return what has to hold at the end."""
    found = {
        "lost documents": (len(figure.lost), 0, ""),
        "stuck requests": (figure.stuck + inspection.running + inspection.waiting, 0, ""),
        "unexpected statuses": (len(figure.unexpected), 0, ""),
        "leaked blocks": (inspection.leaked_blocks, 0, ""),
        f"broken invariants {inspection.broken}".rstrip(): (int(bool(inspection.broken)), 0, ""),
        "growth of memory": (figure.growth, GROWTH_LIMIT, ""),
        "p99 of the health routes": (figure.health_p99_ms, HEALTH_LIMIT_MS, "ms"),
    }
    return [
        Condition(name=f"soak, {name}", value=value, limit=limit, unit=unit)
        for name, (value, limit, unit) in found.items()
    ]


def _watch_health(url: str, headers: dict[str, str], times: list[float], done: threading.Event) -> None:
    """Ask the health routes until told to end; keep the milliseconds."""
    import httpx

    with httpx.Client(base_url=url, headers=headers, timeout=PATIENCE_SECONDS, trust_env=False) as http:
        while True:
            for route in HEALTH_ROUTES:
                began = perf_counter()
                http.get(route).raise_for_status()
                times.append(1e3 * (perf_counter() - began))
            if done.wait(HEALTH_PAUSE_SECONDS):
                return


def _growth(memory: Sequence[float]) -> float:
    """The mean of the last quarter by that of the second, less one: by then everything has been used once."""
    quarter = max(len(memory) // 4, 1)
    early, late = memory[quarter : 2 * quarter] or memory[:1], memory[-quarter:]
    return sum(late) / len(late) / (sum(early) / len(early)) - 1 if sum(early) else 0.0
