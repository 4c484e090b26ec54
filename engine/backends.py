"""The kernel backends as the layers above see them: which run here, and the one that a setting names."""

import logging

from engine.errors import ConfigError
from kernels.backend import Backend, available_backends, get_backend
from kernels.errors import KernelError

__all__ = ["available_backends", "describe", "load_backend", "multiplies_float16"]

logger = logging.getLogger(__name__)


def load_backend(name: str, device: str) -> Backend:
    """Return the named backend, or with `auto` the fastest that runs on the device.

    Raises:
        ConfigError: no backend has this name, or it cannot run here.
    """
    try:
        backend = get_backend(name, device)
    except KernelError as error:
        raise ConfigError(str(error)) from error
    if name == "auto" and device == "cpu" and backend.name != "cpu":
        reason = available_backends()["cpu"]
        logger.warning(
            "the C++ kernels are missing (%s); %s runs in their place, several times slower", reason, backend.name
        )
    return backend


def describe(backend: Backend) -> str:
    """Return a backend's name, with the variant of its library where it has one."""
    library = getattr(backend, "library", None)
    return backend.name if library is None else f"{backend.name} ({library.variant}, {library.num_threads} threads)"


def multiplies_float16(backend: Backend) -> bool:
    """Tell whether the backend computes in float16 faster than in float32 on this CPU."""
    if backend.name != "cpu":
        return False

    from kernels.cpu_library import load_library

    return load_library().variant == "avx512fp16"
