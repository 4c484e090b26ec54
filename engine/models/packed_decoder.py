"""The forward pass on the C++ kernels, with weights packed for them in a format of choice."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from engine.models.config import ModelConfig
from engine.models.decoder import EMBEDDING, Decoder
from engine.models.model import Model
from engine.models.packed_weights import load_weights
from engine.models.rope_types import build_rope
from engine.models.weights import WeightFiles
from kernels.cpu import CpuBackend, make_cpu_plan
from kernels.cpu_decoder import CpuDecoder
from kernels.cpu_library import CpuLibrary
from kernels.cpu_linear import WeightFormat
from kernels.kv_cache import KVCache
from kernels.plan import AttentionPlan

__all__ = ["PackedDecoder"]


@dataclass(frozen=True, eq=False)
class PackedDecoder(Model):
    """Weights packed for the C++ kernels; the residual stream is float32 whatever their format.

    Attributes:
        stack: layers, last norm and head.
        library: the kernels that it was packed for.
    """

    stack: CpuDecoder
    library: CpuLibrary

    @classmethod
    def from_folder(
        cls, folder: Path, weight_format: WeightFormat, *, backend: CpuBackend, source: Callable[[], Decoder]
    ) -> "PackedDecoder":
        """Load a model folder.

        Args:
            folder: of Hugging Face's form.
            weight_format: of the layers' weights.
            backend: attends.
            source: loads the folder's own weights; called only where no packed ones are kept.

        Raises:
            UnsupportedModelError: the architecture or rope type is not one that runs here.
            ModelFileError: a file or tensor is missing, damaged, superfluous or mis-shaped.
        """
        config = ModelConfig.from_folder(folder)
        rope = build_rope(config.rope, config.head_dim)
        stack = CpuDecoder(
            load_weights(folder, weight_format, backend.library, source),
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            eps=config.rms_norm_eps,
        )
        embedding = WeightFiles(folder, dtype=None).take(EMBEDDING, config.vocab_size, config.hidden_size)
        return cls(config, rope, backend, embedding, stack, backend.library)

    @torch.inference_mode()
    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,  # noqa: ARG002 - the plan has them
        slot_mapping: Tensor,
        plan: AttentionPlan,
        kv_cache: KVCache,
        logit_rows: Tensor,
    ) -> Tensor:
        """Compute one step in one call, see `Model.forward`."""
        hidden = F.embedding(token_ids, self.embedding).float()
        windows = self.config.layer_windows
        handles = {
            window: make_cpu_plan(self.library, plan.with_window(window), kv_cache, self.config.num_heads).handle
            for window in set(windows)
        }
        return self.stack(hidden, slot_mapping, logit_rows, [handles[window] for window in windows], kv_cache.data)
