"""The shape of a model, read from the config.json of transformers v4 or v5."""

from dataclasses import dataclass
from pathlib import Path

from engine.errors import ModelFileError, UnsupportedModelError
from engine.models.families import FAMILIES, Family
from engine.models.fields import ConfigFields
from engine.models.rope_types import ROPE_TYPES, RopeSettings

__all__ = ["ModelConfig"]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a decoder needs to know about its model.

    Attributes:
        architecture: transformers' class name, for instance LlamaForCausalLM.
        layer_windows: sliding window of every layer; None sees everything.
        qkv_bias: q, k and v projections have a bias.
        output_bias: the attention output projection has a bias.
        mlp_bias: the MLP projections have a bias.
        qk_norm: q and k are normalised per head before rotation.
        rope: settings for `rope_types.build_rope`.
        dtype: name of the dtype in which the weights were saved, for instance "bfloat16".
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    layer_windows: tuple[int | None, ...]
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    rope: RopeSettings
    dtype: str

    @classmethod
    def from_folder(cls, folder: str | Path) -> "ModelConfig":
        """Read `config.json` of a Hugging Face model folder.

        Raises:
            ModelFileError: the file is missing, damaged, or has a field that cannot work.
            UnsupportedModelError: the architecture, activation, quantisation or rope type is not one that runs here.
        """
        fields = ConfigFields.read(Path(folder) / "config.json")
        architecture = _architecture(fields)
        family = FAMILIES[architecture]
        _refuse_variants(fields)
        hidden_size, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
        num_layers = fields.integer("num_hidden_layers")
        attention_bias = fields.flag("attention_bias")
        config = cls(
            architecture=architecture,
            vocab_size=fields.integer("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=fields.integer("intermediate_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=fields.integer("num_key_value_heads", num_heads),
            head_dim=fields.integer("head_dim", family.head_dim or hidden_size // num_heads),
            max_position_embeddings=_context(fields, family),
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            tie_word_embeddings=fields.flag("tie_word_embeddings"),
            layer_windows=family.layer_windows(fields, num_layers),
            qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
            output_bias=attention_bias if family.output_bias is None else family.output_bias,
            mlp_bias=fields.flag("mlp_bias") if family.mlp_bias is None else family.mlp_bias,
            qk_norm=family.qk_norm,
            rope=_rope_settings(fields, family),
            dtype=fields.text("dtype", fields.text("torch_dtype", "float32")),
        )
        if config.num_heads % config.num_kv_heads or config.head_dim % 2:
            raise ModelFileError(
                f"{config.num_heads} heads of dimension {config.head_dim} over {config.num_kv_heads} key-value heads "
                "cannot work: heads must be a multiple of key-value heads and the dimension even; correct config.json"
            )
        return config

    @property
    def softmax_scale(self) -> float:
        """Return what multiplies the attention scores."""
        return float(self.head_dim**-0.5)


def _architecture(fields: ConfigFields) -> str:
    names = fields.strings("architectures")
    known = next((name for name in names if name in FAMILIES), None)
    if known is None:
        raise UnsupportedModelError(
            f"architecture {', '.join(names) or '(none named in config.json)'} is not supported; "
            f"supported are {', '.join(FAMILIES)}"
        )
    return known


def _refuse_variants(fields: ConfigFields) -> None:
    """Refuse by name what config.json may ask for and these layers would silently compute wrongly."""
    activation = fields.text("hidden_act", "silu")
    if activation != "silu":
        raise UnsupportedModelError(f"activation {activation!r} is not supported; supported is silu")
    if "quantization_config" in fields:
        method = fields.mapping("quantization_config").get("quant_method", "unknown")
        raise UnsupportedModelError(
            f"weights quantised with {method!r} are not supported; pull the bf16 or float32 version of the model"
        )
    if fields.number("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModelError("partial_rotary_factor other than 1 is not supported by these architectures")


def _context(fields: ConfigFields, family: Family) -> int:
    return fields.integer("max_position_embeddings", family.max_position_embeddings)


def _rope_settings(fields: ConfigFields, family: Family) -> RopeSettings:
    """Return rope settings in one form from rope_theta and rope_scaling (v4) or rope_parameters (v5)."""
    settings = fields.mapping("rope_parameters") or fields.mapping("rope_scaling")
    nested = sorted(key for key, value in settings.items() if isinstance(value, dict))
    if nested:
        raise UnsupportedModelError(f"rope settings per layer type ({', '.join(nested)}) are not supported")
    rope_type = settings.pop("type", "default")
    settings.setdefault("rope_type", rope_type)
    settings.setdefault("rope_theta", fields.number("rope_theta", 10000.0))
    if settings["rope_type"] not in ROPE_TYPES:
        raise UnsupportedModelError(
            f"rope type {settings['rope_type']!r} is not supported; supported are {', '.join(sorted(ROPE_TYPES))}"
        )
    if settings.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise UnsupportedModelError("partial_rotary_factor other than 1 is not supported by these architectures")
    context = _context(fields, family)
    settings["max_position_embeddings"] = context
    if "original_max_position_embeddings" in fields:
        settings["original_max_position_embeddings"] = fields.integer("original_max_position_embeddings")
    settings.setdefault("original_max_position_embeddings", context)
    return settings
