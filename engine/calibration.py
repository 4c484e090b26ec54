"""Measures where 8-bit weights pay, by running both models on steps of growing size."""

from dataclasses import asdict
from statistics import median
from time import perf_counter

import torch

from engine.model_runner import ModelRunner
from engine.models.model import Model
from engine.profile import Profile, load_profile, profile_key, save_profile
from kernels.kv_cache import KVCache
from kernels.runs import Run, SequencePlan

__all__ = ["calibrate"]

# a step of up to 8 rows is bound by reading the weights, so the smaller ones are faster without measuring
UNMEASURED_LEAN_ROWS = 8
STEP_ROWS = (16, 24, 32, 48, 64, 96)
REPEATS = 5
BUDGET_SECONDS = 1.0  # nothing else runs meanwhile


def calibrate(runner: ModelRunner, *, measure: bool) -> bool:
    """Set how many rows the lean model serves, from the profile on disk or by measuring it now (about a second).

    Args:
        runner: with a lean model; without one there is nothing to set.
        measure: measure what no profile tells; otherwise it gets a careful value.

    Returns:
        Whether a measurement is behind the setting (or none is needed).
    """
    if runner.lean is None:
        return True
    key = _key(runner)
    profile = load_profile(key, Profile)
    if profile is None and measure:
        profile = Profile(lean_rows=_measure(runner.model, runner.lean, runner.kv_cache))
        save_profile(key, profile)
    runner.lean_rows = UNMEASURED_LEAN_ROWS if profile is None else profile.lean_rows
    return profile is not None


def _key(runner: ModelRunner) -> str:
    return profile_key(
        model=asdict(runner.model.config),
        dtype=str(runner.kv_cache.dtype),
        models=[_describe(runner.model), _describe(runner.lean)],
        kernels=getattr(getattr(runner.model.backend, "library", None), "variant", runner.model.backend.name),
        threads=torch.get_num_threads(),
    )


def _describe(model: Model | None) -> list[str]:
    """Name what the time of a model's products depends on."""
    stack = getattr(model, "stack", None)
    formats = [] if stack is None else [linear.format for linear in stack.layers[0].linears]
    return [type(model).__name__, *formats]


def _measure(full: Model, lean: Model, kv_cache: KVCache) -> int:
    """Return the largest measured number of rows up to which the lean model is never the slower one.

    A model whose steps are long is measured for fewer sizes: its larger steps stay with the full one.
    """
    fits = UNMEASURED_LEAN_ROWS
    deadline = perf_counter() + BUDGET_SECONDS
    for rows in STEP_ROWS:
        if perf_counter() > deadline:
            break
        seconds: dict[Model, list[float]] = {full: [], lean: []}
        for repeat in range(REPEATS):
            if repeat and perf_counter() > deadline:
                break
            for model, measured in seconds.items():
                measured.append(_step_seconds(model, rows, kv_cache))
        if median(seconds[lean]) >= median(seconds[full]):
            break
        fits = rows
    return fits


def _step_seconds(model: Model, rows: int, kv_cache: KVCache) -> float:
    """Time a step of `rows` tokens from an empty context, in a cache of its own."""
    size, config = kv_cache.block_size, model.config
    blocks = -(-rows // size)
    shape = (blocks, size, config.num_layers, config.num_kv_heads, config.head_dim)
    scratch = KVCache.allocate(*shape, kv_cache.dtype, device=kv_cache.data.device)
    sequence = SequencePlan(range(rows), (Run(tuple(range(blocks)), rows, 0),))
    positions = torch.arange(rows, device=kv_cache.data.device)
    started = perf_counter()
    plan = model.plan([sequence], size)
    model.forward(positions % config.vocab_size, positions, positions, plan, scratch, positions[-1:])
    return perf_counter() - started
