"""From a model folder to what runs: which models, in which numbers."""

from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.config import EngineConfig
from engine.models.decoder import Decoder
from engine.models.model import Model
from kernels.backend import Backend

if TYPE_CHECKING:
    from kernels.cpu_linear import WeightFormat

__all__ = ["LoadedModels", "load_models"]

_FORMATS: "dict[torch.dtype, WeightFormat]" = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


@dataclass(frozen=True, slots=True)
class LoadedModels:
    """One set of weights in one or two formats.

    Attributes:
        full: computes in the KV compute mode.
        lean: with 8-bit weights, or None.
    """

    full: Model
    lean: Model | None


def load_models(folder: Path, config: EngineConfig, dtype: torch.dtype, backend: Backend) -> LoadedModels:
    """Load a model folder for a compute mode and backend.

    The C++ kernels take packed weights, except bfloat16 where the processor multiplies it in tiles (AMX): there
    torch's product is the faster one.

    Raises:
        ModelFileError: a file or tensor is missing, damaged, superfluous or mis-shaped.
        UnsupportedModelError: the architecture or rope type is not one that runs here.
    """
    if backend.name != "cpu":
        return LoadedModels(Decoder.from_folder(folder, dtype=dtype, device=config.device, backend=backend), None)

    from engine.models.packed_decoder import PackedDecoder
    from kernels.cpu import CpuBackend

    assert isinstance(backend, CpuBackend), f"weights packed for {backend.name}"
    in_tiles = config.dtype != "int8" and dtype is torch.bfloat16 and _multiplies_in_tiles()
    if in_tiles and not _wants_int8(config):
        return LoadedModels(Decoder.from_folder(folder, dtype=dtype, backend=backend), None)
    source = cache(partial(Decoder.from_folder, folder, dtype=None, backend=backend))

    def packed(weight_format: "WeightFormat") -> Model:
        return PackedDecoder.from_folder(folder, weight_format, backend=backend, source=source)

    if in_tiles:
        full: Model = Decoder.from_folder(folder, dtype=dtype, backend=backend)
    else:
        full = packed("int8_dynamic" if config.dtype == "int8" else _FORMATS[dtype])
    return LoadedModels(full, packed("int8") if _wants_int8(config) else None)


def _multiplies_in_tiles() -> bool:
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def _wants_int8(config: EngineConfig) -> bool:
    """Whether private rows may be computed with 8-bit weights; who asks for float32 asks for exact answers."""
    return config.weights == "int8" or (config.weights == "auto" and config.dtype != "float32")
