"""Tiny randomly initialised models of every family, saved by transformers: the independent reference."""

import copy
from pathlib import Path

import torch

SIZES = dict(  # noqa: C408
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    initializer_range=0.3,
)
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS = {
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-untied-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-llama3-rope": ("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama-linear-rope": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5}}),
    "llama-yarn-rope": ("Llama", {"rope_parameters": YARN_ROPE}),
    "mistral-window": ("Mistral", {"sliding_window": 9}),
    "mistral-no-window": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2-biases": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-mixed-windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "qwen3-norms": ("Qwen3", {"head_dim": 16}),
    "qwen3-yarn-window": (
        "Qwen3",
        {
            "head_dim": 16,
            "attention_bias": True,
            "rope_parameters": YARN_ROPE,
            "use_sliding_window": True,
            "sliding_window": 11,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}


def make_folder(folder: Path, family: str, settings: dict, *, shard: bool = False):
    """Save a randomly initialised model and return it; norms and biases are random too, so that both count."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES, **copy.deepcopy(settings))
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.5)
    model.save_pretrained(folder, **({"max_shard_size": "40KB"} if shard else {}))
    return model


def make_tokenizer(folder: Path, vocab_size: int = SIZES["vocab_size"]) -> None:
    """Save a tokenizer whose tokens are the words t0, t1, ...; no token ends an answer."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({f"t{i}": i for i in range(vocab_size)}, unk_token="t0"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def make_engine_folder(folder: Path, name: str):
    """Save the named model of MODELS with a tokenizer, without end token, and return the transformers model."""
    family, settings = MODELS[name]
    model = make_folder(folder, family, {**settings, "eos_token_id": None, "bos_token_id": None})
    make_tokenizer(folder)
    return model
