"""What the engine asks of a model, however it computes. Knows token ids and positions, not requests."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.models.config import ModelConfig
from kernels.backend import Backend
from kernels.kv_cache import KVCache
from kernels.plan import AttentionPlan
from kernels.rope import Rope
from kernels.runs import SequencePlan

__all__ = ["Model"]


@dataclass(frozen=True, eq=False)
class Model(ABC):
    """A decoder-only model over paged KV.

    Attributes:
        config: the shape of the model.
        rope: rotates queries and keys.
        backend: attends and stores KV.
        embedding: [vocab, hidden].
    """

    config: ModelConfig
    rope: Rope
    backend: Backend
    embedding: Tensor

    def plan(self, sequences: Sequence[SequencePlan], block_size: int) -> AttentionPlan:
        """Plan a step's attention; raise `kernels.errors.PlanError` when its runs do not fit."""
        return AttentionPlan.build(
            sequences,
            rope=self.rope,
            softmax_scale=self.config.softmax_scale,
            block_size=block_size,
            sliding_window=self.config.layer_windows[0],
            device=self.embedding.device,
        )

    @abstractmethod
    @torch.inference_mode()
    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        plan: AttentionPlan,
        kv_cache: KVCache,
        logit_rows: Tensor,
    ) -> Tensor:
        """Compute one step, storing its KV.

        Args:
            token_ids: [T] int64, the query rows of the plan in order.
            positions: [T] int64, their prompt positions.
            slot_mapping: [T] int64, where their KV goes: block_id * block_size + offset.
            plan: from `plan`, whose runs include the tokens of this step.
            kv_cache: read and written.
            logit_rows: [R] int64, ascending, the rows whose next token is wanted.

        Returns:
            Logits [R, vocab] float32.
        """
