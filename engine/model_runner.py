"""Runs one batch through the model: tensors in, logits out. Knows no requests."""

import torch
from torch import Tensor

from engine.batch import Batch
from engine.cuda_graphs import CudaGraphs
from engine.models.model import Model
from kernels.kv_cache import KVCache

__all__ = ["ModelRunner"]


class ModelRunner:
    """A model and the KV cache that it writes.

    Args:
        model: computes in the KV compute mode.
        kv_cache: read and written.
        lean: the same model with 8-bit weights, for rows whose KV is never published; None has every row computed by
            `model`.
        graphs: replays steps of few rows on a GPU; None runs every step as it comes.

    Attributes:
        lean_rows: up to how many rows a step of private rows is run by `lean`; None for any number.
    """

    def __init__(
        self, model: Model, kv_cache: KVCache, *, lean: Model | None = None, graphs: CudaGraphs | None = None
    ) -> None:
        self.model = model
        self.kv_cache = kv_cache
        self.lean = lean
        self.lean_rows: int | None = None
        self._graphs = graphs

    @torch.inference_mode()
    def run(self, batch: Batch) -> Tensor:
        """Compute the batch's KV and return logits [R, vocab] float32 of its logit rows."""
        replayed = None if self._graphs is None else self._graphs.run(batch)
        if replayed is not None:
            return replayed
        model = self._choose(batch)
        plan = model.plan(batch.sequences, self.kv_cache.block_size)
        return model.forward(
            batch.token_ids, batch.positions, batch.slot_mapping, plan, self.kv_cache, batch.logit_rows
        )

    def _choose(self, batch: Batch) -> Model:
        few = self.lean_rows is None or len(batch.token_ids) <= self.lean_rows
        return self.lean if self.lean is not None and batch.private and few else self.model
