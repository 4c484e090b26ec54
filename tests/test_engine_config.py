"""Settings that cannot work are refused, with the field and its value in the message."""

import logging
import math

import pytest
import torch

from engine import Engine, EngineConfig, SamplingParams
from engine.errors import ConfigError
from engine.kv_cache import resolve_dtype
from kernels.backend import get_backend

BAD_SAMPLING = [
    ("max_tokens", -1),
    ("max_tokens", 2.5),
    ("max_tokens", "8"),
    ("temperature", -0.1),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("temperature", "warm"),
    ("top_k", -1),
    ("top_k", 1.5),
    ("top_p", 0),
    ("top_p", 1.01),
    ("top_p", math.nan),
    ("seed", -1),
    ("seed", 2**63),
    ("seed", 1.5),
    ("stop", "END"),
    ("stop", ["ok", ""]),
    ("stop", [5]),
    ("stop", None),
    ("stop_token_ids", None),
    ("stop_token_ids", ["a"]),
    ("ignore_eos", "no"),
]
BAD_ENGINE = [
    ("dtype", "float8"),
    ("block_size", 0),
    ("block_size", 1.5),
    ("block_size", "16"),
    ("kv_cache_bytes", 0),
    ("kv_cache_bytes", 1.5),
    ("max_num_seqs", 0),
    ("max_num_seqs", True),
    ("max_num_batched_tokens", 0),
    ("max_num_waiting", -3),
    ("max_model_len", 0),
    ("max_slowdown", 0.5),
    ("max_slowdown", "3"),
    ("max_slowdown", float("nan")),
    ("max_draft_tokens", -1),
    ("max_draft_tokens", 1.5),
    ("eviction", "newest"),
    ("eviction", None),
]


@pytest.mark.parametrize(("name", "value"), BAD_SAMPLING)
def test_bad_sampling_is_refused(name, value):
    with pytest.raises(ConfigError) as caught:
        SamplingParams(**{name: value})
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(("name", "value"), BAD_ENGINE)
def test_bad_engine_settings_are_refused(name, value):
    with pytest.raises(ConfigError) as caught:
        EngineConfig(**{name: value})
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)


def test_limits_are_accepted():
    SamplingParams(max_tokens=0, temperature=0, top_k=0, top_p=1, seed=0, stop=("a",), stop_token_ids=[3])
    SamplingParams(temperature=100, top_p=1e-12, seed=2**63 - 1)
    EngineConfig(block_size=1, max_num_seqs=1, max_num_batched_tokens=1, max_num_waiting=1, max_model_len=1)


def test_unknown_settings_are_refused():
    with pytest.raises(TypeError, match="max_new_tokens"):
        SamplingParams(max_new_tokens=5)
    with pytest.raises(TypeError, match="blocksize"):
        EngineConfig(blocksize=5)


def test_auto_dtype_is_what_is_fast_here(tmp_path, monkeypatch):
    backend = get_backend("torch")
    assert resolve_dtype(EngineConfig(dtype="float32"), tmp_path, backend) is torch.float32
    assert resolve_dtype(EngineConfig(dtype="bfloat16"), tmp_path, backend) is torch.bfloat16
    assert resolve_dtype(EngineConfig(dtype="float16"), tmp_path, backend) is torch.float16
    assert resolve_dtype(EngineConfig(device="cuda"), tmp_path, backend) is torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert resolve_dtype(EngineConfig(), tmp_path, backend) is torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": False})
    assert resolve_dtype(EngineConfig(), tmp_path, backend) is torch.float32
    monkeypatch.setattr("engine.kv_cache._memory_bytes", lambda: 4096)
    (tmp_path / "model.safetensors").write_bytes(bytes(1024))
    assert resolve_dtype(EngineConfig(), tmp_path, backend) is torch.bfloat16
    monkeypatch.setattr("engine.kv_cache.multiplies_float16", lambda backend: True)
    assert resolve_dtype(EngineConfig(), tmp_path, backend) is torch.float16


@pytest.mark.parametrize("device", ["cud", "cuda:99", "meta:x", ""])
def test_a_device_that_is_not_there_is_named(tiny_folder, device):
    with pytest.raises(ConfigError, match="device") as caught:
        Engine.from_pretrained(tiny_folder, EngineConfig(device=device))
    assert repr(device) in str(caught.value)


def test_memory_for_kv_that_holds_no_block(tiny_folder):
    with pytest.raises(ConfigError, match="kv_cache_bytes 100"):
        Engine.from_pretrained(tiny_folder, EngineConfig(kv_cache_bytes=100))


def test_memory_that_cannot_be_had(tiny_folder):
    with pytest.raises(ConfigError, match="kv_cache_bytes"):
        Engine.from_pretrained(tiny_folder, EngineConfig(kv_cache_bytes=2**62))


def test_blocks_fill_the_memory_that_was_given(tiny_folder):
    engine = Engine.from_pretrained(tiny_folder, EngineConfig(dtype="float32", kv_cache_bytes=100_000))
    assert engine.runner.kv_cache.data.nbytes <= 100_000
    assert engine.runner.kv_cache.data.nbytes + engine.runner.kv_cache.bytes_per_block > 100_000
    assert engine.stats().num_blocks == engine.runner.kv_cache.num_blocks


def test_max_model_len_never_exceeds_the_model(tiny_folder):
    assert (
        Engine.from_pretrained(tiny_folder, EngineConfig(kv_cache_bytes=1 << 20, max_model_len=9999)).max_model_len
        == 256
    )
    assert (
        Engine.from_pretrained(tiny_folder, EngineConfig(kv_cache_bytes=1 << 20, max_model_len=40)).max_model_len == 40
    )


def test_without_compiled_kernels_the_loss_is_told(tiny_folder, monkeypatch, caplog):
    monkeypatch.setattr("kernels.cpu.unavailable_reason", lambda: "not compiled; install a C++ compiler")
    with caplog.at_level(logging.WARNING):
        engine = Engine.from_pretrained(tiny_folder, EngineConfig(kv_cache_bytes=1 << 20))
    assert engine.runner.model.backend.name == "torch"
    assert "install a C++ compiler" in caplog.text
    assert engine.generate([[1, 2, 3]], SamplingParams(max_tokens=2, ignore_eos=True))
