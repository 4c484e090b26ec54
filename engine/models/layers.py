"""The layers that all families share, as plain functions over plain tensors."""

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from engine.models.config import ModelConfig
from engine.models.weights import WeightFiles

__all__ = ["DecoderLayer", "Linear", "RMSNorm"]


@dataclass(frozen=True, eq=False, slots=True)
class Linear:
    """A product with a weight [out, in] and an optional bias [out]."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return [..., out] of x [..., in]."""
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, eq=False, slots=True)
class RMSNorm:
    """Root-mean-square normalisation over the last dimension, statistics in float32 (arXiv:1910.07467)."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Return x [..., dim] normalised."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True, eq=False, slots=True)
class DecoderLayer:
    """The weights of one layer, with q, k and v in one product and gate and up in another."""

    input_norm: RMSNorm
    qkv: Linear
    q_norm: RMSNorm | None
    k_norm: RMSNorm | None
    output: Linear
    mlp_norm: RMSNorm
    gate_up: Linear
    down: Linear

    @classmethod
    def load(cls, files: WeightFiles, config: ModelConfig, index: int) -> "DecoderLayer":
        """Take layer `index` from a model folder; raise `ModelFileError` when a tensor does not fit."""
        prefix = f"model.layers.{index}."
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        hidden, inner = config.hidden_size, config.intermediate_size
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        qkv_names, qkv_rows = [f"{attention}{name}_proj" for name in "qkv"], [q_size, kv_size, kv_size]
        gate_up_names = [f"{mlp}gate_proj", f"{mlp}up_proj"]

        def norm(name: str, size: int) -> RMSNorm:
            return RMSNorm(files.take(f"{name}.weight", size), config.rms_norm_eps)

        def stacked(names: list[str], rows: list[int], *, bias: bool) -> Linear:
            weight = files.take_stacked([f"{name}.weight" for name in names], rows, hidden)
            return Linear(weight, files.take_stacked([f"{n}.bias" for n in names], rows) if bias else None)

        def plain(name: str, size: int, *, bias: bool) -> Linear:
            weight = files.take(f"{name}.weight", hidden, size)
            return Linear(weight, files.take(f"{name}.bias", hidden) if bias else None)

        return cls(
            input_norm=norm(f"{prefix}input_layernorm", hidden),
            qkv=stacked(qkv_names, qkv_rows, bias=config.qkv_bias),
            q_norm=norm(f"{attention}q_norm", config.head_dim) if config.qk_norm else None,
            k_norm=norm(f"{attention}k_norm", config.head_dim) if config.qk_norm else None,
            output=plain(f"{attention}o_proj", q_size, bias=config.output_bias),
            mlp_norm=norm(f"{prefix}post_attention_layernorm", hidden),
            gate_up=stacked(gate_up_names, [inner, inner], bias=config.mlp_bias),
            down=plain(f"{mlp}down_proj", inner, bias=config.mlp_bias),
        )

    def project(self, hidden: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
        """Return q [T, heads, dim], k and v [T, kv_heads, dim] of hidden [T, hidden]; not rotated."""
        projected = self.qkv(self.input_norm(hidden)).view(hidden.shape[0], -1, config.head_dim)
        q, k, v = projected.split_with_sizes((config.num_heads, config.num_kv_heads, config.num_kv_heads), dim=1)
        return (q if self.q_norm is None else self.q_norm(q)), (k if self.k_norm is None else self.k_norm(k)), v

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """Add the attention output [T, heads, dim] and the MLP to hidden [T, hidden]."""
        hidden = hidden + self.output(attended.flatten(1))
        gate, up = self.gate_up(self.mlp_norm(hidden)).chunk(2, dim=-1)
        return hidden + self.down(F.silu(gate) * up)
