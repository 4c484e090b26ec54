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
from engine.answers import Answers
from engine.calibration import calibrate
from engine.config import EngineConfig, SamplingParams
from engine.drafts import Drafts
from engine.endings import TOO_LATE, Endings
from engine.errors import DeadlineExceededError, EngineError, QueueFullError
from engine.eviction import Pgdsf, policy_named
from engine.intake import Intake
from engine.isolation import run_isolated
from engine.loading import identify, load_runner
from engine.model_runner import ModelRunner
from engine.outdated import OldestStates
from engine.output import Event, Generation
from engine.prefix_cache import PrefixCache
from engine.prompt import Prompt, Reuse, Segment
from engine.recompute_profile import recompute_cost
from engine.request import FinishReason, Request
from engine.scheduler import ScheduledWork, Scheduler
from engine.stats import EngineStats, Totals
from engine.step_budget import StepBudget
from engine.step_run import StepRun
from engine.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from engine.certificate import Certificates
    from engine.kv_identity import KVIdentity
    from engine.kv_protocol import KVStore
    from engine.kv_tier import DiskTier

__all__ = ["Engine", "PromptLike"]

logger = logging.getLogger(__name__)

PromptLike = Prompt | Sequence[int]
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
        self._identity = cache(partial(identify, folder, config, runner))
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
        self._answers = Answers(tokenizer, runner.model.config.vocab_size, self.totals)
        self._pace = AdmissionPace()
        self._intake = Intake(self.cache, self.tier, config, runner.model.config, self._identity, certificates)
        self._run = StepRun(config, self._answers, budget, self._pace, self.totals)
        self._endings = Endings(self.scheduler, self._intake, self._answers, self._pace, self.totals)
        self.grammars = self._answers.grammars
        self.max_model_len = self._intake.max_model_len
        self._oldest = OldestStates()
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
        runner, tokenizer = load_runner(Path(folder), config), Tokenizer(Path(folder))
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
        self._oldest.check(namespace, as_of)
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
        sampler = self._answers.sampler(wanted, sampling, compiled)
        request = self._intake.make(wanted, uncertified_repair=uncertified_repair)
        answers = self._answers.prepare(request, sampling, sampler, deadline)
        *before, _ = answers
        self._enqueue(request, before)  # last of what can fail: a request without its answer would break a step
        self._answers.keep(answers)
        return request

    def step(self) -> None:
        """Advance every request that can be: schedule, run, commit.

        One that fails ends with `StepFailedError`, and the others go on.
        """
        self._endings.end_late()
        if work := self.scheduler.schedule():
            for part, tokens in run_isolated(partial(self._run, self.runner), work, self._endings.give_up):
                self._commit(part, tokens)

    def stream(self, request: Request) -> Iterator[Event]:
        """Step the engine until the request has finished; yield its deltas, then its generation.

        Raises:
            StepFailedError: the request failed in a step.
            DeadlineExceededError: it was not complete before its deadline.
        """
        while request in self._answers:
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
        return self.cache.drop_namespace(namespace, self._answers)

    def outdate(self, namespace: str, state: int) -> None:
        """Refuse from now on the prompts that were made of an earlier state of a namespace than this.

        Something has been deleted: who has not submitted yet what he found before must not bring it back, and nobody
        waits for the background requests of the namespace, which are cancelled.
        """
        self._oldest.raise_to(namespace, state)
        for request in [other for other in self._answers if other.background and other.namespace == namespace]:
            self.cancel(request)

    def purge(self, namespace: str, passages: Sequence[tuple[int, ...]]) -> bool:
        """Remove all KV of these passages' tokens from the device, and what was computed after them.

        When nothing is left, blocks that nobody holds are overwritten with zeros. What waits to be written
        (`tier.flush`) and what a store has of them is to be purged there, afterwards.

        Returns:
            Whether nothing is left; False while a request that reads one of them runs or waits: purge again when it
            has ended.
        """
        complete = self.cache.purge(namespace, passages, self._answers)
        if complete:
            self.runner.kv_cache.erase(self.cache.pool.free_blocks)
        return complete

    def close(self) -> None:
        """Write what is still to be kept on disk."""
        if self.tier is not None:
            self.tier.close()

    def cancel(self, request: Request) -> None:
        """End a request now, wherever it is, and free its blocks; nothing happens when it has ended already."""
        self._endings.cancel(request)

    def end(self, request: Request, error: EngineError) -> None:
        """End a request now with an error in the place of its generation; nothing happens when it has ended already."""
        self._endings.end(request, error)

    def forget(self, request: Request) -> None:
        """Cancel a request and drop its events; nothing happens when its generation has been taken already."""
        self.cancel(request)
        if request in self._answers:
            self.take_events(request)

    def take_events(self, request: Request) -> list[Event | EngineError]:
        """Return the events of a request that nobody has taken yet; after its generation or error it is forgotten."""
        return self._answers.take(request)

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

    def _enqueue(self, request: Request, before: Sequence[Request]) -> None:
        try:
            self.scheduler.add(request, before)
        except QueueFullError as error:
            for other in before:
                self._intake.forget(other)
            error.retry_after = self._pace.seconds_until_place(len(self.scheduler.waiting), perf_counter())
            raise

    def _commit(self, work: Sequence[ScheduledWork], sampled: Sequence[Sequence[int] | Exception]) -> None:
        """Record progress, publish what is computed, hand out tokens."""
        self.totals.steps += 1
        for item, tokens in zip(work, sampled, strict=True):
            if isinstance(tokens, Exception):
                self._endings.give_up(item.request, tokens)
                continue
            try:
                self._advance(item, tokens)
            except Exception as error:
                logger.exception("request %d: what was computed cannot be taken over", item.request.id)
                self._endings.give_up(item.request, error)

    def _advance(self, item: ScheduledWork, tokens: Sequence[int]) -> None:
        request = item.request
        request.held.num_computed_tokens += item.num_certain_tokens
        reason = self._answers.append(request, tokens)
        if not item.samples and request.held.num_remaining_tokens == 0:
            reason = FinishReason.LENGTH
        self.cache.publish(request)
        if reason is not None:
            self._endings.finish(request, reason)

    def _make_tier(self, store: "KVStore | None") -> "DiskTier | None":
        if store is None:
            return None
        from engine.kv_tier import DiskTier

        return DiskTier(store, self.runner.kv_cache, self.identity)
