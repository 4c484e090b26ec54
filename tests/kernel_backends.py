"""The backends that kernel tests run: every available one, and every variant of the C++ library that runs here."""

from kernels.backend import Backend, available_backends, get_backend
from kernels.cpu import CpuBackend
from kernels.cpu_library import available_variants

VARIANTS = available_variants()
# "cpu" is the best variant; interpreted, triton takes minutes for all of this: test_triton_*.py choose from it
BACKENDS = [
    *(name for name, reason in available_backends().items() if reason is None and name != "triton"),
    *(f"cpu:{variant}" for variant in VARIANTS[1:]),
]


def make_backend(name: str) -> Backend:
    """Return a backend by its name, or by "cpu:" and a variant."""
    kind, _, variant = name.partition(":")
    return CpuBackend(variant) if variant else get_backend(kind)
