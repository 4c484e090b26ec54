"""Measures what computing tokens anew costs, for the eviction policy that weighs it."""

from dataclasses import asdict
from time import perf_counter

import torch

from engine.model_runner import ModelRunner
from engine.models.config import ModelConfig
from engine.models.model import Model
from engine.profile import load_profile, profile_key, save_profile
from engine.recompute_cost import RecomputeCost
from kernels.kv_cache import KVCache
from kernels.runs import Run, SequencePlan

__all__ = ["counted_cost", "recompute_cost"]

CACHED = (0, 512, 2048)
NEW = (32, 128, 512)
BUDGET_SECONDS = 2.0  # nothing else runs meanwhile


def recompute_cost(runner: ModelRunner, *, measure: bool) -> tuple[RecomputeCost, bool]:
    """Return T(cached, new) from the profile on disk, by measuring it now, or else by counting operations.

    Args:
        runner: whose model computes what is published.
        measure: measure what no profile tells; a model too slow for that in about two seconds is left to counting.

    Returns:
        The cost in units of its own, which are about the same for all three, and whether it was measured.
    """
    model, cache = runner.model, runner.kv_cache
    key = profile_key(
        recompute=asdict(model.config),
        dtype=str(cache.dtype),
        kernels=getattr(getattr(model.backend, "library", None), "variant", model.backend.name),
        threads=torch.get_num_threads(),
    )
    cost = load_profile(key, RecomputeCost.of_record)
    if cost is None and measure:
        cost = _measure(model, cache)
        save_profile(key, cost)
    return counted_cost(model.config) if cost is None else cost.relative(), cost is not None


def counted_cost(config: ModelConfig) -> RecomputeCost:
    """Count the multiplications and additions of linear layers and attention, in units of about a token's."""
    heads, kv_heads, dim, hidden = config.num_heads, config.num_kv_heads, config.head_dim, config.hidden_size
    linear = hidden * (2 * heads * dim + 2 * kv_heads * dim + 3 * config.intermediate_size)
    cost = RecomputeCost.of_operations(2 * linear, 4 * heads * dim, max_tokens=config.max_position_embeddings)
    return cost.relative()


def _measure(model: Model, kv_cache: KVCache) -> RecomputeCost:
    """Time steps after contexts of zeros, shortest first; the budget's end leaves longer contexts to the last one."""
    limit = model.config.max_position_embeddings
    new = tuple(n for n in NEW if n <= limit) or (limit,)
    deadline = perf_counter() + BUDGET_SECONDS
    rows: dict[int, tuple[float, ...]] = {}
    for cached in CACHED:
        if cached + new[-1] > limit or (rows and perf_counter() > deadline):
            break
        rows[cached] = tuple(_seconds(model, cached, n, kv_cache) for n in new)
    return RecomputeCost(tuple(rows), new, tuple(rows.values()))


@torch.inference_mode()
def _seconds(model: Model, cached: int, new: int, kv_cache: KVCache) -> float:
    """Time the computing of new tokens, once to warm up and once to count, in a cache of its own."""
    size, config, device = kv_cache.block_size, model.config, kv_cache.data.device
    blocks = -(-(cached + new) // size)
    shape = (blocks, size, config.num_layers, config.num_kv_heads, config.head_dim)
    scratch = KVCache.allocate(*shape, kv_cache.dtype, device=device)
    scratch.data.zero_()
    positions = torch.arange(cached, cached + new, device=device)
    sequence = SequencePlan(range(cached, cached + new), (Run(tuple(range(blocks)), cached + new, 0),))
    for _ in range(2):
        started = perf_counter()
        plan = model.plan([sequence], size)
        model.forward(positions % config.vocab_size, positions, positions, plan, scratch, positions[-1:] - cached)
        seconds = perf_counter() - started
    return seconds
