"""The forward pass on the C++ kernels, with weights packed for them in a format of choice."""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from engine.models.decoder import Decoder
from engine.models.layers import DecoderLayer, Linear
from engine.models.model import Model
from kernels.cpu import CpuBackend, make_cpu_plan
from kernels.cpu_decoder import CpuDecoder, PackedLayer
from kernels.cpu_library import CpuLibrary
from kernels.cpu_linear import PackedLinear, WeightFormat
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
    def pack(cls, source: Decoder, weight_format: WeightFormat) -> "PackedDecoder":
        """Pack the weights of a decoder, whose embedding it goes on using."""
        assert isinstance(source.backend, CpuBackend), f"weights packed for {source.backend.name}"
        config, library = source.config, source.backend.library

        def pack(linear: Linear, *, silu_mul: bool = False) -> PackedLinear:
            return PackedLinear.pack(linear.weight, linear.bias, weight_format, silu_mul=silu_mul, library=library)

        # few rows reach the head, so nothing is gained by rounding what they are multiplied with
        head_format: WeightFormat = "int8" if weight_format == "int8_dynamic" else weight_format

        stack = CpuDecoder(
            [_pack_layer(layer, pack) for layer in source.layers],
            source.norm.weight.float(),
            PackedLinear.pack(source.head.weight, source.head.bias, head_format, library=library),
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            eps=config.rms_norm_eps,
        )
        return cls(config, source.rope, source.backend, source.embedding, stack, library)

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


def _pack_layer(layer: DecoderLayer, pack: "_Pack") -> PackedLayer:
    return PackedLayer(
        qkv=pack(layer.qkv),
        output=pack(layer.output),
        gate_up=pack(layer.gate_up, silu_mul=True),
        down=pack(layer.down),
        input_norm=layer.input_norm.weight.float(),
        mlp_norm=layer.mlp_norm.weight.float(),
        q_norm=None if layer.q_norm is None else layer.q_norm.weight.float(),
        k_norm=None if layer.k_norm is None else layer.k_norm.weight.float(),
    )


class _Pack(Protocol):
    def __call__(self, linear: Linear, *, silu_mul: bool = False) -> PackedLinear: ...
