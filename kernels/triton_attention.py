"""The `triton` backend: paged attention on CUDA devices. What work items, tiles and parts are: `triton_plan`.

A layer is one launch for each tile height that the step needs and one that merges parts, if any row has several.
"""

import functools
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.errors import ShapeError
from kernels.kv_cache import KVCache
from kernels.plan import AttentionPlan
from kernels.triton_kernels import INTERPRETED, attend_items, reduce_parts
from kernels.triton_kv import RotationTables, Tables, device_of, merge, padded_dim, write_kv
from kernels.triton_plan import DeviceWork, StaticWork, Tiling, make_work

__all__ = ["StaticPlan", "TritonBackend"]

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
MIN_LANES, MAX_LANES = 16, 128
# elements of the float32 accumulator of a tile that the registers of a program hold
MAX_ACCUMULATOR = 128 * 128
# keys of a split-KV piece; shorter ones cost more in merging than they gain
MIN_KEYS_PER_ITEM = 128
# programs for each multiprocessor, so that uneven ones overlap
PROGRAMS_PER_PROCESSOR = 2
# of the merged output; few and large programs suit the interpreter
ELEMENTS_PER_PROGRAM = 1 << 14 if INTERPRETED else 1 << 10
# for which the interpreter cuts work: it runs one item after the other, so into few
INTERPRETED_PROCESSORS = 6


class TritonBackend:
    """Work items over all groups of runs, each run read once for all rows of a tile; parts are merged by LSE."""

    name = "triton"

    def __init__(self) -> None:
        self._tables = RotationTables()

    @classmethod
    def unavailable_reason(cls, device: str) -> str | None:
        """Return why this backend cannot run on the device, or None."""
        kind = torch.device(device).type
        if kind == "cpu":
            return (
                None if INTERPRETED else "on the CPU it needs Triton's interpreter (TRITON_INTERPRET=1), which is slow"
            )
        if kind != "cuda":
            return f"it runs on CUDA devices, not on {device}"
        if not torch.cuda.is_available():
            return f"torch {torch.__version__} sees no CUDA device"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return f"{device} has compute capability below 8.0"
        return None

    def attend(
        self, q: Tensor, plan: AttentionPlan, kv_cache: KVCache, layer: int, *, lse_per_run: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend as `kernels.backend.Backend.attend` says."""
        plan.check(q, kv_cache)
        q = q if q.stride(-1) == 1 else q.contiguous()
        work = self._work(plan, q.shape[1], kv_cache, per_run=lse_per_run)
        tables = self._tables.get(plan.rope, work.num_angles)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        parts = _Parts.direct(out) if work.is_direct and not lse_per_run else _Parts.allocate(q, work.num_parts)
        run_lse = parts.lse.new_empty((plan.num_rows, plan.max_runs, q.shape[1])) if lse_per_run else None
        with device_of(q):
            _launch_items(q, plan, kv_cache, layer, work, tables, parts)
            if not parts.are_results:
                _launch_reduce(parts, work.row_parts, out)
            if run_lse is not None:
                _launch_reduce(parts, work.run_parts, run_lse, only_lse=True)
        return out if run_lse is None else (out, run_lse)

    def write_kv(self, k: Tensor, v: Tensor, kv_cache: KVCache, layer: int, slot_mapping: Tensor) -> None:
        """Store as `kernels.backend.Backend.write_kv` says; rows of a negative slot are left out."""
        write_kv(k, v, kv_cache, layer, slot_mapping)

    def rotate_and_write_kv(
        self, k: Tensor, v: Tensor, plan: AttentionPlan, kv_cache: KVCache, layer: int, slot_mapping: Tensor
    ) -> None:
        """Rotate k [T, num_kv_heads, dim] to the plan's query positions and store it and v, in one launch."""
        positions = plan.memo("triton positions", lambda: _num_positions(plan))
        rotation = plan.rope, plan.query_positions, self._tables.get(plan.rope, positions)
        write_kv(k, v, kv_cache, layer, slot_mapping, rotation)

    def merge(self, out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
        """Merge as `kernels.merge.merge` says."""
        return merge(out_a, lse_a, out_b, lse_b)

    def _work(self, plan: AttentionPlan, num_heads: int, kv_cache: KVCache, *, per_run: bool) -> DeviceWork:
        """Return the work of the plan, made for the first layer that asks."""
        device = plan.query_positions.device
        tiling = _tiling(num_heads, kv_cache, _num_processors(device))

        def make() -> DeviceWork:
            return DeviceWork.copy_of(make_work(plan, tiling, per_run=per_run), device)

        return plan.memo(_memo_key(tiling, plan.sliding_window, per_run=per_run), make)


class StaticPlan:
    """A plan of a fixed number of rows whose tensors are refilled, for CUDA graphs.

    Attributes:
        plan: stays the same; its sequences are unknown, so it is for this backend only.
    """

    def __init__(
        self,
        model_plan: AttentionPlan,
        kv_cache: KVCache,
        *,
        num_rows: int,
        num_heads: int,
        windows: Iterable[int | None],
        max_blocks: int,
        max_positions: int,
    ) -> None:
        """Allocate the tensors.

        Args:
            model_plan: any plan of the model, for its rope and scale.
            kv_cache: which the steps read.
            num_rows: query rows of a step, those that pad it included.
            num_heads: query heads.
            windows: sliding windows of all layers.
            max_blocks: blocks that a step reads, see `StaticWork`.
            max_positions: relative positions must be below it.
        """
        device = kv_cache.data.device
        tiling = _tiling(num_heads, kv_cache, _num_processors(device))
        # rows together for what they share, and alone, or nearly, for what is their own
        lanes = dict.fromkeys((tiling.lanes[0], tiling.lanes_for(num_rows)))
        fixed = replace(tiling, lanes=tuple(lanes))
        memo: dict[Hashable, Any] = {"triton positions": max_positions}
        self._works: dict[int | None, StaticWork] = {}
        for window in windows:
            if window not in self._works:
                work = StaticWork(num_rows, fixed, max_blocks=max_blocks, num_angles=max_positions, device=device)
                memo[_memo_key(tiling, window, per_run=False)] = work.work
                self._works[window] = work
        positions = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.plan = replace(model_plan, sequences=(), rows=(), query_positions=positions, _memo=memo)

    def fill(self, plan: AttentionPlan) -> bool:
        """Take over a step of at most as many rows; the rest attend to nothing. False when it does not fit."""
        if plan.num_rows > self.plan.num_rows:
            return False
        if not all(work.fill(plan.with_window(window)) for window, work in self._works.items()):
            return False
        self.plan.query_positions[: plan.num_rows].copy_(plan.query_positions, non_blocking=True)
        return True


@dataclass(frozen=True, eq=False, slots=True)
class _Parts:
    """What the items leave: out [P, heads, dim] and lse [P, heads], float32; or the results [T, heads, dim]."""

    out: Tensor
    lse: Tensor
    are_results: bool

    @classmethod
    def allocate(cls, q: Tensor, num_parts: int) -> "_Parts":
        out = torch.empty((num_parts, *q.shape[1:]), dtype=torch.float32, device=q.device)
        return cls(out, out.new_empty(out.shape[:2]), are_results=False)

    @classmethod
    def direct(cls, out: Tensor) -> "_Parts":
        return cls(out, out, are_results=True)


def _launch_items(
    q: Tensor,
    plan: AttentionPlan,
    kv_cache: KVCache,
    layer: int,
    work: DeviceWork,
    tables: Tables,
    parts: _Parts,
) -> None:
    """Attend item by item."""
    keys, values = kv_cache.layer(layer)
    key_scales, value_scales = kv_cache.layer_scales(layer) or (keys, values)
    compute = _compute_dtype(q.dtype, q.dtype if kv_cache.scales is not None else kv_cache.dtype)
    for lanes, items in work.items.items():
        attend_items[items.shape[0], kv_cache.num_kv_heads](
            q,
            keys,
            values,
            key_scales,
            value_scales,
            plan.query_positions,
            items,
            work.rows,
            work.entries,
            *tables,
            parts.out,
            parts.lse,
            *q.stride()[:2],
            keys.stride(0),
            key_scales.stride(0),
            plan.softmax_scale,
            plan.sliding_window or 0,
            work.longest,
            GROUP=q.shape[1] // kv_cache.num_kv_heads,
            DIM=kv_cache.head_dim,
            DIM_PAD=padded_dim(kv_cache.head_dim),
            ROTARY=plan.rope.rotary_dim,
            INTERLEAVED=plan.rope.interleaved,
            BLOCK_SIZE=kv_cache.block_size,
            LANES=lanes,
            HAS_WINDOW=plan.sliding_window is not None,
            SCALED=kv_cache.scales is not None,
            DIRECT=parts.are_results,
            COMPUTE=DTYPES[compute],
            # the interpreter holds bfloat16 as integers and cannot multiply it
            OPERAND=tl.float32 if INTERPRETED else DTYPES[compute],
        )


def _launch_reduce(parts: _Parts, bounds: Tensor, out: Tensor, *, only_lse: bool = False) -> None:
    """Merge parts into out [..., heads, dim] of so many owners as there are bounds, or their LSE into [..., heads]."""
    if out.numel():
        reduce_parts[(triton.cdiv(out.numel(), ELEMENTS_PER_PROGRAM),)](
            parts.out,
            parts.lse,
            bounds,
            out,
            out.numel(),
            HEADS=parts.out.shape[1],
            DIM=parts.out.shape[2],
            ONLY_LSE=only_lse,
            ELEMENTS=ELEMENTS_PER_PROGRAM,
        )


def _tiling(num_heads: int, kv_cache: KVCache, num_processors: int) -> Tiling:
    """Return how to cut work for a device of so many multiprocessors."""
    group = num_heads // kv_cache.num_kv_heads
    low = max(MIN_LANES, triton.next_power_of_2(group))
    high = max(low, min(MAX_LANES, MAX_ACCUMULATOR // padded_dim(kv_cache.head_dim)))
    lanes = [low]
    while lanes[-1] < high:
        lanes.append(2 * lanes[-1])
    programs = PROGRAMS_PER_PROCESSOR * num_processors
    return Tiling(
        heads_per_kv=group,
        lanes=tuple(lanes),
        target_items=-(-programs // kv_cache.num_kv_heads),
        min_blocks=-(-MIN_KEYS_PER_ITEM // kv_cache.block_size),
    )


def _memo_key(tiling: Tiling, window: int | None, *, per_run: bool) -> tuple[object, ...]:
    return ("triton", tiling, window, per_run)


def _num_positions(plan: AttentionPlan) -> int:
    return 1 + max(
        (sequence.query_positions[-1] for sequence in plan.sequences if len(sequence.query_positions)), default=0
    )


def _compute_dtype(queries: torch.dtype, cache: torch.dtype) -> torch.dtype:
    """Return the dtype in which tiles are multiplied."""
    for dtype in (queries, cache):
        if dtype not in DTYPES:
            raise ShapeError(f"the triton backend has no kernels for {dtype}; use {', '.join(map(str, DTYPES))}")
    return torch.float32 if queries is torch.float32 else cache


@functools.cache
def _num_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
