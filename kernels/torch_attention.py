"""The `torch` backend: paged attention that leans on torch's own CPU flash attention, which also returns the LSE."""

import functools
import math

import torch
from torch import Tensor

from kernels.kv_cache import KVCache, write_slots
from kernels.merge import merge
from kernels.plan import AttentionPlan, RunGroup
from kernels.torch_calls import Call, Gather, make_gathers

__all__ = ["TorchBackend"]

# from so many rows on, torch's attention is faster in float32 than in bf16 on a CPU without AMX
ROWS_FOR_FLOAT32 = 32


class TorchBackend:
    """Gathers each group of runs once and attends to it with all its queries; parts are merged by LSE."""

    name = "torch"

    @classmethod
    def unavailable_reason(cls, device: str) -> str | None:
        """Return why this backend cannot run on the device, or None."""
        if torch.device(device).type != "cpu":
            return f"it runs on the CPU only, not on {device}"
        if not hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"):
            return f"torch {torch.__version__} has no CPU flash attention"
        return None

    def attend(
        self, q: Tensor, plan: AttentionPlan, kv_cache: KVCache, layer: int, *, lse_per_run: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend as `kernels.backend.Backend.attend` says."""
        plan.check(q, kv_cache)
        step = _LayerStep(q, plan, kv_cache, layer)
        if not lse_per_run:
            return step.attend("all", plan.groups)[0].to(q.dtype)
        out, lse = step.empty()
        per_run = lse.new_full((plan.num_rows, plan.max_runs, q.shape[1]), -torch.inf)
        for run in dict.fromkeys(run for sequence in plan.sequences for run in sequence.runs if run.num_tokens):
            readers = (i for i, sequence in enumerate(plan.sequences) if run in sequence.runs)
            members = tuple(i for i in readers if plan.rows[i])
            if not members:
                continue
            part, part_lse = step.attend(run, (RunGroup((run,), members, run.shift),))
            out, lse = merge(out, lse, part, part_lse)
            for member in members:
                rows = slice(plan.rows[member].start, plan.rows[member].stop)
                per_run[rows, plan.sequences[member].runs.index(run)] = part_lse[rows]
        return out.to(q.dtype), per_run

    def write_kv(self, k: Tensor, v: Tensor, kv_cache: KVCache, layer: int, slot_mapping: Tensor) -> None:
        """Store as `kernels.backend.Backend.write_kv` says."""
        write_slots(k, v, kv_cache, layer, slot_mapping)

    def merge(self, out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
        """Merge as `kernels.merge.merge` says."""
        return merge(out_a, lse_a, out_b, lse_b)


class _LayerStep:
    """One layer of one step: queries rotated on demand, once for each distinct shift."""

    def __init__(self, q: Tensor, plan: AttentionPlan, kv_cache: KVCache, layer: int) -> None:
        self._q = q
        self._plan = plan
        self._cache = kv_cache
        self._heads = _in_rows(kv_cache.data[:, layer])
        self._scales = None if kv_cache.scales is None else _in_rows(kv_cache.scales[:, layer, ..., None])
        self._rotated: dict[int, Tensor] = {}

    def empty(self) -> tuple[Tensor, Tensor]:
        """Return the result of attending to nothing: out [T, heads, dim] and lse [T, heads], float32."""
        out = torch.zeros(self._q.shape, dtype=torch.float32)
        return out, torch.full(self._q.shape[:2], -torch.inf)

    def attend(self, key: object, groups: tuple[RunGroup, ...]) -> tuple[Tensor, Tensor]:
        """Attend to the groups, whose gathers the plan remembers under `key`; as `empty` otherwise."""
        plan, cache = self._plan, self._cache
        geometry = (cache.dtype, cache.num_layers, cache.num_kv_heads, plan.sliding_window)
        gathers = plan.memo(("torch", key, geometry), lambda: make_gathers(plan, groups, cache))
        calls = [call for gather in gathers for call in gather.calls]
        if len(calls) == 1 and calls[0].rows == slice(0, plan.num_rows):
            return self._call(gathers[0], calls[0], self._gather(gathers[0]))
        out, lse = self.empty()
        for gather in gathers:
            kv = self._gather(gather)
            for call in gather.calls:
                part, part_lse = self._call(gather, call, kv)
                if not call.fresh:
                    part, part_lse = merge(out[call.rows], lse[call.rows], part, part_lse)
                out[call.rows], lse[call.rows] = part.to(torch.float32), part_lse
        return out, lse

    def _gather(self, gather: Gather) -> Tensor:
        """Return K and V [2, entries, num_kv_heads, keys, dim] in the dtype of the calls."""
        kv = self._heads.index_select(0, gather.index)
        if self._scales is not None:
            assert gather.scales is not None, "a gather of an int8 cache knows where its scales are"
            kv = kv * self._scales.index_select(0, gather.scales)
        kv = kv.view(2, gather.entries, self._cache.num_kv_heads, gather.num_keys, self._cache.head_dim)
        group_size = self._q.shape[1] // self._cache.num_kv_heads
        rows = max(call.num_rows for call in gather.calls) * group_size
        if self._q.dtype == kv.dtype and (rows < ROWS_FOR_FLOAT32 or _has_amx()):
            return kv
        return kv.to(torch.float32)

    def _call(self, gather: Gather, call: Call, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Return out [rows, heads, dim] in the dtype of kv and lse [rows, heads] float32."""
        if gather.shift not in self._rotated:
            self._rotated[gather.shift] = self._plan.rotate_queries(self._q.to(torch.float32), gather.shift)
        queries = self._rotated[gather.shift][call.rows].to(kv.dtype)
        keys, values = kv[:, :, :, call.keys]  # [entries, num_kv_heads, S, dim]
        if gather.entries == 1 and (call.causal or call.mask is not None):
            return _by_head(queries, keys[0], values[0], call, self._plan.softmax_scale)
        return _by_group(queries, keys, values, call, self._plan.softmax_scale)


def _in_rows(part: Tensor) -> Tensor:
    """Return memory from the first to the last row of one layer of a cache [num_blocks, 2, heads, slots, n]: [*, n]."""
    num_blocks, *inner, size = part.shape
    count = (num_blocks - 1) * (part.stride(0) // size) + math.prod(inner)
    return part.as_strided((count, size), (size, 1))


def _by_head(q: Tensor, k: Tensor, v: Tensor, call: Call, scale: float) -> tuple[Tensor, Tensor]:
    """Attend with kv heads as batch and the heads that share them as heads, so that a mask serves all of them."""
    num_kv_heads, num_keys, dim = k.shape
    queries = q.view(q.shape[0], num_kv_heads, -1, dim).permute(1, 2, 0, 3)  # [kv_heads, group, R, dim]
    shape = (num_kv_heads, queries.shape[1], num_keys, dim)
    keys, values = k[:, None].expand(shape), v[:, None].expand(shape)
    mask = None if call.mask is None else call.mask.to(q.dtype)
    out, lse = _flash(queries, keys, values, scale=scale, causal=call.causal, mask=mask)
    return out.permute(2, 0, 1, 3).flatten(1, 2), lse.permute(2, 0, 1).flatten(1, 2)


def _by_group(q: Tensor, k: Tensor, v: Tensor, call: Call, scale: float) -> tuple[Tensor, Tensor]:
    """Attend with the heads that share a kv head as further rows, so that keys are read once for all of them."""
    entries, num_kv_heads, _, dim = k.shape
    rows = call.num_rows
    queries = q.view(entries, rows, num_kv_heads, -1, dim).transpose(1, 2)  # [entries, kv_heads, R, group, dim]
    group = queries.shape[3]
    mask = None
    if call.mask is not None:  # [entries, 1, R, S] -> [entries, 1, R * group, S]; one row is broadcast
        mask = call.mask.to(q.dtype)
        mask = mask if rows == 1 else mask.repeat_interleave(group, dim=2)
    out, lse = _flash(queries.reshape(entries, num_kv_heads, -1, dim), k, v, scale=scale, mask=mask)
    out = out.view(entries, num_kv_heads, rows, group, dim).transpose(1, 2)
    lse = lse.view(entries, num_kv_heads, rows, group).transpose(1, 2)
    return out.reshape(entries * rows, -1, dim), lse.reshape(entries * rows, -1)


def _flash(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return out [batch, heads, R, dim] and lse [batch, heads, R] float32 of torch's CPU flash attention."""
    # the public function does not return the LSE
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # noqa: SLF001
        q, k, v, 0.0, causal, attn_mask=mask, scale=scale
    )
    return out, lse


@functools.cache
def _has_amx() -> bool:
    return bool(torch.cpu._is_amx_tile_supported())  # noqa: SLF001
