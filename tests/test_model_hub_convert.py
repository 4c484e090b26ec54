"""What the converters write: weights against a GGUF made here, and the pulled models themselves."""

import json
import time

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer

from rag.model_convert import convert_llama_gguf, convert_sentence_transformer
from rag.model_hub import ModelHub, ModelKind

HIDDEN, HEADS, KV_HEADS, FEED_FORWARD, LAYERS = 32, 4, 2, 48, 2

# Byte-level vocabulary lacks these bytes of UTF-8: text that has them loses them, as with the original tokenizer.
MISSING_BYTES = {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2}


def llama_cpp_order(weight, heads):
    """Order the rows of q and k as llama.cpp's converter does: halves of a head become pairs."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture
def random_weights():
    rng = np.random.default_rng(0)
    width = HIDDEN // HEADS
    shapes = {"model.embed_tokens.weight": (10, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        shapes |= {
            f"{name}.input_layernorm.weight": (HIDDEN,),
            f"{name}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{name}.self_attn.k_proj.weight": (KV_HEADS * width, HIDDEN),
            f"{name}.self_attn.v_proj.weight": (KV_HEADS * width, HIDDEN),
            f"{name}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{name}.post_attention_layernorm.weight": (HIDDEN,),
            f"{name}.mlp.gate_proj.weight": (FEED_FORWARD, HIDDEN),
            f"{name}.mlp.up_proj.weight": (FEED_FORWARD, HIDDEN),
            f"{name}.mlp.down_proj.weight": (HIDDEN, FEED_FORWARD),
        }
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def write_gguf(path, weights, *, architecture="llama", pre="smollm"):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50_000.0)
    writer.add_vocab_size(10)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(["<|end|>", "<|start|>", "a", "b", "ab", "1", "2", "Ġ", "ĠĠ", "12"])
    writer.add_token_types([3, 3, 1, 1, 1, 1, 1, 1, 1, 1])
    writer.add_token_merges(["a b", "Ġ Ġ", "1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ messages }}")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, weight in weights.items():
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
        writer.add_tensor(names.get_name(name, (".weight",)), llama_cpp_order(weight, heads) if heads else weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def convert(tmp_path):
    def run(weights, **changes):
        source, target = tmp_path / "source", tmp_path / "target"
        source.mkdir()
        target.mkdir()
        write_gguf(source / "model.gguf", weights, **changes)
        fractions = []
        convert_llama_gguf(source, target, fractions.append)
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0
        return target

    return run


@pytest.mark.parametrize("tied", [True, False])
def test_weights_come_back_in_hugging_face_names_and_order(convert, random_weights, tied):
    if not tied:
        random_weights["lm_head.weight"] = random_weights["model.embed_tokens.weight"] + 1
    target = convert(random_weights)
    written = load_file(target / "model.safetensors")
    assert written.keys() == random_weights.keys()
    for name, weight in random_weights.items():
        assert torch.equal(written[name], torch.from_numpy(weight).to(torch.bfloat16)), name
    config = json.loads((target / "config.json").read_text())
    assert config["tie_word_embeddings"] is tied
    assert config["rms_norm_eps"] == 1e-5
    assert (config["rope_theta"], config["head_dim"], config["max_position_embeddings"]) == (50_000.0, 8, 128)


def test_the_tokenizer_splits_digits_and_knows_special_tokens(convert, random_weights):
    tokenizer = Tokenizer.from_file(str(convert(random_weights) / "tokenizer.json"))
    assert tokenizer.encode("ab12").tokens == ["ab", "1", "2"]  # there is a token "12", but digits stand alone
    assert tokenizer.encode("a  1").tokens == ["a", "ĠĠ", "1"]  # GPT-2's own split would give Ġ, Ġ1
    assert tokenizer.encode("a<|start|>b").ids == [2, 1, 3]


@pytest.mark.parametrize(
    ("changes", "why"), [({"architecture": "gpt2"}, "general.architecture is 'gpt2'"), ({"pre": "qwen2"}, "'qwen2'")]
)
def test_another_gguf_is_refused(convert, random_weights, changes, why):
    with pytest.raises(ValueError, match=why):
        convert(random_weights, **changes)


def test_folders_of_modules_without_settings_are_made(tmp_path, minilm):
    target = tmp_path / "target"
    target.mkdir()
    convert_sentence_transformer(minilm, target, lambda fraction: None)
    for module in json.loads((target / "modules.json").read_text()):
        assert (target / module["path"]).is_dir()


pulled = pytest.mark.model


@pulled
def test_pulled_models_are_whole_and_a_second_pull_is_quick():
    for name, kind in (("smollm2-135m", ModelKind.LANGUAGE_MODEL), ("minilm", ModelKind.EMBEDDER)):
        started = time.monotonic()
        assert ModelHub().pull(name).kind is kind
        assert time.monotonic() - started < 1.0


@pulled
def test_smollm2_has_its_original_settings(smollm2):
    config = json.loads((smollm2 / "config.json").read_text())
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rope_theta": 100_000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert {key: config[key] for key in expected} == expected


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return Tokenizer.from_file(str(smollm2 / "tokenizer.json"))


@pulled
@given(text=st.text())
def test_any_text_comes_back(tokenizer, text):
    text = "".join(char for char in text if not MISSING_BYTES.intersection(char.encode()))
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@pulled
def test_only_the_known_bytes_have_no_token(tokenizer):
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    valid = set().union(*(chr(point).encode() for point in range(0x110000) if not 0xD800 <= point < 0xE000))
    assert {byte for byte in valid if tokenizer.token_to_id(bytes_to_unicode()[byte]) is None} == MISSING_BYTES


@pulled
def test_smollm2_tokens_are_the_original_ones(tokenizer):
    assert tokenizer.encode("In 2024  3").tokens == ["In", "Ġ", "2", "0", "2", "4", "ĠĠ", "3"]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert [tokenizer.token_to_id(token) for token in special] == [0, 1, 2]
    assert tokenizer.encode("<|im_start|>user\nHi<|im_end|>").tokens == [
        "<|im_start|>",
        "user",
        "Ċ",
        "Hi",
        "<|im_end|>",
    ]
    assert tokenizer.get_vocab_size() == 49152
    assert len(tokenizer.get_added_tokens_decoder()) == 17


@pulled
def test_transformers_loads_smollm2_and_it_answers(smollm2):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**prompt, do_sample=False, max_new_tokens=12)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(tokens) == "The capital of France is Paris.<|im_end|>"
    raw = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    text = "naïve café 2024  3<|im_end|>\n東京 🙂"
    assert tokenizer.encode(text) == raw.encode(text).ids


@pulled
def test_minilm_embeds_without_a_network(minilm, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(minilm), device="cpu", local_files_only=True)
    vectors = model.encode(["How tall is the tower?", "The tower is 330 metres high.", "Bake it for an hour."])
    assert vectors.shape == (3, 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2]
    assert model.max_seq_length == 256
