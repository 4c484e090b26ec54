"""Paged attention kernels: tensors only, no requests, documents or tokens.

Import the submodules; this file stays light because transformers probes for a PyPI package of the same name.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
