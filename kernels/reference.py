"""The specification of every backend: dense attention per sequence in float32, in plain torch."""

import torch
from torch import Tensor

from kernels.kv_cache import KVCache, write_slots
from kernels.merge import merge
from kernels.plan import AttentionPlan
from kernels.runs import SequencePlan

__all__ = ["ReferenceBackend"]


class ReferenceBackend:
    """Attention as transformers' eager path computes it: all scores, one softmax, all values, in float32."""

    name = "reference"

    @classmethod
    def unavailable_reason(cls, device: str) -> str | None:  # noqa: ARG003
        """Return None: plain torch runs on every device."""
        return None

    def attend(
        self, q: Tensor, plan: AttentionPlan, kv_cache: KVCache, layer: int, *, lse_per_run: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend as `kernels.backend.Backend.attend` says."""
        plan.check(q, kv_cache)
        queries = q.to(torch.float32)
        out = torch.zeros_like(queries)
        lse = queries.new_full((plan.num_rows, plan.max_runs, q.shape[1]), -torch.inf) if lse_per_run else None
        rotated: dict[int, Tensor] = {}
        for index, sequence in enumerate(plan.sequences):
            rows = slice(plan.rows[index].start, plan.rows[index].stop)
            if not plan.rows[index] or not any(run.num_tokens for run in sequence.runs):
                continue
            for run in sequence.runs:
                if run.shift not in rotated:
                    rotated[run.shift] = plan.rotate_queries(queries, run.shift)
            keys, values = _gather(plan, index, kv_cache, layer)
            by_shift = {run.shift: rotated[run.shift][rows] for run in sequence.runs}
            scores = _scores(sequence, by_shift, keys) * plan.softmax_scale
            visible = _visible(plan, index)
            scores = scores.masked_fill(~visible, -torch.inf)
            # a row that sees nothing has a softmax of NaN; its weights are 0
            weights = scores.softmax(dim=-1).masked_fill(~visible, 0.0)
            out[rows] = _weighted_values(weights, values)
            if lse is not None:
                lse[rows, : len(sequence.runs)] = _lse_per_run(sequence, scores)
        return out.to(q.dtype) if lse is None else (out.to(q.dtype), lse)

    def write_kv(self, k: Tensor, v: Tensor, kv_cache: KVCache, layer: int, slot_mapping: Tensor) -> None:
        """Store as `kernels.backend.Backend.write_kv` says."""
        write_slots(k, v, kv_cache, layer, slot_mapping)

    def merge(self, out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
        """Merge as `kernels.merge.merge` says."""
        return merge(out_a, lse_a, out_b, lse_b)


def _gather(plan: AttentionPlan, index: int, kv_cache: KVCache, layer: int) -> tuple[Tensor, Tensor]:
    """Return K and V [num_kv_heads, S, dim] float32 of the valid tokens of a sequence's runs."""

    def slots() -> tuple[Tensor, Tensor]:
        slots, _ = plan.keys(plan.sequences[index].runs)
        return slots // plan.block_size, slots % plan.block_size

    blocks, offsets = plan.memo(("reference slots", index), slots)
    keys, values = kv_cache.read_slots(layer, blocks, offsets)
    return keys.transpose(0, 1).contiguous(), values.transpose(0, 1).contiguous()


def _visible(plan: AttentionPlan, index: int) -> Tensor:
    """Return [T of the sequence, S]: which keys each query row sees."""

    def mask() -> Tensor:
        sequence, rows = plan.sequences[index], plan.rows[index]
        queries = plan.query_positions[rows.start : rows.stop, None]
        distance = queries - plan.keys(sequence.runs)[1]
        visible = distance >= 0
        return visible if plan.sliding_window is None else visible & (distance < plan.sliding_window)

    return plan.memo(("reference mask", index, plan.sliding_window), mask)


def _scores(sequence: SequencePlan, rotated: dict[int, Tensor], keys: Tensor) -> Tensor:
    """Return scores [heads, T, S] of keys [num_kv_heads, S, dim] and queries [T, heads, dim] by shift."""
    num_kv_heads, _, dim = keys.shape
    parts, first = [], 0
    for shift, num_tokens in _stretches(sequence):
        queries = rotated[shift].transpose(0, 1)  # [heads, T, dim]
        heads, rows, _ = queries.shape
        queries = queries.reshape(num_kv_heads, -1, dim)  # the heads of a group share their keys
        part = queries @ keys[:, first : first + num_tokens].transpose(1, 2)
        parts.append(part.view(heads, rows, num_tokens))
        first += num_tokens
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _stretches(sequence: SequencePlan) -> list[tuple[int, int]]:
    """Return (shift, num_tokens) of consecutive runs with the same shift, taken together."""
    stretches: list[tuple[int, int]] = []
    for run in sequence.runs:
        if stretches and stretches[-1][0] == run.shift:
            stretches[-1] = (run.shift, stretches[-1][1] + run.num_tokens)
        else:
            stretches.append((run.shift, run.num_tokens))
    return stretches


def _weighted_values(weights: Tensor, values: Tensor) -> Tensor:
    """Return [T, heads, dim] of weights [heads, T, S] and values [num_kv_heads, S, dim]."""
    heads, rows, num_keys = weights.shape
    num_kv_heads, _, dim = values.shape
    out = weights.reshape(num_kv_heads, -1, num_keys) @ values
    return out.view(heads, rows, dim).transpose(0, 1)


def _lse_per_run(sequence: SequencePlan, scores: Tensor) -> Tensor:
    """Return [T, runs, heads] of scores [heads, T, S]."""
    parts = torch.split(scores, [run.num_tokens for run in sequence.runs], dim=-1)
    return torch.stack([part.logsumexp(dim=-1).transpose(0, 1) for part in parts], dim=1)
