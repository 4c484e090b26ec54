"""A trace on the engine's own bookkeeping, without a model: what is found, loaded and evicted, and nothing else.

Intake, scheduler, prefix cache, tree, pool and policy are the real ones.
"""

from collections.abc import Sequence

from engine.config import EngineConfig
from engine.drafts import Drafts
from engine.eviction import Policy
from engine.intake import Intake
from engine.kv_identity import KVIdentity
from engine.models.config import ModelConfig
from engine.prefix_cache import PrefixCache
from engine.prompt import Prompt, Reuse, Segment
from engine.request import Request
from engine.scheduler import Scheduler
from engine.stats import cache_report
from engine.step_budget import StepBudget
from rag.bench.trace_report import Answer

__all__ = ["SimulatedEngine", "SimulatedTier"]

Tokens = tuple[int, ...]


class SimulatedTier:
    """A tier that remembers what it was given to keep, and not its content."""

    def __init__(self) -> None:
        self._known: set[tuple[str, Tokens, Tokens]] = set()

    def fill(self, namespace: str, template: Segment, passages: Sequence[Segment]) -> None:
        """Keep the canonical KV of a template and of these passages, as ingestion leaves it."""
        self._known.add((namespace, template.tokens, ()))
        self._known.update((namespace, template.tokens, passage.tokens) for passage in passages)

    def has(self, namespace: str, template: Tokens, passage: Tokens) -> bool:
        """Tell whether a load would succeed."""
        return (namespace, template, passage) in self._known

    def load(self, namespace: str, template: Tokens, passage: Tokens, blocks: Sequence[int]) -> bool:  # noqa: ARG002
        """Tell the same; blocks have no content here."""
        return self.has(namespace, template, passage)

    def save(self, namespace: str, template: Tokens, passage: Tokens, blocks: Sequence[int]) -> bool:  # noqa: ARG002
        """Keep it."""
        self._known.add((namespace, template, passage))
        return True

    def keeps(self, namespace: str, template: Tokens, passage: Tokens) -> bool:
        """Tell the same as `has`: it is written at once."""
        return self.has(namespace, template, passage)

    def prefetch(self, namespace: str, template: Tokens, passages: Sequence[Tokens]) -> None:
        """Do nothing: there is nothing to read."""


class SimulatedEngine:
    """Answers prompts one after the other with a token that nobody computed.

    Args:
        model: whose limits hold.
        config: the engine's settings, but for the policy.
        num_blocks: size of the pool.
        policy: of eviction.
        tier: what is on disk; None is no disk.
    """

    def __init__(
        self, model: ModelConfig, config: EngineConfig, num_blocks: int, policy: Policy, tier: SimulatedTier | None
    ) -> None:
        self.cache = PrefixCache(num_blocks, config.block_size, policy=policy, tier=tier)
        self._scheduler = Scheduler(
            self.cache,
            StepBudget(config.max_num_batched_tokens, config.block_size, config.max_slowdown),
            Drafts(0),
            max_num_seqs=config.max_num_seqs,
            max_num_waiting=config.max_num_waiting,
        )
        self._intake = Intake(self.cache, tier, config, model, _no_identity, None)

    def answer(
        self, prompt: Prompt, *, reuse: Reuse, repair: int, namespace: str, groups: Sequence[int] = ()
    ) -> Answer:
        """Run a prompt to its first token."""
        wanted = Request(0, prompt, 1, reuse=reuse, namespace=namespace, groups=tuple(groups))
        request = self._intake.make(wanted, uncertified_repair=repair if reuse is Reuse.CHUNK else None)
        self._scheduler.add(request, request.prerequisites)
        while self._scheduler.has_work:
            self._step()
        return Answer.of(cache_report(request))

    def _step(self) -> None:
        for item in self._scheduler.schedule():
            request = item.request
            request.held.num_computed_tokens += item.num_tokens
            if item.samples:
                request.output_tokens.append(request.prompt.tokens[-1])
                request.held.grow()
            self.cache.publish(request)
            if item.samples or request.held.num_remaining_tokens == 0:
                self._scheduler.finish(request)
                self._intake.forget(request)


def _no_identity() -> KVIdentity:
    raise AssertionError("a simulation has no KV that could be certified")
