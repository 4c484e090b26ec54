"""The C++ kernels as a shared library: which variant this processor runs, and its functions."""

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch

from kernels.errors import BackendUnavailableError

__all__ = ["DTYPE_CODES", "VARIANTS", "CpuLibrary", "available_variants", "load_library", "unavailable_reason"]

# best first
VARIANTS = ("avx512fp16", "avx512bf16", "avx512", "avx2", "portable")

# the codes of cpu/common.h
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}

_FOLDER = Path(__file__).parent


class CpuLibrary:
    """The exported functions of one variant.

    Args:
        variant: one of `available_variants()`.
    """

    def __init__(self, variant: str) -> None:
        self.variant = variant
        path = _path(variant)
        assert path is not None, f"the {variant} kernels are not compiled"
        # torch is imported above: the OpenMP symbols of the library resolve to the runtime that torch has loaded
        self._library = ctypes.CDLL(str(path))

    def function(self, name: str, arguments: Sequence[Any], result: Any = None) -> Any:
        """Return the exported function `name` with its ctypes signature."""
        function = self._library[name]
        function.argtypes, function.restype = list(arguments), result
        return function

    @property
    def num_threads(self) -> int:
        """Return how many threads a parallel region has now (torch's setting)."""
        return int(self.function("preread_num_threads", [], ctypes.c_int32)())

    def busy_seconds(self) -> float:
        """Return the seconds spent inside the library's functions since it was loaded."""
        return float(self.function("preread_busy_seconds", [], ctypes.c_double)())


def load_library(variant: str | None = None) -> CpuLibrary:
    """Return the library of a variant, or of the best one that runs here; loaded once.

    Raises:
        BackendUnavailableError: it is not compiled, or this processor lacks its instructions.
    """
    available = available_variants()
    if variant is None and available:
        variant = available[0]
    if variant not in available:
        raise BackendUnavailableError(
            f"the CPU kernels {f'of variant {variant!r} ' if variant else ''}cannot run here: "
            f"{unavailable_reason() or 'choose from ' + ', '.join(available)}"
        )
    return _load(variant)


def available_variants() -> tuple[str, ...]:
    """Return the variants that are compiled and that this processor runs, best first."""
    if _path("portable") is None:
        return ()
    supports = _load("portable").function("preread_supports", [ctypes.c_char_p], ctypes.c_int32)
    return tuple(name for name in VARIANTS if _path(name) is not None and supports(name.encode()))


def unavailable_reason() -> str | None:
    """Return why there are no C++ kernels, or None when there are."""
    if _path("portable") is None:
        return "not compiled when the package was installed; install a C++ compiler (g++) and the package again"
    return None


@cache
def _load(variant: str) -> CpuLibrary:
    return CpuLibrary(variant)


def _path(variant: str) -> Path | None:
    candidates = (_FOLDER / f"_cpu_{variant}{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)
