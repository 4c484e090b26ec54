"""The kernel backends as the layers above see them: which run here, and the one that a setting names."""

from engine.errors import ConfigError
from kernels.backend import Backend, available_backends, get_backend
from kernels.errors import KernelError

__all__ = ["available_backends", "load_backend"]


def load_backend(name: str, device: str) -> Backend:
    """Return the named backend, or with `auto` the fastest that runs on the device.

    Raises:
        ConfigError: no backend has this name, or it cannot run here.
    """
    try:
        return get_backend(name, device)
    except KernelError as error:
        raise ConfigError(str(error)) from error
