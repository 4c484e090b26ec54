"""What measurements ask of the compiled kernels: their linear layers alone, and the time spent in them."""

from collections.abc import Callable

from torch import Tensor

from kernels.cpu_library import load_library
from kernels.cpu_linear import FORMATS, PackedLinear
from kernels.errors import BackendUnavailableError

__all__ = ["busy_counter", "linear_layers"]


def busy_counter(backend: str) -> Callable[[], float] | None:
    """Return what tells the seconds spent inside the kernels so far; None where the backend does not count them."""
    return load_library().busy_seconds if backend == "cpu" else None


def linear_layers() -> dict[str, Callable[[Tensor], Callable[[Tensor], Tensor]]]:
    """Return by weight format what packs a weight [out, in] into a linear layer over float32 [rows, in].

    Empty where the kernels are not compiled or cannot run.
    """
    try:
        load_library()
    except BackendUnavailableError:
        return {}

    def packing(format_name: str) -> Callable[[Tensor], Callable[[Tensor], Tensor]]:
        return lambda weight: PackedLinear.pack(weight, None, format_name)  # type: ignore[arg-type]  # one of FORMATS

    return {name: packing(name) for name in FORMATS}
