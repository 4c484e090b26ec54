"""Replays the prompts of a trace, in every variant, on the engine or on its bookkeeping alone."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Protocol

from engine.config import EngineConfig
from engine.eviction import policy_named
from engine.models.config import ModelConfig
from engine.prefix_cache import PrefixCache
from engine.prompt import Prompt, Reuse, SegmentKind
from engine.recompute_cost import RecomputeCost
from engine.recompute_profile import counted_cost
from rag.bench.progress import BenchEvent, Progress
from rag.bench.trace_prompts import TracePrompts
from rag.bench.trace_report import Answer, Figures, TraceRun, Variant
from rag.bench.trace_simulation import SimulatedEngine, SimulatedTier
from rag.errors import InvalidRequestError

__all__ = ["Replay"]

NAMESPACE = "bench-trace"


class _Contestant(Protocol):
    """Answers prompts: the engine, or its bookkeeping alone."""

    cache: PrefixCache

    def answer(
        self, prompt: Prompt, *, reuse: Reuse, repair: int, namespace: str, groups: Sequence[int] = ()
    ) -> Answer:
        """Run a prompt to its first token."""


class Replay:
    """The prompts, and how they are answered.

    Args:
        prompts: in order of time.
        folder: of the model.
        config: of the engine, but for pool and policy.
        progress: called as it advances.
        repair: tokens that chunk reuse computes at a shifted passage's head; whole blocks.
        store: whether the passages' KV is on disk before the first request.

    Attributes:
        interrupted: whether Ctrl-C ended it early.
        problems: self-checks that failed.
        repair: as given.
        dtype: in which the engine computed.
        fill_seconds: that it took to compute and store the passages.

    Raises:
        InvalidRequestError: the repair is not whole blocks.
    """

    def __init__(
        self,
        prompts: TracePrompts,
        folder: Path,
        config: EngineConfig,
        progress: Progress,
        *,
        repair: int,
        store: bool,
    ) -> None:
        self.interrupted = False
        self.problems: list[str] = []
        self.dtype: str | None = None
        self.fill_seconds: float | None = None
        self.block_size = config.block_size
        self._prompts, self._folder, self._config, self._progress = prompts, folder, config, progress
        self.repair, self._store = repair, store
        if repair % config.block_size:
            raise InvalidRequestError(f"repair is {repair}; it must be whole blocks of {config.block_size} tokens")

    def simulate(self, variants: Iterable[Variant]) -> list[TraceRun]:
        """Run the bookkeeping of every variant, or of those before Ctrl-C."""
        runs: list[TraceRun] = []
        for variant in variants:
            if not self.interrupted:
                runs += self._replay(variant, self._simulated(variant), "simulate")
        return runs

    def measure(self, variants: Sequence[Variant], work_dir: Path) -> list[TraceRun]:
        """Run every variant on the engine, or those before Ctrl-C, and compare each with its simulation.

        Raises:
            InvalidRequestError: a pool that this machine cannot hold.
        """
        from rag.bench.trace_real import Models

        models = Models(self._folder, self._config, work_dir, keeps=self._store)
        self.dtype = str(models.dtype).removeprefix("torch.")
        runs: list[TraceRun] = []
        with models.store(self._prompts.all_blocks(self.block_size, 0)) as store:
            if store is not None:
                self._progress(BenchEvent("load", 0, None))
                with models.engine(self._num_blocks(variants[0]), "lru", store) as engine:
                    template, passages = self._prompts.template, self._prompts.passages
                    self.fill_seconds = engine.fill(NAMESPACE, template, passages, self._filled)
            for variant in variants:
                if self.interrupted:
                    break
                with models.engine(self._num_blocks(variant), variant.policy, store) as engine:
                    cost, found = engine.recompute_cost, self._replay(variant, engine, "measure")
                for run in found:
                    self._compare(run, cost)
                runs += found
        return runs

    def _simulated(self, variant: Variant, cost: RecomputeCost | None = None) -> SimulatedEngine:
        model = ModelConfig.from_folder(self._folder)
        tier = None
        if self._store:
            tier = SimulatedTier()
            tier.fill(NAMESPACE, self._prompts.template, self._prompts.passages)
        policy = policy_named(variant.policy, cost or counted_cost(model))
        return SimulatedEngine(model, self._config, self._num_blocks(variant), policy, tier)

    def _replay(self, variant: Variant, contestant: _Contestant, stage: str) -> list[TraceRun]:
        """Answer all prompts, or those before Ctrl-C; no run where that comes before the first."""
        began, answers = perf_counter(), list[Answer]()
        prompts = self._prompts.prompts
        try:
            for prompt in prompts:
                passages = sum(segment.kind is SegmentKind.PASSAGE for segment in prompt.segments)
                answers.append(
                    contestant.answer(
                        prompt,
                        reuse=Reuse(variant.reuse),
                        repair=self.repair,
                        namespace=NAMESPACE,
                        groups=(passages,) if variant.order == "cache" and passages else (),
                    )
                )
                self._progress(BenchEvent(stage, len(answers), len(prompts)))
        except KeyboardInterrupt:
            self.interrupted = True
        if not answers:
            return []
        run = TraceRun(
            variant=variant,
            device_blocks=contestant.cache.pool.num_blocks,
            figures=Figures.of(answers, repair=self.repair if variant.reuse == "chunk" else 0),
            evicted_blocks=contestant.cache.num_evicted_blocks,
            seconds=perf_counter() - began,
            answers=answers,
        )
        return [run]

    def _compare(self, run: TraceRun, cost: RecomputeCost) -> None:
        """Note where the engine found anything else than its simulation does."""
        simulated = self._simulated(run.variant, cost)
        differing = [
            number
            for number, (real, expected) in enumerate(
                zip(run.answers, self._replay(run.variant, simulated, "check")[0].answers, strict=False)
            )
            if (real.passages, real.hits, real.disk, real.outcomes)
            != (expected.passages, expected.hits, expected.disk, expected.outcomes)
        ]
        if differing:
            self.problems.append(
                f"{run.variant}: {len(differing)} of {len(run.answers)} requests found other passages cached than the "
                f"simulation says (the first is number {differing[0]})"
            )

    def _num_blocks(self, variant: Variant) -> int:
        """Return the size of the pool.

        Raises:
            InvalidRequestError: it does not hold the longest prompt.
        """
        if variant.device is None:
            return self._prompts.all_blocks(self.block_size, self.repair)
        needed = self._prompts.longest_blocks(self.block_size, self.repair)
        blocks = variant.device // self.block_size
        if blocks < needed:
            raise InvalidRequestError(
                f"device-tokens: {variant.device} tokens are {blocks} blocks, and a prompt of the trace needs "
                f"{needed}; give more"
            )
        return blocks

    def _filled(self, done: int) -> None:
        self._progress(BenchEvent("fill", done, len(self._prompts.passages)))
