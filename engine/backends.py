"""The kernel backends as the layers above see them: which run here, and the one that a setting names."""

from engine.errors import ConfigError
from kernels.backend import Backend, available_backends, get_backend
from kernels.errors import KernelError

__all__ = ["available_backends", "load_backend", "multiplies_float16"]


def load_backend(name: str, device: str) -> Backend:
    """Return the named backend, or with `auto` the fastest that runs on the device.

    Raises:
        ConfigError: no backend has this name, or it cannot run here.
    """
    try:
        return get_backend(name, device)
    except KernelError as error:
        raise ConfigError(str(error)) from error


def multiplies_float16(backend: Backend) -> bool:
    """Tell whether the backend computes in float16 faster than in float32 on this CPU."""
    if backend.name != "cpu":
        return False

    from kernels.cpu_library import load_library

    return load_library().variant == "avx512fp16"
