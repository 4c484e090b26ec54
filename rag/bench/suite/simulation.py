"""Hit rates of a stream by the size of the cache and by policy, on the engine's own bookkeeping, without a model.

Exact reuse has the device alone, as engines with prefix caching have; chunk reuse has every passage on disk before the
first request, as ingestion leaves it. Requests come one after the other.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import product

from engine.eviction import POLICIES
from rag.bench.certified import certified_repair
from rag.bench.suite.experiment import Experiment
from rag.bench.suite.records import SimulationRecord
from rag.bench.suite.requests import RequestStream
from rag.bench.trace_prompts import TracePrompts
from rag.bench.trace_replay import Replay
from rag.bench.trace_report import Variant
from rag.config import RagConfig
from rag.errors import InvalidRequestError
from rag.model_hub import ModelHub

__all__ = ["SHARES", "WAYS", "run_simulation"]

SHARES = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)  # of the distinct passages' tokens
WAYS = (("exact", "score"), ("exact", "cache"), ("chunk", "score"))  # reuse, and order of the passages


def run_simulation(
    experiment: Experiment, stream: RequestStream, config: RagConfig, *, repeat: int = 0
) -> Iterator[SimulationRecord]:
    """Yield the hit rates of every way to meet the cache, size and policy, as they are found.

    Sizes that do not hold the longest prompt are left out.

    Args:
        experiment: names the unit, and the repairs; without any, the certificate's is taken.
        stream: what is asked.
        config: names model and engine.
        repeat: which pass, for the unit's name.

    Raises:
        InvalidRequestError: no size holds the longest prompt, or a repair is not whole blocks.
        UnknownModelError: the model is not here.
        KeyboardInterrupt: after Ctrl-C.
    """
    prompts = TracePrompts(stream.template, tuple(one.prompt for one in stream.requests))
    repair = max(experiment.repairs) if experiment.repairs else certified_repair(config, prompts.template.tokens)
    folder, engine = ModelHub(config.models_dir).resolve(config.model), config.engine.build()
    sizes = _sizes(prompts, prompts.longest_blocks(engine.block_size, repair) * engine.block_size)
    for (reuse, order), (share, tokens), policy in product(WAYS, sizes, POLICIES):
        replay = Replay(prompts, folder, engine, lambda _: None, repair=repair, store=reuse == "chunk")
        variant = Variant(reuse=reuse, order=order, policy=policy, device=tokens)
        runs = replay.simulate([variant])
        if replay.interrupted:
            raise KeyboardInterrupt
        (figures,) = (run.figures for run in runs)
        yield SimulationRecord(
            unit=f"{experiment.name}/{repeat}",
            reuse=reuse,
            order=order,
            policy=policy,
            device_tokens=tokens,
            share=share,
            hit_rate=figures.passage_hit_rate,
            device_rate=figures.hit_tokens["device"] / max(figures.passage_tokens, 1),
        )


def _sizes(prompts: TracePrompts, needed: int) -> Sequence[tuple[float, int]]:
    """Return shares of the passages' tokens that hold `needed` ones, and how many they are."""
    sizes = [(share, math.ceil(share * prompts.distinct_tokens)) for share in SHARES]
    fitting = [(share, tokens) for share, tokens in sizes if tokens >= needed]
    if not fitting:
        raise InvalidRequestError(
            f"a cache for all {prompts.distinct_tokens} tokens of distinct passages does not hold the longest prompt, "
            f"which needs {needed}: take a workload of more passages"
        )
    return fitting
