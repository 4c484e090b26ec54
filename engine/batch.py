"""Scheduled work as tensors: what one forward pass of the model needs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.request import Admission, TableRun
from engine.scheduler import ScheduledWork
from kernels.runs import Run, SequencePlan

__all__ = ["Batch", "build_batch"]


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's input.

    Attributes:
        token_ids: [T] int64.
        positions: [T] int64, prompt positions.
        slot_mapping: [T] int64, where each token's KV goes.
        sequences: one a request, in the order of the rows.
        logit_rows: [R] int64, the rows whose next token is sampled: of each request that samples, its newest
            token's and those of its draft.
        private: whether no row's KV is ever published.
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    sequences: tuple[SequencePlan, ...]
    logit_rows: Tensor
    private: bool


def build_batch(work: Sequence[ScheduledWork], block_size: int, device: str = "cpu") -> Batch:
    """Lay out the rows of every request's scheduled tokens, one request after the other."""
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    sequences: list[SequencePlan] = []
    logit_rows: list[int] = []
    for item in work:
        request, admission = item.request, item.request.held
        known, prompt = request.prompt.tokens, request.prompt.num_tokens
        for span in item.positions:
            positions += span
            token_ids += known[span.start : span.stop]
            token_ids += request.output_tokens[max(span.start - prompt, 0) : max(span.stop - prompt, 0)]
            slots += _slots(admission, span, block_size)
        token_ids += item.draft  # behind the newest token, which is the last of the last span
        rows = item.positions[0] if len(item.positions) == 1 else [p for span in item.positions for p in span]
        sequences.append(SequencePlan(rows, _visible_runs(admission, item.positions[-1].stop, block_size)))
        if item.samples:
            logit_rows += range(len(positions) - 1 - len(item.draft), len(positions))
    return Batch(
        torch.tensor(token_ids, device=device),
        torch.tensor(positions, device=device),
        torch.tensor(slots, device=device),
        tuple(sequences),
        torch.tensor(logit_rows, dtype=torch.int64, device=device),
        private=all(_is_private(item) for item in work),
    )


def _is_private(item: ScheduledWork) -> bool:
    private_from = item.request.private_from
    return private_from is not None and item.positions[0].start >= private_from


def _slots(admission: Admission, span: range, block_size: int) -> list[int]:
    """The slots of consecutive prompt positions, which may reach over several runs of the block table."""
    slots: list[int] = []
    for run in admission.runs:
        first, stop = max(span.start, run.start), min(span.stop, run.end)
        offsets = range(first - run.start, stop - run.start)
        slots += [run.blocks[offset // block_size] * block_size + offset % block_size for offset in offsets]
    assert len(slots) == len(span), f"{len(slots)} slots for the {len(span)} positions {span}"
    return slots


def _visible_runs(admission: Admission, stop: int, block_size: int) -> tuple[Run, ...]:
    """The part of the block table before a prompt position: all of it is computed when the step has run."""
    return tuple(_clipped(run, stop, block_size) for run in admission.runs if run.start < min(stop, run.end))


def _clipped(run: TableRun, stop: int, block_size: int) -> Run:
    num_tokens = min(run.end, stop) - run.start
    return Run(tuple(run.blocks[: -(-num_tokens // block_size)]), num_tokens, run.start, run.shift)
