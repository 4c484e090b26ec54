"""Our own engine, in a process of its own as every other contestant is."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

from engine.certificate import Certificates
from engine.config import EngineConfig, SamplingParams
from engine.engine import Engine
from engine.errors import EngineError
from engine.output import Generation, TokenDelta
from engine.prompt import Prompt, Reuse, Segment, SegmentKind
from engine.request import Request
from rag.bench.certified import repair_due

if TYPE_CHECKING:
    from engine.kv_store import ExtentStore

__all__ = ["MODES", "Preread", "load"]

# every prompt computed; exact reuse; the same with passages in the order that suits the cache; chunk reuse
MODES = ("off", "exact", "order", "chunk")
NAMESPACE = "bench"
PRINCIPAL = "bench"
FILL_BATCH = 16  # passages whose KV waits for the disk

Job = dict[str, Any]
News = dict[str, Any]


@dataclass(slots=True)
class _Running:
    """A request, the namespace that is its own, and whether a certificate covers what it may reuse."""

    request: Request
    namespace: str | None
    certified: bool | None


class Preread:
    """Answers requests as `rag serve` does: continuous batching, drafts, default settings.

    Args:
        settings: `folder`, `engine` (fields of `EngineConfig`), `threads`, `mode` (of `MODES`), `repair` (tokens
            recomputed a shifted passage, certified or not; None is what the certificate says), `certificates`
            (folders), `scratch` (a folder for KV on disk) and `store_bytes` (that it may hold).
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        import torch

        torch.set_num_threads(settings["threads"])
        self.version = version("preread")
        self._mode, self._repair = settings["mode"], settings["repair"]
        assert self._mode in MODES, f"there is no mode {self._mode}"
        self._certificates = Certificates([Path(folder) for folder in settings["certificates"]])
        self._store = _open_store(settings) if self._mode == "chunk" else None
        self._engine = Engine.from_pretrained(
            settings["folder"],
            EngineConfig(**settings["engine"]),
            store=self._store,
            certificates=self._certificates,
        )
        self._engine.calibrate()  # as a server does before its first question
        self._running: dict[int, _Running] = {}
        self._prepared: tuple[tuple[int, ...], ...] = ()
        self._prepared_seconds = 0.0
        self.detail = self._describe()

    @property
    def busy(self) -> bool:
        """Whether a request has not ended."""
        return bool(self._running)

    def submit(self, job: Job) -> None:
        """Queue a request."""
        number = job["number"]
        prompt = Prompt(Segment(tuple(tokens), SegmentKind(kind), name) for kind, tokens, name in job["segments"])
        own = f"{NAMESPACE}-{number}" if self._mode == "off" else None
        reuse, repair, certified = self._reuse(prompt)
        passages = len(_passages(prompt))
        request = self._engine.submit(
            prompt,
            SamplingParams(max_tokens=job["tokens"], ignore_eos=True),
            reuse=reuse,
            uncertified_repair=repair,
            groups=(passages,) if self._mode == "order" and passages else (),
            namespace=own or NAMESPACE,
            principal=PRINCIPAL,
            conversation=job["conversation"] or None,
        )
        certified = certified if request.reuse is Reuse.CHUNK else None
        self._running[number] = _Running(request, own, certified)

    def step(self) -> list[News]:
        """Advance the engine by a step, and tell what came of it."""
        self._engine.step()
        return [news for number in list(self._running) for news in self._news(number)]

    def cancel(self) -> None:
        """Drop every request."""
        for number, running in list(self._running.items()):
            self._engine.forget(running.request)
            self._end(number)

    def prepare(self, template: list[int], passages: list[list[int]]) -> dict[str, float]:
        """Forget everything; with chunk reuse, read passages ahead onto the disk.

        What is there from the last time is neither computed again nor left out of the figures.
        """
        self.cancel()
        self._engine.drop_namespace(NAMESPACE)
        if self._store is None:
            return {"tokens": 0, "seconds": 0.0}
        wanted = (tuple(template), *map(tuple, passages))
        if wanted != self._prepared:
            self._prepared_seconds = self._read_ahead(wanted[0], wanted[1:])
            self._prepared = wanted
            self._engine.drop_namespace(NAMESPACE)  # the first request finds them on the disk
        return {"tokens": sum(map(len, wanted[1:])), "seconds": self._prepared_seconds}

    def close(self) -> None:
        """Close the engine and what it keeps on disk."""
        self._engine.close()
        if self._store is not None:
            self._store.close()

    def _read_ahead(self, template: tuple[int, ...], passages: Sequence[tuple[int, ...]]) -> float:
        assert self._store is not None, "there is nowhere to keep them"
        assert self._engine.tier is not None, "an engine with a store has a tier"
        self._store.delete(*self._store.keys())
        segments = [Segment(tokens, SegmentKind.PASSAGE) for tokens in passages]
        began = perf_counter()
        for first in range(0, len(segments), FILL_BATCH):
            head, batch = Segment(template, SegmentKind.TEMPLATE), segments[first : first + FILL_BATCH]
            self._engine.precompute(head, batch, NAMESPACE)
            self._engine.tier.flush()
        return perf_counter() - began

    def _reuse(self, prompt: Prompt) -> tuple[Reuse, int | None, bool | None]:
        """Return what to ask the engine for, the repair where no certificate says it, and whether one covers it."""
        if self._mode != "chunk" or len(_passages(prompt)) < 2:
            return Reuse.EXACT, None, None
        covered = self._engine.allows_chunk(prompt)
        if self._repair is None and covered:
            return Reuse.AUTO, None, True
        certificate = self._certificates.find(self._engine.identity, prompt.segments[0].tokens)
        due = repair_due(certificate, len(_passages(prompt)), self._engine.config.block_size)
        if self._repair is None:
            return Reuse.CHUNK, due, False
        return Reuse.CHUNK, self._repair, covered and self._repair >= due

    def _news(self, number: int) -> list[News]:
        running = self._running[number]
        events = self._engine.take_events(running.request)
        tokens = [token for event in events if isinstance(event, TokenDelta) for token in event.token_ids]
        news: News = {"number": number, "at": monotonic(), "tokens": tokens, "count": len(tokens)}
        last = events[-1] if events else None
        if isinstance(last, EngineError):
            news |= {"done": True, "error": f"{type(last).__name__}: {last}"}
        elif isinstance(last, Generation):
            news |= {"done": True, "certified": running.certified, **_report(last, running.request)}
        if news.get("done"):
            self._end(number)
        return [news] if events else []

    def _end(self, number: int) -> None:
        namespace = self._running.pop(number).namespace
        if namespace is not None:
            self._engine.drop_namespace(namespace)

    def _describe(self) -> str:
        engine = self._engine
        blocks, size = engine.runner.kv_cache.num_blocks, engine.config.block_size
        kind = str(engine.runner.kv_cache.dtype).removeprefix("torch.")
        reuse = {"off": "no reuse", "exact": "exact reuse", "order": "exact reuse, passages in the cache's order"}
        repair = "the certified repair" if self._repair is None else f"a repair of {self._repair} tokens"
        longest = engine.config.max_draft_tokens
        drafts = f"drafts of up to {longest} tokens from the prompt" if longest else "no drafts"
        how = reuse.get(self._mode, f"chunk reuse at {repair}")
        lean = ", 8-bit weights for rows that nobody else reads" if engine.runner.lean is not None else ""
        return f"{how}, {kind} weights and KV{lean}, room for {blocks * size} tokens, {drafts}"


def _passages(prompt: Prompt) -> list[Segment]:
    return [segment for segment in prompt.segments if segment.kind is SegmentKind.PASSAGE]


def _report(generation: Generation, request: Request) -> News:
    outcomes: dict[str, int] = {}
    for one in generation.cache.segments:
        if one.kind is SegmentKind.PASSAGE:
            outcomes[one.outcome.value] = outcomes.get(one.outcome.value, 0) + one.num_tokens
    started = generation.timings.first_scheduled
    return {
        "started": None if started is None else started + monotonic() - perf_counter(),
        "cached": generation.cache.hit_tokens,
        "outcomes": outcomes,
        "repair": request.repair if request.reuse is Reuse.CHUNK else None,
    }


def _open_store(settings: dict[str, Any]) -> "ExtentStore":
    from engine.kv_store import ExtentStore

    return ExtentStore(Path(settings["scratch"]) / "kv", capacity_bytes=settings["store_bytes"])


def load(settings: dict[str, Any]) -> Preread:
    """Load the model."""
    return Preread(settings)
