"""Runs one batch through the model: tensors in, logits out. Knows no requests."""

import torch
from torch import Tensor

from engine.batch import Batch
from engine.models.decoder import Decoder
from kernels.kv_cache import KVCache

__all__ = ["ModelRunner"]


class ModelRunner:
    """A decoder and the KV cache that it writes."""

    def __init__(self, decoder: Decoder, kv_cache: KVCache) -> None:
        self.decoder = decoder
        self.kv_cache = kv_cache

    @torch.inference_mode()
    def run(self, batch: Batch) -> Tensor:
        """Compute the batch's KV and return logits [R, vocab] float32 of its logit rows."""
        plan = self.decoder.plan(batch.sequences, self.kv_cache.block_size)
        return self.decoder.forward(
            batch.token_ids, batch.positions, batch.slot_mapping, plan, self.kv_cache, batch.logit_rows
        )
