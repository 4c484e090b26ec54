"""The forward pass of every supported family in plain torch, over any kernel backend."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from engine.models.config import ModelConfig
from engine.models.layers import DecoderLayer, Linear, RMSNorm
from engine.models.model import Model
from engine.models.rope_types import build_rope
from engine.models.weights import WeightFiles
from kernels.backend import Backend
from kernels.kv_cache import KVCache
from kernels.plan import AttentionPlan
from kernels.rope import Rope

__all__ = ["EMBEDDING", "Decoder"]

EMBEDDING = "model.embed_tokens.weight"

# buffers that old checkpoints saved; they follow from config.json
_IGNORED_TENSORS = ("rotary_emb.inv_freq",)


@dataclass(frozen=True, eq=False)
class Decoder(Model):
    """Weights as torch tensors.

    Attributes:
        layers: first to last.
        norm: before the head.
        head: [vocab, hidden], the embedding where they are tied.
    """

    layers: tuple[DecoderLayer, ...]
    norm: RMSNorm
    head: Linear

    @classmethod
    def from_folder(
        cls, folder: str | Path, *, dtype: torch.dtype | None, device: str | torch.device = "cpu", backend: Backend
    ) -> "Decoder":
        """Load a Hugging Face folder with config.json and safetensors; dtype None keeps that of the files.

        Raises:
            UnsupportedModelError: the architecture or rope type is not one that runs here.
            ModelFileError: a file or tensor is missing, damaged, superfluous or mis-shaped.
        """
        config = ModelConfig.from_folder(folder)
        rope = build_rope(config.rope, config.head_dim)
        files = WeightFiles(folder, dtype=dtype, device=device)
        embedding = files.take(EMBEDDING, config.vocab_size, config.hidden_size)
        tied = config.tie_word_embeddings
        head = embedding if tied else files.take("lm_head.weight", config.vocab_size, config.hidden_size)
        decoder = cls(
            config=config,
            rope=Rope(rope.inv_freq.to(device), rope.rotary_dim, rope.interleaved, rope.scale),
            backend=backend,
            embedding=embedding,
            layers=tuple(DecoderLayer.load(files, config, index) for index in range(config.num_layers)),
            norm=RMSNorm(files.take("model.norm.weight", config.hidden_size), config.rms_norm_eps),
            head=Linear(head),
        )
        files.check_all_taken((*_IGNORED_TENSORS, "lm_head.weight") if tied else _IGNORED_TENSORS)
        return decoder

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
        """Compute one step with torch, see `Model.forward`."""
        hidden = F.embedding(token_ids, self.embedding)
        cos, sin = self.rope.cos_sin(positions)
        plans = {window: plan.with_window(window) for window in set(self.config.layer_windows)}
        for index, layer in enumerate(self.layers):
            q, k, v = layer.project(hidden, self.config)
            self.backend.write_kv(self.rope.apply(k, cos, sin), v, kv_cache, index, slot_mapping)
            attended = self.backend.attend(q, plans[self.config.layer_windows[index]], kv_cache, index)
            assert isinstance(attended, Tensor), "attend returned LSE that nobody asked for"
            if index == len(self.layers) - 1:
                hidden, attended = hidden[logit_rows], attended[logit_rows]
            hidden = layer.finish(hidden, attended)
        logits: Tensor = self.head(self.norm(hidden))
        return logits.to(torch.float32)
