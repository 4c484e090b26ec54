"""How much memory KV gets: bytes to blocks. The tensor itself is `kernels.kv_cache.KVCache`."""

import os
from pathlib import Path

import torch

from engine.backends import multiplies_float16
from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.models.config import ModelConfig
from kernels.backend import Backend
from kernels.kv_cache import KVCache, block_bytes

__all__ = ["allocate_kv_cache", "check_device", "resolve_dtype"]

MIB = 1 << 20

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}


def check_device(device: str) -> None:
    """Raise `ConfigError` unless tensors can be made on the device."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device {device!r} cannot be used ({reason}); choose cpu, or one that torch sees") from error


def resolve_dtype(config: EngineConfig, folder: Path, backend: Backend) -> torch.dtype:
    """Return the element type of the computation or, where that is `int8`, of its KV.

    What `auto` means: bfloat16 on a GPU and where the CPU multiplies it in tiles (AMX); float16 where the C++ kernels
    multiply it at twice the rate of float32 (AVX512-FP16; without AMX, bfloat16 dot products have half of that rate).
    Elsewhere float32, unless the weights would then take more than a quarter of the memory.

    Raises:
        ConfigError: `int8` without the kernels that compute it.
    """
    if config.dtype == "int8":
        if backend.name != "cpu":
            raise ConfigError(
                f"dtype 'int8' needs the C++ kernels of backend 'cpu', not {backend.name!r}; see `rag doctor`"
            )
        return torch.float16 if multiplies_float16(backend) else torch.float32
    if config.dtype != "auto":
        return _DTYPES[config.dtype]
    if config.device != "cpu" or torch.cpu.get_capabilities().get("amx_bf16", False):
        return torch.bfloat16
    if multiplies_float16(backend):
        return torch.float16
    float32_bytes = 2 * sum(path.stat().st_size for path in folder.glob("*.safetensors"))  # files are 16-bit, mostly
    return torch.float32 if float32_bytes < _memory_bytes() // 4 else torch.bfloat16


def allocate_kv_cache(config: EngineConfig, model: ModelConfig, dtype: torch.dtype) -> KVCache:
    """Allocate as many blocks as the memory for KV holds; pages are touched only when they are written.

    Args:
        config: how KV is kept, and in how much memory.
        model: the shape of a token's KV.
        dtype: the numbers in which KV is computed.

    Raises:
        ConfigError: not even one block fits.
    """
    dtype = dtype if config.kv_dtype == "auto" else _DTYPES[config.kv_dtype]
    per_block = block_bytes(config.block_size, model.num_layers, model.num_kv_heads, model.head_dim, dtype)
    budget = config.kv_cache_bytes or min(max(_memory_bytes() // 8, 256 * MIB), 4096 * MIB)
    if budget < per_block:
        raise ConfigError(f"kv_cache_bytes {budget} holds no block of {per_block} bytes; give it more")
    shape = (budget // per_block, config.block_size, model.num_layers, model.num_kv_heads, model.head_dim)
    try:
        return KVCache.allocate(*shape, dtype, device=config.device)
    except RuntimeError as error:
        raise ConfigError(f"kv_cache_bytes {budget} cannot be had on {config.device!r}; give it less") from error


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
