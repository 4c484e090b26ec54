"""The decoder families that run here, and in what they differ."""

from collections.abc import Callable
from dataclasses import dataclass

from engine.errors import ModelFileError
from engine.models.fields import ConfigFields

__all__ = ["FAMILIES", "Family"]

Windows = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Family:
    """What one architecture does differently; all share the layers of `layers.py`.

    Attributes:
        max_position_embeddings: when config.json does not say.
        layer_windows: reads the sliding window of every layer.
        qkv_bias: whether q, k and v have a bias; None reads `attention_bias`.
        output_bias: whether the attention output has a bias; None reads `attention_bias`.
        mlp_bias: whether the MLP has biases; None reads `mlp_bias`.
        qk_norm: q and k are normalised per head before rotation.
        head_dim: when config.json does not say; None divides the hidden size by the heads.
    """

    max_position_embeddings: int
    layer_windows: Callable[[ConfigFields, int], Windows]
    qkv_bias: bool | None = False
    output_bias: bool | None = False
    mlp_bias: bool | None = False
    qk_norm: bool = False
    head_dim: int | None = None


def _no_window(fields: ConfigFields, num_layers: int) -> Windows:  # noqa: ARG001
    return (None,) * num_layers


def _same_window(fields: ConfigFields, num_layers: int) -> Windows:
    """Mistral: one window for all layers; null switches it off, absent means 4096."""
    off = fields.has("sliding_window") and "sliding_window" not in fields
    return (None if off else fields.integer("sliding_window", 4096),) * num_layers


def _window_by_layer(fields: ConfigFields, num_layers: int) -> Windows:
    """Qwen: `layer_types` where given, else the layers from `max_window_layers` on, if windows are in use at all."""
    off = fields.has("sliding_window") and "sliding_window" not in fields
    if off or not fields.flag("use_sliding_window"):
        return (None,) * num_layers
    window = fields.integer("sliding_window", 4096)
    types = fields.strings("layer_types")
    if not types:
        first = fields.count("max_window_layers", 28)
        return tuple(window if layer >= first else None for layer in range(num_layers))
    unknown = set(types) - {"full_attention", "sliding_attention"}
    if unknown or len(types) != num_layers:
        raise ModelFileError(
            f"layer_types of config.json must name full_attention or sliding_attention for {num_layers} layers, "
            f"not {len(types)} entries of {sorted(set(types))}"
        )
    return tuple(window if layer_type == "sliding_attention" else None for layer_type in types)


FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(2048, _no_window, qkv_bias=None, output_bias=None, mlp_bias=None),
    "MistralForCausalLM": Family(131072, _same_window),
    "Qwen2ForCausalLM": Family(32768, _window_by_layer, qkv_bias=True),
    "Qwen3ForCausalLM": Family(32768, _window_by_layer, qkv_bias=None, output_bias=None, qk_norm=True, head_dim=128),
}
