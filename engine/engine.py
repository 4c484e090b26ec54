"""The engine: prompts of segments in, tokens and cache reports out.

Knows token ids and segments, not documents. One thread owns it; see `worker.py`.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from engine.admission_pace import AdmissionPace
from engine.backends import load_backend
from engine.batch import build_batch
from engine.calibration import calibrate
from engine.config import EngineConfig, SamplingParams
from engine.constraint import Grammars
from engine.cuda_graphs import CudaGraphs
from engine.drafts import Drafts
from engine.errors import (
    DeadlineExceededError,
    EngineError,
    GrammarError,
    ModelFileError,
    OutdatedPromptError,
    QueueFullError,
    StepFailedError,
)
from engine.eviction import Pgdsf, policy_named
from engine.intake import Intake
from engine.isolation import run_isolated
from engine.kv_cache import allocate_kv_cache, check_device, resolve_dtype
from engine.model_runner import ModelRunner
from engine.models.loader import load_models
from engine.output import Event, Generation, OutputStream, stop_tokens
from engine.penalties import adjustments
from engine.prefix_cache import PrefixCache
from engine.prompt import Prompt, Reuse, Segment
from engine.recompute_profile import recompute_cost
from engine.request import FinishReason, Request, RequestState
from engine.sampler import ForcedSampler, Sampler, sample_rows
from engine.scheduler import ScheduledWork, Scheduler
from engine.stats import EngineStats, Totals
from engine.step_budget import StepBudget
from engine.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher
    from torch import Tensor

    from engine.certificate import Certificates
    from engine.kv_identity import KVIdentity
    from engine.kv_protocol import KVStore
    from engine.kv_tier import DiskTier

__all__ = ["Engine", "PromptLike"]

logger = logging.getLogger(__name__)

PromptLike = Prompt | Sequence[int]
TOO_LATE = "the answer was not complete before its deadline; allow it more time, or ask again when fewer wait"
MIN_PREFILL_BLOCKS = 2  # a prefill beside running answers advances by at least so much in a step


class Engine:
    """Continuous batching over a radix-tree KV cache.

    Args:
        runner: the model and its KV cache.
        tokenizer: turns sampled tokens into text.
        config: see `EngineConfig`.
        folder: where the model came from; needed for what is kept on disk and for certificates.
        store: keeps canonical KV on disk.
        certificates: what chunk reuse is allowed by.
    """

    def __init__(
        self,
        runner: ModelRunner,
        tokenizer: Tokenizer,
        config: EngineConfig,
        *,
        folder: Path | None = None,
        store: "KVStore | None" = None,
        certificates: "Certificates | None" = None,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.runner = runner
        self._identity = cache(partial(_identify, folder, config, runner))
        self.tier = self._make_tier(store)
        self._policy = policy_named(config.eviction)
        self.cache = PrefixCache(runner.kv_cache.num_blocks, config.block_size, policy=self._policy, tier=self.tier)
        budget = StepBudget(config.max_num_batched_tokens, MIN_PREFILL_BLOCKS * config.block_size, config.max_slowdown)
        self.scheduler = Scheduler(
            self.cache,
            budget,
            Drafts(config.max_draft_tokens),
            max_num_seqs=config.max_num_seqs,
            max_num_waiting=config.max_num_waiting,
            max_share_waiting=config.max_share_waiting,
        )
        self.totals = Totals()
        self.grammars = Grammars(tokenizer, runner.model.config.vocab_size)
        self._intake = Intake(self.cache, self.tier, config, runner.model.config, self._identity, certificates)
        self.max_model_len = self._intake.max_model_len
        self._streams: dict[Request, OutputStream] = {}
        self._samplers: dict[Request, Sampler] = {}
        self._deadlines: dict[Request, float] = {}
        self._pace = AdmissionPace()
        self._unread = set[Request]()  # run for others; nobody takes their events
        self._oldest_valid: dict[str, int] = {}  # by namespace: prompts of an earlier state of it are refused
        self._calibrated = False

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        config: EngineConfig | None = None,
        *,
        store: "KVStore | None" = None,
        certificates: "Certificates | None" = None,
    ) -> "Engine":
        """Load a model folder (safetensors, config.json, tokenizer.json).

        The store outlives the engine; close the engine first.

        Raises:
            ModelFileError: a folder that misses files or holds damaged ones.
            UnsupportedModelError: an architecture or rope type that this engine does not run.
            ConfigError: settings that cannot work with the model or the machine.
        """
        config = config or EngineConfig()
        check_device(config.device)
        backend = load_backend(config.backend, config.device)
        dtype = resolve_dtype(config, Path(folder), backend)
        models = load_models(Path(folder), config, dtype, backend)
        model = models.full
        kv_cache = allocate_kv_cache(config, model.config, dtype)
        limit = model.config.max_position_embeddings
        graphs = CudaGraphs.for_model(model, kv_cache, max_rows=config.max_num_seqs, max_model_len=limit)
        runner = ModelRunner(model, kv_cache, lean=models.lean, graphs=graphs)
        tokenizer = Tokenizer(Path(folder))
        engine = cls(runner, tokenizer, config, folder=Path(folder), store=store, certificates=certificates)
        engine.calibrate(measure=False)
        return engine

    @property
    def identity(self) -> "KVIdentity":
        """What the KV that it computes depends on, besides namespace and tokens."""
        return self._identity()

    def submit(  # noqa: PLR0913 - all that a request can be asked for
        self,
        prompt: PromptLike,
        sampling: SamplingParams | None = None,
        *,
        reuse: Reuse = Reuse.EXACT,
        namespace: str = "",
        principal: str = "",
        conversation: str | None = None,
        groups: Sequence[int] = (),
        uncertified_repair: int | None = None,
        background: bool = False,
        forced: Sequence[int] | None = None,
        deadline: float | None = None,
        as_of: int | None = None,
        compiled: "LLMatcher | None" = None,
    ) -> Request:
        """Queue a prompt; a plain token list is one text segment.

        Args:
            prompt: segments, or token ids.
            sampling: how tokens are chosen; greedy, at most 256 tokens, by default.
            reuse: which cached KV it accepts.
            namespace: whose passages it shares (a collection).
            principal: who asks: part of a conversation's identity, and whose share of the engine it takes.
            conversation: keeps this request's own KV for the conversation's next turn; that of its prompt alone where
                answers are computed with 8-bit weights.
            groups: sizes of consecutive passages that may change places, for the sake of the cache; together all
                passages. None keeps their order.
            uncertified_repair: chunk reuse without a certificate, with so many repaired tokens a shifted passage: to
                measure what reuse does, not to answer with.
            background: advance only while no other request does.
            deadline: when nobody waits for the answer any more, in seconds of `time.perf_counter`; it is then ended.
            as_of: the state of the namespace that the prompt was made of, see `outdate`.
            compiled: the sampling's grammar, from `grammars.prepare`; None compiles it here.
            forced: the answer to give, whatever the model says of it; `Generation.forced_logprobs` is what it says.

        Raises:
            PromptTooLongError: prompt and answer exceed the model's context or the block pool.
            ConfigError: a token id that the model does not have, or arguments that contradict each other.
            GrammarError: a grammar that cannot be compiled.
            OutdatedPromptError: `outdate` has ended the state that it was made of.
            ReuseNotCertifiedError: `Reuse.CHUNK` without a certificate that covers the prompt.
            QueueFullError: too many requests wait.
            DeadlineExceededError: the deadline is over.
        """
        if as_of is not None and as_of < self._oldest_valid.get(namespace, as_of):
            raise OutdatedPromptError("something that the prompt may hold was deleted; make it anew from what is left")
        if deadline is not None and deadline <= perf_counter():
            raise DeadlineExceededError(TOO_LATE)
        prompt = prompt if isinstance(prompt, Prompt) else Prompt.from_tokens(prompt)
        sampling = sampling or SamplingParams()
        if forced is not None:
            sampling = SamplingParams(max_tokens=len(forced), ignore_eos=True)
        wanted = Request(
            0,
            prompt,
            sampling.max_tokens,
            reuse=reuse,
            namespace=namespace,
            owner=None if conversation is None else (principal, conversation),
            groups=tuple(groups),
            forced=None if forced is None else tuple(forced),
            background=background,
            keeps_answer=self.runner.lean is None,
            principal=principal,
        )
        sampler = self._make_sampler(sampling, prompt, compiled) if forced is None else ForcedSampler(tuple(forced))
        request = self._intake.make(wanted, uncertified_repair=uncertified_repair)
        before = [other for other in request.prerequisites if other not in self._streams]
        streams = {other: OutputStream(other, sampling, self.tokenizer) for other in before}
        times = [(streams.get(other) or self._streams[other]).timings for other in request.prerequisites]
        streams[request] = OutputStream(request, sampling, self.tokenizer, times)
        self._enqueue(request, before)  # last of what can fail: a request without its stream would break a step
        self._streams |= streams
        self._deadlines |= {} if deadline is None else {request: deadline}
        self._samplers |= {request: sampler, **{other: Sampler(SamplingParams()) for other in before}}
        self._unread.update(before)
        self.totals.requests += 1 + len(before)
        return request

    def step(self) -> None:
        """Advance every request that can be: schedule, run, commit.

        One that fails ends with `StepFailedError`, and the others go on.
        """
        self._end_late()
        if work := self.scheduler.schedule():
            for part, tokens in run_isolated(self._run, work, self._give_up):
                self._commit(part, tokens)

    def stream(self, request: Request) -> Iterator[Event]:
        """Step the engine until the request has finished; yield its deltas, then its generation.

        Raises:
            StepFailedError: the request failed in a step.
            DeadlineExceededError: it was not complete before its deadline.
        """
        while request in self._streams:
            events = self.take_events(request)
            if not events:
                self.step()
            for event in events:
                if isinstance(event, EngineError):
                    raise event
                yield event

    def generate(
        self, prompts: Sequence[PromptLike], sampling: SamplingParams | None = None, *, namespace: str = ""
    ) -> list[Generation]:
        """Answer many prompts, batched; results in the order of the prompts.

        Raises what `submit` raises, and then leaves none of them behind.
        """
        requests: list[Request] = []
        results = []
        try:
            for prompt in prompts:
                while not self.scheduler.has_room(""):
                    self.step()
                requests.append(self.submit(prompt, sampling, namespace=namespace))
            for request in requests:
                *_, last = self.stream(request)
                assert isinstance(last, Generation), f"request {request.id} ended with {last}"
                results.append(last)
        finally:
            for request in requests:
                self.forget(request)
        return results

    def precompute(self, template: Segment, passages: Sequence[Segment], namespace: str = "") -> int:
        """Compute and publish the canonical KV of each `[template, passage]` that is missing; return how many."""
        missing = [passages[i] for i in self.missing(template, passages, namespace)]
        self.generate([Prompt([template, p]) for p in missing], SamplingParams(max_tokens=0), namespace=namespace)
        return len(missing)

    def missing(self, template: Segment, passages: Sequence[Segment], namespace: str = "") -> list[int]:
        """Return the indexes of passages whose canonical KV is not on disk; in the cache, for an engine without store.

        Of equal passages only the first counts.
        """
        return self._intake.missing(template, passages, namespace)

    def allows_chunk(self, prompt: Prompt) -> bool:
        """Tell whether chunk reuse is certified for a prompt; any thread may ask."""
        return self._intake.allows_chunk(prompt)

    def drop_namespace(self, namespace: str) -> int:
        """Forget everything that the device has of a namespace and return the blocks freed."""
        return self.cache.drop_namespace(namespace, self._streams)

    def outdate(self, namespace: str, state: int) -> None:
        """Refuse from now on the prompts that were made of an earlier state of a namespace than this.

        Something has been deleted: who has not submitted yet what he found before must not bring it back, and nobody
        waits for the background requests of the namespace, which are cancelled.
        """
        self._oldest_valid[namespace] = max(state, self._oldest_valid.get(namespace, state))
        for request in [other for other in self._streams if other.background and other.namespace == namespace]:
            self.cancel(request)

    def purge(self, namespace: str, passages: Sequence[tuple[int, ...]]) -> bool:
        """Remove all KV of these passages' tokens from the device, and what was computed after them.

        When nothing is left, blocks that nobody holds are overwritten with zeros. What waits to be written
        (`tier.flush`) and what a store has of them is to be purged there, afterwards.

        Returns:
            Whether nothing is left; False while a request that reads one of them runs or waits: purge again when it
            has ended.
        """
        complete = self.cache.purge(namespace, passages, self._streams)
        if complete:
            self.runner.kv_cache.erase(self.cache.pool.free_blocks)
        return complete

    def close(self) -> None:
        """Write what is still to be kept on disk."""
        if self.tier is not None:
            self.tier.close()

    def cancel(self, request: Request) -> None:
        """End a request now, wherever it is, and free its blocks; nothing happens when it has ended already."""
        if request.state is not RequestState.FINISHED:
            self.totals.cancelled += 1
            self._finish(request, FinishReason.CANCELLED)
            self._cancel_unawaited(request.prerequisites)

    def end(self, request: Request, error: EngineError) -> None:
        """End a request now with an error in the place of its generation; nothing happens when it has ended already."""
        if request.state is not RequestState.FINISHED:
            is_late = isinstance(error, DeadlineExceededError)
            self.totals.late += is_late
            self.totals.failed += not is_late
            self._streams[request].events.append(error)
            self._close(request)
            self._cancel_unawaited(request.prerequisites)

    def forget(self, request: Request) -> None:
        """Cancel a request and drop its events; nothing happens when its generation has been taken already."""
        self.cancel(request)
        if request in self._streams:
            self.take_events(request)

    def take_events(self, request: Request) -> list[Event | EngineError]:
        """Return the events of a request that nobody has taken yet; after its generation or error it is forgotten."""
        stream = self._streams[request]
        events = list(stream.events)
        stream.events.clear()
        if request.state is RequestState.FINISHED:
            del self._streams[request]
        return events

    def stats(self) -> EngineStats:
        """Return a snapshot of load, blocks and counters."""
        pool = self.cache.pool
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            num_blocks=pool.num_blocks,
            free_blocks=pool.num_free,
            cached_blocks=self.cache.num_cached_blocks,
            preemptions=self.scheduler.num_preemptions,
            evicted_blocks=self.cache.num_evicted_blocks,
            totals=replace(self.totals),
        )

    def calibrate(self, *, measure: bool = True) -> None:
        """Learn the machine's times: from profiles on disk, else by measuring once, in a second or two.

        They say which steps run with 8-bit weights, and to `pgdsf` what computing evicted tokens anew costs. Call it
        while nothing runs; the worker does when it is idle.
        """
        if self._calibrated:
            return
        self._calibrated = self.config.weights != "auto" or calibrate(self.runner, measure=measure)
        if isinstance(self._policy, Pgdsf):
            self._policy.cost, known = recompute_cost(self.runner, measure=measure)
            self._calibrated = self._calibrated and known

    def check_invariants(self) -> None:
        """Assert the conservation laws of DESIGN section 3."""
        self.cache.check_invariants()

    def _make_sampler(self, params: SamplingParams, prompt: Prompt, compiled: "LLMatcher | None") -> Sampler:
        ends = sorted(stop_tokens(params, self.tokenizer))
        wanted = adjustments(params, prompt.tokens, ends, self.runner.model.config.vocab_size)
        constraint = None if params.grammar is None else self.grammars.constraint(params.grammar, compiled)
        return Sampler(params, wanted, constraint)

    def _enqueue(self, request: Request, before: Sequence[Request]) -> None:
        try:
            self.scheduler.add(request, before)
        except QueueFullError as error:
            for other in before:
                self._intake.forget(other)
            error.retry_after = self._pace.seconds_until_place(len(self.scheduler.waiting), perf_counter())
            raise

    def _end_late(self) -> None:
        """End the requests for which nobody waits any more."""
        now = perf_counter()
        for request in [request for request, deadline in self._deadlines.items() if deadline <= now]:
            self.end(request, DeadlineExceededError(TOO_LATE))

    def _give_up(self, request: Request, error: Exception) -> None:
        """End a request that fails alone in a step."""
        if not isinstance(error, GrammarError):  # which says itself what to do
            error = StepFailedError(f"the engine failed while computing this answer ({error}); ask again")
        self.end(request, error)

    def _cancel_unawaited(self, requests: Sequence[Request]) -> None:
        """Cancel what was to be computed for a request that has ended, unless others wait for it too."""
        for other in requests:
            if other.state is RequestState.WAITING and not self._is_awaited(other):
                self.cancel(other)

    def _is_awaited(self, request: Request) -> bool:
        """Tell whether a request that has not ended needs this one first."""
        others = (other for other in self._streams if other.state is not RequestState.FINISHED)
        return any(request in other.prerequisites for other in others)

    def _run(self, work: Sequence[ScheduledWork]) -> list[list[int] | Exception]:
        """Compute the step's tokens and sample what follows.

        Returns:
            For each item its tokens, none where its end is not reached; or why they cannot be sampled.
        """
        started = perf_counter()
        batch = build_batch(work, self.config.block_size, self.config.device)
        for item in work:
            timings = self._streams[item.request].timings
            if timings.first_scheduled is None:
                timings.first_scheduled = started
                self._pace.note(started)
        logits = self.runner.run(batch)
        tokens, row = list[list[int] | Exception](), 0
        for item in work:
            rows = (1 + len(item.draft)) * item.samples
            tokens.append(self._sample(item, logits[row : row + rows]) if item.samples else [])
            row += rows
        self._record(work, perf_counter() - started)
        return tokens

    def _sample(self, item: ScheduledWork, logits: "Tensor") -> list[int] | Exception:
        """Sample from an item's own rows; what goes wrong concerns no other."""
        try:
            return sample_rows(logits, [self._samplers[item.request]], [item.draft])[0]
        except GrammarError as error:
            return error
        except Exception as error:
            logger.exception("request %d: its next token cannot be chosen", item.request.id)
            return error

    def _record(self, work: Sequence[ScheduledWork], seconds: float) -> None:
        """Tell the budget what a step without drafts took."""
        draft_rows = sum(len(item.draft) for item in work)
        self.totals.drafted_tokens += draft_rows
        if not draft_rows:
            decode_rows = sum(item.decodes for item in work)
            prefill_tokens = sum(item.num_tokens for item in work) - decode_rows
            self.scheduler.step_budget.record(decode_rows, prefill_tokens, seconds)

    def _commit(self, work: Sequence[ScheduledWork], sampled: Sequence[Sequence[int] | Exception]) -> None:
        """Record progress, publish what is computed, hand out tokens."""
        self.totals.steps += 1
        for item, tokens in zip(work, sampled, strict=True):
            if isinstance(tokens, Exception):
                self._give_up(item.request, tokens)
                continue
            try:
                self._advance(item, tokens)
            except Exception as error:
                logger.exception("request %d: what was computed cannot be taken over", item.request.id)
                self._give_up(item.request, error)

    def _advance(self, item: ScheduledWork, tokens: Sequence[int]) -> None:
        request = item.request
        request.held.num_computed_tokens += item.num_certain_tokens
        reason = self._append(request, tokens)
        if not item.samples and request.held.num_remaining_tokens == 0:
            reason = FinishReason.LENGTH
        self.cache.publish(request)
        if reason is not None:
            self._finish(request, reason)

    def _append(self, request: Request, tokens: Sequence[int]) -> FinishReason | None:
        """Take sampled tokens until the answer ends; return why it does, if so."""
        sampler = self._samplers[request]
        for i, token in enumerate(tokens):
            if i:  # the token before was in the draft, so its KV is there
                request.held.num_computed_tokens += 1
                self.totals.accepted_tokens += 1
            request.output_tokens.append(token)
            request.held.grow()
            self.totals.output_tokens += 1
            count = len(request.output_tokens)
            ending = FinishReason.LENGTH if count >= request.max_tokens else None
            if i == len(tokens) - 1 and sampler.is_complete:
                ending = FinishReason.STOP
            reason = self._streams[request].push(token, ending, tuple(sampler.logprobs[count - 1 : count]))
            if reason is not None:
                return reason
        return None

    def _finish(self, request: Request, reason: FinishReason) -> None:
        sampler = self._samplers[request]
        forced_logprobs = sampler.forced_logprobs if isinstance(sampler, ForcedSampler) else None
        generation = self._streams[request].finish(reason, forced_logprobs)
        self._close(request)
        self.totals.prompt_tokens += generation.num_prompt_tokens
        self.totals.cached_tokens += generation.cache.cached_tokens

    def _close(self, request: Request) -> None:
        """Take a request out that has its last event."""
        self.scheduler.finish(request)
        self._intake.forget(request)
        self.totals.finished += 1
        if not self.scheduler.has_work:
            self._pace.rest(perf_counter())
        del self._samplers[request]
        self._deadlines.pop(request, None)
        if request in self._unread:
            self._unread.remove(request)
            del self._streams[request]

    def _make_tier(self, store: "KVStore | None") -> "DiskTier | None":
        if store is None:
            return None
        from engine.kv_tier import DiskTier

        return DiskTier(store, self.runner.kv_cache, self.identity)


def _identify(folder: Path | None, config: EngineConfig, runner: ModelRunner) -> "KVIdentity":
    from engine.kv_identity import KVIdentity

    if folder is None:
        raise ModelFileError("an engine that was not made from a model folder has no identity; use from_pretrained")
    dtype, model = config.dtype, runner.model
    if dtype == "auto":
        dtype = str(resolve_dtype(config, folder, model.backend)).removeprefix("torch.")
    kv_dtype = str(runner.kv_cache.dtype).removeprefix("torch.")
    return KVIdentity.of(folder, model.config, dtype=dtype, kv_dtype=kv_dtype, block_size=config.block_size)
