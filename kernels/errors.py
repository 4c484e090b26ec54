"""What the kernels raise.

KernelError
├── PlanError                 runs, positions or settings that no plan can be made of
├── ShapeError                a tensor that does not fit the plan or the KV cache
├── UnknownBackendError       a backend name that does not exist
└── BackendUnavailableError   a backend that exists but cannot run here
"""

__all__ = ["BackendUnavailableError", "KernelError", "PlanError", "ShapeError", "UnknownBackendError"]


class KernelError(Exception):
    """Base of every error that the kernels raise for a caller's mistake."""


class PlanError(KernelError):
    """Report runs, positions or settings that no plan can be made of."""


class ShapeError(KernelError):
    """Report a tensor that does not fit the plan or the KV cache."""


class UnknownBackendError(KernelError):
    """Report a backend name that does not exist."""


class BackendUnavailableError(KernelError):
    """Report a backend that exists but cannot run on this machine or device."""
