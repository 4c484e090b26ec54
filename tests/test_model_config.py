"""Reading of config.json and weights: what is refused by name, and what a damaged folder says."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import ModelFileError, UnsupportedModelError
from engine.models.config import ModelConfig
from engine.models.decoder import Decoder
from kernels.backend import get_backend

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def write_config(folder: Path, **changes: object) -> Path:
    config = {key: value for key, value in (LLAMA | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_weights(folder: Path, change=lambda tensors: None, name: str = "model.safetensors") -> Path:
    tensors = {"model.embed_tokens.weight": torch.randn(11, 8), "lm_head.weight": torch.randn(11, 8)}
    tensors["model.norm.weight"] = torch.ones(8)
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = torch.ones(8)
        for projection, shape in {"q": (8, 8), "k": (4, 8), "v": (4, 8), "o": (8, 8)}.items():
            tensors[f"{prefix}self_attn.{projection}_proj.weight"] = torch.randn(shape)
        for projection, shape in {"gate": (12, 8), "up": (12, 8), "down": (8, 12)}.items():
            tensors[f"{prefix}mlp.{projection}_proj.weight"] = torch.randn(shape)
    change(tensors)
    save_file(tensors, folder / name)
    return folder


def load(folder: Path) -> Decoder:
    return Decoder.from_folder(folder, dtype=torch.float32, backend=get_backend("reference"))


def test_the_sound_folder_loads(tmp_path):
    decoder = load(write_weights(write_config(tmp_path)))
    assert decoder.config.head_dim == 4
    assert decoder.config.layer_windows == (None, None)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, ["GPT2LMHeadModel", "LlamaForCausalLM", "Qwen3ForCausalLM"]),
        ({"architectures": ...}, ["none named", "MistralForCausalLM"]),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ["'dynamic'", "llama3", "yarn"]),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, ["'longrope'", "default", "linear"]),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, ["full_attention"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
        ({"hidden_act": "gelu"}, ["'gelu'", "silu"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["'gptq'", "bf16"]),
    ],
)
def test_unsupported_is_refused_by_name_with_what_is_supported(tmp_path, changes, named):
    with pytest.raises(UnsupportedModelError) as caught:
        ModelConfig.from_folder(write_config(tmp_path, **changes))
    for part in named:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vocab_size": ...}, "lacks 'vocab_size'"),
        ({"hidden_size": "eight"}, "hidden_size = 'eight'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"num_key_value_heads": 3}, "3 key-value heads"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'low_freq_factor'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor"),
        ({"rope_scaling": "linear"}, "rope_scaling = 'linear'"),
    ],
)
def test_fields_that_cannot_work_are_named(tmp_path, changes, named):
    write_config(tmp_path, **changes)
    with pytest.raises(ModelFileError) as caught:
        load(tmp_path)
    assert named in str(caught.value)


@pytest.mark.parametrize("content", [None, "{", "[1]", ""])
def test_missing_or_broken_config_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelFileError, match=r"config\.json"):
        ModelConfig.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "model.layers.1.mlp.up_proj.weight"),
        (lambda t: t.update({"model.norm.weight": torch.ones(9)}), "[9]"),
        (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(8)}), "q_proj.bias"),
        (lambda t: t.update({"lm_head.weight": torch.ones(11, 8, dtype=torch.int8)}), "torch.int8"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, named):
    with pytest.raises(ModelFileError) as caught:
        load(write_weights(write_config(tmp_path), change))
    assert named in str(caught.value)


def test_saved_rotary_buffers_and_a_tied_head_are_ignored(tmp_path):
    def add_buffer(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)

    decoder = load(write_weights(write_config(tmp_path, tie_word_embeddings=True), add_buffer))
    assert decoder.head.weight is decoder.embedding


@pytest.mark.parametrize("keep", [0, 4, 200, -10])
def test_a_cut_weight_file_is_named(tmp_path, keep):
    path = write_weights(write_config(tmp_path)) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelFileError, match=r"model\.safetensors.*pull the model again"):
        load(tmp_path)


def test_missing_weights_and_shards_are_named(tmp_path):
    write_config(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(ModelFileError, match=r"model\.safetensors is missing"):
        load(tmp_path)
    write_weights(tmp_path, name="model-00001-of-00002.safetensors")
    names = load_file(tmp_path / "model-00001-of-00002.safetensors")
    weight_map = dict.fromkeys(names, "model-00001-of-00002.safetensors") | {
        "lm_head.weight": "model-00002-of-00002.safetensors"
    }
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelFileError, match="model-00002-of-00002"):
        load(tmp_path)
    index.write_text(json.dumps({"weights": {}}))
    with pytest.raises(ModelFileError, match=r"index\.json"):
        load(tmp_path)


def windows(folder: Path, **changes: object) -> tuple[int | None, ...]:
    return ModelConfig.from_folder(write_config(folder, **changes)).layer_windows


def test_sliding_windows_by_family(tmp_path):
    mistral, qwen = {"architectures": ["MistralForCausalLM"]}, {"architectures": ["Qwen2ForCausalLM"]}
    assert windows(tmp_path, **mistral) == (4096, 4096)
    assert windows(tmp_path, **mistral, sliding_window=None) == (None, None)
    assert windows(tmp_path, **mistral, sliding_window=5) == (5, 5)
    assert windows(tmp_path, **qwen, sliding_window=5, max_window_layers=0) == (None, None)
    on = qwen | {"use_sliding_window": True, "sliding_window": 5}
    assert windows(tmp_path, **on, max_window_layers=1) == (None, 5)
    assert windows(tmp_path, **on, max_window_layers=0) == (5, 5)
    assert windows(tmp_path, **on, layer_types=["sliding_attention", "full_attention"]) == (5, None)
    with pytest.raises(ModelFileError, match="layer_types"):
        windows(tmp_path, **on, layer_types=["sliding_attention"])
