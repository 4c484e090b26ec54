"""The `cpu` backend: attention, writing and merging in the C++ library of the best variant that the processor runs."""

import ctypes
import weakref
from array import array
from collections.abc import Iterable

import torch
from torch import Tensor

from kernels.cpu_library import DTYPE_CODES, CpuLibrary, load_library, unavailable_reason
from kernels.errors import ShapeError
from kernels.kv_cache import KVCache
from kernels.plan import AttentionPlan
from kernels.runs import Run

__all__ = [
    "AttendArgs",
    "CpuBackend",
    "CpuPlan",
    "MergeArgs",
    "RmsNormArgs",
    "RopeWriteArgs",
    "SiluMulArgs",
    "make_cpu_plan",
]

KV_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)

_LONG, _INT, _FLOAT, _POINTER = ctypes.c_int64, ctypes.c_int32, ctypes.c_float, ctypes.c_void_p


class _AttendPlanArgs(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("positions", "group_sizes", "members", "runs", "blocks", "inv_freq")),
        *((name, _LONG) for name in ("rows", "groups", "window", "heads", "kv_heads", "head_dim", "rotary_dim")),
        *((name, _LONG) for name in ("block_size", "block_stride", "layer_stride", "num_threads")),
        *((name, _FLOAT) for name in ("rope_scale", "softmax_scale")),
        *((name, _INT) for name in ("interleaved", "dtype", "per_run")),
    )


class AttendArgs(ctypes.Structure):
    """`AttendArgs` of cpu/attention.h."""

    _fields_ = (
        *((name, _POINTER) for name in ("plan", "q", "out", "cache", "lse")),
        *((name, _LONG) for name in ("q_stride", "out_stride", "layer", "lse_columns")),
    )


class RmsNormArgs(ctypes.Structure):
    """`RmsNormArgs` of cpu/elementwise.h."""

    _fields_ = (
        *((name, _POINTER) for name in ("x", "y", "weight")),
        *((name, _LONG) for name in ("x_stride", "y_stride", "rows", "heads", "dim")),
        ("eps", _FLOAT),
    )


class SiluMulArgs(ctypes.Structure):
    """`SiluMulArgs` of cpu/elementwise.h."""

    _fields_ = (
        *((name, _POINTER) for name in ("gate", "up", "y")),
        *((name, _LONG) for name in ("x_stride", "y_stride", "rows", "dim")),
    )


class RopeWriteArgs(ctypes.Structure):
    """`RopeWriteArgs` of cpu/elementwise.h."""

    _fields_ = (
        *((name, _POINTER) for name in ("k", "v", "cos", "sin", "slots", "cache")),
        *((name, _LONG) for name in ("k_stride", "v_stride", "rows", "kv_heads", "head_dim", "rotary_dim")),
        *((name, _LONG) for name in ("block_size", "block_stride", "layer_stride", "layer")),
        *((name, _INT) for name in ("interleaved", "dtype")),
    )


class MergeArgs(ctypes.Structure):
    """`MergeArgs` of cpu/elementwise.h."""

    _fields_ = (
        *((name, _POINTER) for name in ("out_a", "lse_a", "out_b", "lse_b", "out", "lse")),
        *((name, _LONG) for name in ("rows", "dim")),
    )


class CpuBackend:
    """Attention of the C++ library: reads every group of runs once for all query rows that see it.

    Args:
        variant: of the library; None is the best one.
    """

    name = "cpu"

    def __init__(self, variant: str | None = None) -> None:
        self.library = load_library(variant)
        self._attend = self.library.function("preread_attend", [_POINTER])
        self._write = self.library.function("preread_rope_write_kv", [_POINTER])
        self._merge = self.library.function("preread_merge", [_POINTER])

    @classmethod
    def unavailable_reason(cls, device: str) -> str | None:
        """Return why this backend cannot run on the device, or None."""
        if torch.device(device).type != "cpu":
            return f"it runs on the CPU only, not on {device}"
        return unavailable_reason()

    def attend(
        self, q: Tensor, plan: AttentionPlan, kv_cache: KVCache, layer: int, *, lse_per_run: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend as `kernels.backend.Backend.attend` says."""
        plan.check(q, kv_cache)
        _check_cache(kv_cache)
        queries = q.to(torch.float32).contiguous()
        out = torch.empty_like(queries)
        heads = q.shape[1]
        cpu_plan = make_cpu_plan(self.library, plan, kv_cache, heads, per_run=lse_per_run)
        arguments = AttendArgs(
            plan=cpu_plan.handle,
            q=queries.data_ptr(),
            out=out.data_ptr(),
            cache=kv_cache.data.data_ptr(),
            q_stride=heads * q.shape[2],
            out_stride=heads * q.shape[2],
            layer=layer,
        )
        if not lse_per_run:
            self._attend(ctypes.addressof(arguments))
            return out.to(q.dtype)
        lse = torch.full((plan.num_rows, plan.max_runs, heads), -torch.inf)
        arguments.lse, arguments.lse_columns = lse.data_ptr(), plan.max_runs
        self._attend(ctypes.addressof(arguments))
        return out.to(q.dtype), lse

    def write_kv(self, k: Tensor, v: Tensor, kv_cache: KVCache, layer: int, slot_mapping: Tensor) -> None:
        """Store as `kernels.backend.Backend.write_kv` says."""
        _check_cache(kv_cache)
        rows, kv_heads, dim = slot_mapping.shape[0], kv_cache.num_kv_heads, kv_cache.head_dim
        if k.shape != (rows, kv_heads, dim) or v.shape != k.shape:
            raise ShapeError(
                f"k {tuple(k.shape)} and v {tuple(v.shape)} must both be {(rows, kv_heads, dim)} to be written"
            )
        keys, values = k.to(torch.float32).contiguous(), v.to(torch.float32).contiguous()
        slots = slot_mapping.to(torch.int64).contiguous()
        arguments = RopeWriteArgs(
            k=keys.data_ptr(),
            v=values.data_ptr(),
            slots=slots.data_ptr(),
            cache=kv_cache.data.data_ptr(),
            k_stride=kv_heads * dim,
            v_stride=kv_heads * dim,
            rows=rows,
            kv_heads=kv_heads,
            head_dim=dim,
            block_size=kv_cache.block_size,
            block_stride=kv_cache.data.stride(0),
            layer_stride=kv_cache.data.stride(1),
            layer=layer,
            dtype=DTYPE_CODES[kv_cache.dtype],
        )
        self._write(ctypes.addressof(arguments))

    def merge(self, out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
        """Merge as `kernels.merge.merge` says."""
        operands = [x.to(torch.float32).contiguous() for x in (out_a, lse_a, out_b, lse_b)]
        out, lse = torch.empty_like(operands[0]), torch.empty_like(operands[1])
        pointers = (x.data_ptr() for x in (*operands, out, lse))
        arguments = MergeArgs(*pointers, rows=lse.numel(), dim=out.shape[-1])
        self._merge(ctypes.addressof(arguments))
        return out.to(out_a.dtype), lse


class CpuPlan:
    """What the library makes of a plan under its window: pieces of work for each thread, rotations. Serves all layers.

    Args:
        plan: of the step.
        kv_cache: gives the geometry; all caches of this geometry may use the plan.
        heads: query heads.
        per_run: keep what the log-sum-exp of each run needs.

    Attributes:
        handle: address of the library's `AttendPlan`; valid as long as this object.
    """

    def __init__(
        self, library: CpuLibrary, plan: AttentionPlan, kv_cache: KVCache, heads: int, *, per_run: bool = False
    ) -> None:
        layout = plan.memo(("cpu layout", per_run), lambda: _Layout(plan, _groups(plan, per_run=per_run)))
        positions, inv_freq = plan.query_positions.contiguous(), plan.rope.inv_freq.to(torch.float32).contiguous()
        arguments = _AttendPlanArgs(
            positions.data_ptr(),
            *(part.buffer_info()[0] for part in (layout.group_sizes, layout.members, layout.runs, layout.blocks)),
            inv_freq.data_ptr(),
            rows=plan.num_rows,
            groups=len(layout.group_sizes) // 2,
            window=plan.sliding_window or 0,
            heads=heads,
            kv_heads=kv_cache.num_kv_heads,
            head_dim=kv_cache.head_dim,
            rotary_dim=plan.rope.rotary_dim,
            block_size=plan.block_size,
            block_stride=kv_cache.data.stride(0),
            layer_stride=kv_cache.data.stride(1),
            num_threads=torch.get_num_threads(),
            rope_scale=plan.rope.scale,
            softmax_scale=plan.softmax_scale,
            interleaved=plan.rope.interleaved,
            dtype=DTYPE_CODES[kv_cache.dtype],
            per_run=per_run,
        )
        make = library.function("preread_make_attend_plan", [_POINTER], _POINTER)
        self.handle: int = make(ctypes.addressof(arguments))
        weakref.finalize(self, library.function("preread_free_attend_plan", [_POINTER]), self.handle)


def make_cpu_plan(
    library: CpuLibrary, plan: AttentionPlan, kv_cache: KVCache, heads: int, *, per_run: bool = False
) -> CpuPlan:
    """Return the library's plan of a step, made by the first layer that asks."""
    geometry = (kv_cache.dtype, kv_cache.num_layers, kv_cache.num_kv_heads, heads)
    key = ("cpu", library.variant, plan.sliding_window, geometry, per_run)
    return plan.memo(key, lambda: CpuPlan(library, plan, kv_cache, heads, per_run=per_run))


Group = tuple[list[tuple[int, int]], list[Run]]  # (sequence, column of its lse) of the members; runs


def _groups(plan: AttentionPlan, *, per_run: bool) -> Iterable[Group]:
    """Return runs with the sequences that read them: together where the same ones do, or one by one."""
    if per_run:
        readers: dict[Run, list[tuple[int, int]]] = {}
        for index, sequence in enumerate(plan.sequences):
            for column, run in enumerate(sequence.runs):
                if run.num_tokens and len(sequence.query_positions):
                    readers.setdefault(run, []).append((index, column))
        return [(members, [run]) for run, members in readers.items()]
    by_members: dict[tuple[int, ...], list[Run]] = {}
    for group in plan.groups:
        by_members.setdefault(group.members, []).extend(group.runs)
    return [([(member, 0) for member in members], runs) for members, runs in by_members.items()]


class _Layout:
    """Groups as flat arrays of int64, as cpu/attention.h describes them."""

    def __init__(self, plan: AttentionPlan, groups: Iterable[Group]) -> None:
        sizes: list[int] = []
        members: list[int] = []
        runs: list[int] = []
        blocks: list[int] = []
        for readers, group_runs in groups:
            sizes += (len(readers), len(group_runs))
            for sequence, column in readers:
                rows = plan.rows[sequence]
                members += (rows.start, rows.stop, column)
            for run in group_runs:
                runs += (run.num_tokens, run.start, run.shift)
                blocks += run.block_ids[: -(-run.num_tokens // plan.block_size)]
        self.group_sizes, self.members = array("q", sizes), array("q", members)
        self.runs, self.blocks = array("q", runs), array("q", blocks)


def _check_cache(kv_cache: KVCache) -> None:
    if kv_cache.dtype not in KV_DTYPES:
        raise ShapeError(f"the cpu backend reads KV in {', '.join(map(str, KV_DTYPES))}, not {kv_cache.dtype}")
