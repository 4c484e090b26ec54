"""A decoder's forward pass on the C++ kernels: one call a step. Knows packed weights and a plan, not model files."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from kernels.cpu_linear import LinearStruct, PackedLinear
from kernels.cpu_weights import WeightSet
from kernels.errors import ShapeError

__all__ = ["CpuDecoder", "PackedLayer"]


class _LayerStruct(ctypes.Structure):
    _fields_: ClassVar = [
        ("qkv", LinearStruct),
        ("output", LinearStruct),
        ("gate_up", LinearStruct),
        ("down", LinearStruct),
        ("input_norm", ctypes.c_void_p),
        ("mlp_norm", ctypes.c_void_p),
        ("q_norm", ctypes.c_void_p),
        ("k_norm", ctypes.c_void_p),
    ]


class _DecoderStruct(ctypes.Structure):
    _fields_: ClassVar = [
        ("layers", ctypes.POINTER(_LayerStruct)),
        ("norm", ctypes.c_void_p),
        ("head", LinearStruct),
        ("num_layers", ctypes.c_int64),
        ("num_heads", ctypes.c_int64),
        ("num_kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("hidden_size", ctypes.c_int64),
        ("eps", ctypes.c_float),
    ]


class _StepStruct(ctypes.Structure):
    _fields_: ClassVar = [
        ("hidden", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("logit_rows", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
        ("cache", ctypes.c_void_p),
        ("plans", ctypes.POINTER(ctypes.c_void_p)),
        ("rows", ctypes.c_int64),
        ("num_logits", ctypes.c_int64),
    ]


@dataclass(frozen=True, eq=False, slots=True)
class PackedLayer:
    """The weights of one pre-norm layer; norms are float32 vectors."""

    qkv: PackedLinear
    output: PackedLinear
    gate_up: PackedLinear
    down: PackedLinear
    input_norm: Tensor
    mlp_norm: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None

    @classmethod
    def of(cls, weights: WeightSet, index: int) -> Self:
        """Take layer `index` by the names of `CpuDecoder`."""
        linears, vectors, prefix = weights.linears, weights.vectors, f"layers.{index}."
        return cls(
            qkv=linears[f"{prefix}qkv"],
            output=linears[f"{prefix}output"],
            gate_up=linears[f"{prefix}gate_up"],
            down=linears[f"{prefix}down"],
            input_norm=vectors[f"{prefix}input_norm"],
            mlp_norm=vectors[f"{prefix}mlp_norm"],
            q_norm=vectors.get(f"{prefix}q_norm"),
            k_norm=vectors.get(f"{prefix}k_norm"),
        )

    @property
    def linears(self) -> tuple[PackedLinear, ...]:
        """The four products, in the order in which they run."""
        return self.qkv, self.output, self.gate_up, self.down

    def _struct(self) -> _LayerStruct:
        norms = (self.input_norm, self.mlp_norm, self.q_norm, self.k_norm)
        pointers = (None if norm is None else norm.data_ptr() for norm in norms)
        return _LayerStruct(*(linear.struct for linear in self.linears), *pointers)


class CpuDecoder:
    """Layers, last norm and head as one function of embeddings.

    Args:
        weights: linears "head" [vocab, hidden] and, of every layer, "layers.0.qkv" and so on; vectors "norm" and
            "layers.0.input_norm" and so on. Layers have the parts of `PackedLayer`, and all of them one shape.
        num_layers: how many.
        num_heads: query heads.
        num_kv_heads: key-value heads.
        head_dim: dimension of a head.
        eps: of every norm.

    Raises:
        ShapeError: weights that do not fit together.
    """

    def __init__(
        self,
        weights: WeightSet,
        *,
        num_layers: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        eps: float,
    ) -> None:
        self.weights = weights
        self.layers = tuple(PackedLayer.of(weights, index) for index in range(num_layers))
        norm, self.head = weights.vectors["norm"], weights.linears["head"]
        hidden = self.head.in_features
        _check_norm("norm", norm, hidden)
        for layer in self.layers:
            _check_layer(layer, hidden, num_heads * head_dim, num_kv_heads * head_dim)
            _check_norms(layer, hidden, head_dim)
        self._structs = (_LayerStruct * len(self.layers))(*(layer._struct() for layer in self.layers))  # noqa: SLF001
        self._weights = _DecoderStruct(
            self._structs,
            norm.data_ptr(),
            self.head.struct,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            hidden,
            eps,
        )
        self._decode = self.head.library.function(
            "preread_decode", [ctypes.POINTER(_DecoderStruct), ctypes.POINTER(_StepStruct)]
        )

    @property
    def nbytes(self) -> int:
        """Return the bytes of weights that one step reads."""
        return sum(linear.nbytes for layer in self.layers for linear in layer.linears) + self.head.nbytes

    def __call__(
        self, hidden: Tensor, slots: Tensor, logit_rows: Tensor, plans: Sequence[int], cache: Tensor
    ) -> Tensor:
        """Compute one step and write its KV.

        Args:
            hidden: [T, hidden] float32, embeddings; used up.
            slots: [T] int64, block_id * block_size + offset.
            logit_rows: [R] int64, ascending: whose logits are wanted.
            plans: per layer the address of its attention plan.
            cache: the KV cache's data.

        Returns:
            Logits [R, vocab] float32.
        """
        rows, num_logits = len(hidden), len(logit_rows)
        assert hidden.dtype == torch.float32, f"hidden is {hidden.dtype}"
        assert hidden.is_contiguous(), "hidden has gaps"
        assert slots.dtype == logit_rows.dtype == torch.int64, f"{slots.dtype} slots, {logit_rows.dtype} rows"
        assert len(slots) == rows, f"{len(slots)} slots for {rows} rows"
        assert len(plans) == len(self.layers), f"{len(plans)} plans for {len(self.layers)} layers"
        logits = torch.empty(num_logits, self.head.num_outputs)
        step = _StepStruct(
            hidden.data_ptr(),
            slots.data_ptr(),
            logit_rows.data_ptr(),
            logits.data_ptr(),
            cache.data_ptr(),
            (ctypes.c_void_p * len(plans))(*plans),
            rows,
            num_logits,
        )
        self._decode(self._weights, step)
        return logits


def _check_layer(layer: PackedLayer, hidden: int, q_size: int, kv_size: int) -> None:
    inner = layer.down.in_features
    expected = (
        ("qkv", layer.qkv, q_size + 2 * kv_size, hidden),
        ("output", layer.output, hidden, q_size),
        ("gate_up", layer.gate_up, inner, hidden),
        ("down", layer.down, hidden, inner),
    )
    for name, linear, outputs, inputs in expected:
        if (linear.num_outputs, linear.in_features) != (outputs, inputs):
            raise ShapeError(
                f"{name} is packed as [{linear.num_outputs}, {linear.in_features}], the decoder needs "
                f"[{outputs}, {inputs}]"
            )


def _check_norms(layer: PackedLayer, hidden: int, head_dim: int) -> None:
    expected = (
        ("input_norm", layer.input_norm, hidden),
        ("mlp_norm", layer.mlp_norm, hidden),
        ("q_norm", layer.q_norm, head_dim),
        ("k_norm", layer.k_norm, head_dim),
    )
    for name, norm, size in expected:
        if norm is not None:
            _check_norm(name, norm, size)


def _check_norm(name: str, norm: Tensor, size: int) -> None:
    if norm.shape != (size,) or norm.dtype != torch.float32 or not norm.is_contiguous():
        raise ShapeError(f"{name} is {norm.dtype} {list(norm.shape)}, the decoder needs float32 [{size}] without gaps")
