"""The one public operation of the kernels, and the registry of what can run it.

Backends load on demand: this module imports no tensor library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from kernels.errors import BackendUnavailableError, UnknownBackendError

if TYPE_CHECKING:
    from torch import Tensor

    from kernels.kv_cache import KVCache
    from kernels.plan import AttentionPlan

__all__ = ["Backend", "available_backends", "get_backend"]

# best first: "auto" takes the first one that can run
_CLASSES = {
    "cpu": "kernels.cpu:CpuBackend",
    "torch": "kernels.torch_attention:TorchBackend",
    "triton": "kernels.triton_attention:TritonBackend",
    "reference": "kernels.reference:ReferenceBackend",
}


class Backend(Protocol):
    """Attention over paged runs. `reference` is the specification of every other backend."""

    name: str

    def attend(
        self,
        q: "Tensor",
        plan: "AttentionPlan",
        kv_cache: "KVCache",
        layer: int,
        *,
        lse_per_run: bool = False,
    ) -> "Tensor | tuple[Tensor, Tensor]":
        """Attend from every query row to the visible keys of its sequence's runs.

        Args:
            q: [T, heads, dim], normalised where the model does so, not rotated.
            plan: of this step.
            kv_cache: holds rotated keys; those of this step are already written.
            layer: index of the layer.
            lse_per_run: also return each run's log-sum-exp of the scaled scores.

        Returns:
            out [T, heads, dim] in q's dtype; a row that sees no key is 0. With `lse_per_run` also
            lse [T, runs, heads] float32, -inf where a run is empty, fully masked or beyond the sequence's runs.

        Raises:
            ShapeError: q or the cache do not fit the plan.
        """
        ...

    def write_kv(self, k: "Tensor", v: "Tensor", kv_cache: "KVCache", layer: int, slot_mapping: "Tensor") -> None:
        """Store rotated k and v [T, num_kv_heads, dim] at slots [T]; slot = block_id * block_size + offset."""
        ...

    def merge(self, out_a: "Tensor", lse_a: "Tensor", out_b: "Tensor", lse_b: "Tensor") -> "tuple[Tensor, Tensor]":
        """Merge partial results out [..., heads, dim], lse [..., heads]; the empty one is (0, -inf)."""
        ...


def get_backend(name: str = "auto", device: str = "cpu") -> Backend:
    """Return the named backend, or with "auto" the fastest one that runs on the device.

    Raises:
        UnknownBackendError: no backend has this name.
        BackendUnavailableError: it cannot run here.
    """
    if name not in ("auto", *_CLASSES):
        raise UnknownBackendError(f"there is no kernel backend {name!r}; choose auto, {_describe(device)}")
    for candidate in _CLASSES if name == "auto" else (name,):
        backend_class, reason = _load(candidate, device)
        if reason is None:
            backend: Backend = backend_class()
            return backend
    raise BackendUnavailableError(f"kernel backend {name!r} cannot run on {device!r}; choose auto, {_describe(device)}")


def available_backends(device: str = "cpu") -> dict[str, str | None]:
    """Return every backend name with the reason why it cannot run on the device, or None when it can."""
    return {name: _load(name, device)[1] for name in _CLASSES}


def _load(name: str, device: str) -> tuple[Any, str | None]:
    """Return the class of a backend and the reason why it is unavailable."""
    module, attribute = _CLASSES[name].split(":")
    try:
        backend_class = getattr(import_module(module), attribute)
    except ImportError as error:
        return None, f"{module} cannot be imported: {error}"
    return backend_class, backend_class.unavailable_reason(device)


def _describe(device: str) -> str:
    return ", ".join(
        f"{name} ({'available' if reason is None else f'unavailable: {reason}'})"
        for name, reason in available_backends(device).items()
    )
