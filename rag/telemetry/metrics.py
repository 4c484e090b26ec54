"""What is counted of answers, as Prometheus takes it.

Names are vLLM's after the prefix, so that dashboards for it are soon adapted. Labels take few values: what is a name of
a user's choice is replaced by `other` after the first hundred.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram

from engine.prompt import SegmentKind
from rag.telemetry.served import CacheOutcome, Served

if TYPE_CHECKING:
    from engine.stats import SegmentReport

__all__ = ["PREFIX", "AnswerMetrics"]

PREFIX = "preread_"
MAX_COLLECTIONS = 100
OTHER = "other"
SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 20, 40, 80, 160, 640
)  # fmt: skip
SHORT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1, 5)
TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 131072)

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call] # gauges that nobody asks for


@dataclass(frozen=True, slots=True)
class _Latencies:
    """The histograms of one kind of answer."""

    ttft: Histogram
    total: Histogram
    embed: Histogram
    search: Histogram
    queue: Histogram
    load: Histogram
    prefill: Histogram
    decode: Histogram
    per_token: Histogram


class AnswerMetrics:
    """Counters and histograms of answers; every method may be called from any thread.

    Args:
        registry: that they are shown by.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        kind = ("model_name", "pipeline", "cache")
        self._ttft = self._seconds("time_to_first_token", "From the question to the first token", kind)
        self._total = self._seconds("e2e_request_latency", "From the question to the end of the answer", kind)
        self._embed = self._seconds("request_embed_time", "On the question's vector", kind, SHORT_SECONDS)
        self._search = self._seconds("request_search_time", "On the search for passages", kind, SHORT_SECONDS)
        self._queue = self._seconds("request_queue_time", "Waiting for the engine", kind)
        self._load = self._seconds("request_load_time", "On reading KV from the disk", kind, SHORT_SECONDS)
        self._prefill = self._seconds("request_prefill_time", "On the prompt", kind)
        self._decode = self._seconds("request_decode_time", "From the first token to the last", kind)
        self._per_token = self._seconds(
            "request_time_per_output_token", "For each token after the first, on average", kind, SHORT_SECONDS
        )
        size = ("model_name", "pipeline")
        self._prompt_size = self._histogram("request_prompt_tokens", "Tokens of a prompt", size, TOKENS)
        self._output_size = self._histogram("request_generation_tokens", "Tokens of an answer", size, TOKENS)
        self._ended = self._counter("request_success", "Answers by how they ended", (*size, "finished_reason"))
        self._errors = self._counter("request_errors", "Answers that ended with an error", ("error",))
        self._outcomes = self._counter("request_cache_outcome", "Answers by what the cache did", kind)
        where = ("model_name", "pipeline", "collection")
        self._prompt = self._counter("prompt_tokens", "Prompt tokens", where)
        self._cached = self._counter("prompt_tokens_cached", "Prompt tokens that were not computed", where)
        self._output = self._counter("generation_tokens", "Generated tokens", where)
        self._sources = self._counter("prompt_tokens_by_source", "Prompt tokens by where their KV is from", ("source",))
        self._passages = self._counter("passages", "Passages of prompts by outcome and tier", ("outcome", "tier"))
        self._passage_tokens = self._counter("passage_tokens", "Tokens of passages by outcome", ("outcome", "tier"))
        self._bound: dict[tuple[str, str, str], _Latencies] = {}
        self._collections = set[str]()

    def observe(self, served: Served) -> None:
        """Count an answer."""
        size = (served.model, served.pipeline)
        self._ended.labels(*size, served.ending).inc()
        if served.ending == "error":
            self._errors.labels(served.error).inc()
        if not served.prompt_tokens:
            return  # nothing was begun, and the collection may be none
        cached = served.cache.cached_tokens
        self.count_tokens(*size, served.collection, served.prompt_tokens, cached, served.output_tokens)
        outcome = served.outcome
        self._outcomes.labels(*size, outcome).inc()
        self._prompt_size.labels(*size).observe(served.prompt_tokens)
        self._output_size.labels(*size).observe(served.output_tokens)
        for source, tokens in ("computed", served.prompt_tokens - cached), *served.cache.hit_tokens.items():
            self._sources.labels(source).inc(tokens)
        for segment in served.cache.segments:
            if segment.kind is SegmentKind.PASSAGE:
                self._count_passage(segment)
        self._observe_times(served, outcome)

    def count_tokens(self, model: str, pipeline: str, collection: str, prompt: int, cached: int, output: int) -> None:
        """Count tokens that were used, the cached ones among those of the prompt."""
        where = (model, pipeline, self._known(collection))
        self._prompt.labels(*where).inc(prompt)
        self._cached.labels(*where).inc(cached)
        self._output.labels(*where).inc(output)

    def _observe_times(self, served: Served, outcome: CacheOutcome) -> None:
        """Take the times of an answer that came to its end."""
        stages = served.stages
        if stages is None or served.ending == "abort":
            return
        to = self._latencies(served.model, served.pipeline, outcome)
        durations = stages.durations
        to.ttft.observe(stages.first_token - served.started)
        to.total.observe(served.ended - served.started)
        to.queue.observe(durations["queue"])
        to.load.observe(durations["load"])
        to.prefill.observe(durations["prefill"])
        to.decode.observe(durations["decode"])
        if served.output_tokens > 1:
            to.per_token.observe(durations["decode"] / (served.output_tokens - 1))
        if served.retrieval is not None:
            to.embed.observe(served.retrieval.embed_seconds)
            to.search.observe(served.retrieval.search_seconds)

    def _count_passage(self, segment: "SegmentReport") -> None:
        labels = (segment.outcome.value, segment.tier or "none")
        self._passages.labels(*labels).inc()
        self._passage_tokens.labels(*labels).inc(segment.num_tokens)

    def _latencies(self, *kind: str) -> _Latencies:
        model, pipeline, outcome = kind
        bound = self._bound.get((model, pipeline, outcome))
        if bound is None:
            families = (self._ttft, self._total, self._embed, self._search, self._queue, self._load, self._prefill,
                        self._decode, self._per_token)  # fmt: skip
            bound = self._bound[model, pipeline, outcome] = _Latencies(*(one.labels(*kind) for one in families))
        return bound

    def _known(self, collection: str) -> str:
        """Return the collection's name, or `other` where there are too many names already."""
        if collection not in self._collections:
            if len(self._collections) >= MAX_COLLECTIONS:
                return OTHER
            self._collections.add(collection)
        return collection

    def _counter(self, name: str, help_text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(PREFIX + name, help_text, labels, registry=self._registry)

    def _histogram(self, name: str, help_text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, help_text, labels, buckets=buckets, registry=self._registry)

    def _seconds(
        self, name: str, help_text: str, labels: tuple[str, ...], buckets: tuple[float, ...] = SECONDS
    ) -> Histogram:
        return self._histogram(f"{name}_seconds", f"{help_text}, in seconds", labels, buckets)
