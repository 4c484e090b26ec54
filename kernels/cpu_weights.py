"""Packed weights in a file that processes map: they share its memory, and the system may take it back when it is short.

The file: a magic, the length and the digest of a JSON header; the header; from the next multiple of 2 MB on the
tensors, each at a cache line. Where the file system keeps files in large pages, reading a mapping of it is as fast as
reading private huge pages.
"""

import hashlib
import json
import math
import mmap
import os
import shutil
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from errno import ENOSPC
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor

from kernels.cpu_library import CpuLibrary
from kernels.cpu_linear import PackedLinear

__all__ = ["LAYOUT_REVISION", "WeightSet", "map_weights", "write_weights"]

# rises with every change of what is packed, and how
LAYOUT_REVISION: Final = 1

_MAGIC: Final = b"preread weights\n"
_PREFIX: Final = struct.Struct(f"<{len(_MAGIC)}sQ16s")  # magic, bytes of the header, its digest
_HUGE_PAGE: Final = 2 << 20
_CACHE_LINE: Final = 64
_SPARE_BYTES: Final = 1 << 30  # no disk is filled to its end with what can be packed again
_LINEAR_TENSORS: Final = ("panels", "scales", "bias")


@dataclass(frozen=True, eq=False, slots=True)
class WeightSet:
    """The weights of a model by name.

    Attributes:
        linears: packed for the C++ kernels.
        vectors: weights of norms.
    """

    linears: Mapping[str, PackedLinear]
    vectors: Mapping[str, Tensor]


def write_weights(path: Path, key: str, weights: WeightSet) -> None:
    """Write a file in one step: at any moment there is the one before or the whole new one.

    Args:
        path: where; a process that has mapped the one before keeps it.
        key: says what the weights were made of, see `map_weights`.
        weights: to write.

    Raises:
        OSError: there is no room, or no permission.
    """
    pieces: list[Tensor] = []
    header = json.dumps({"key": key, **_describe(weights, pieces)}).encode()
    start = _padded(_PREFIX.size + len(header), _HUGE_PAGE)
    if shutil.disk_usage(path.parent).free < start + sum(map(_room, pieces)) + _SPARE_BYTES:
        raise OSError(ENOSPC, os.strerror(ENOSPC), str(path))
    head = (_PREFIX.pack(_MAGIC, len(header), _digest(header)) + header).ljust(start, b"\0")
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with partial.open("wb", buffering=_HUGE_PAGE) as file:
            for chunk in _chunks(head, pieces):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def map_weights(path: Path, key: str, library: CpuLibrary) -> WeightSet | None:
    """Map a file that was written with this key; None where it is missing, damaged or of another key.

    Nobody may write to the tensors: that would end the process.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    with file:
        found = _read_header(file)
        if found is None or found[0]["key"] != key:
            return None
        header, start = found
        data = _map(file)[start:]
    linears = {}
    for name, entry in header["linears"].items():
        tensors = {part: None if entry[part] is None else _tensor(entry[part], data) for part in _LINEAR_TENSORS}
        linears[name] = PackedLinear(**{**entry, **tensors}, library=library)
    return WeightSet(linears, {name: _tensor(entry, data) for name, entry in header["vectors"].items()})


def _describe(weights: WeightSet, pieces: list[Tensor]) -> dict[str, Any]:
    """Return the header's part about the weights, and append its tensors in their order in the file."""
    nbytes = 0

    def place(tensor: Tensor | None) -> dict[str, Any] | None:
        nonlocal nbytes
        if tensor is None:
            return None
        dtype, at = str(tensor.dtype).removeprefix("torch."), nbytes
        pieces.append(tensor)
        nbytes += _room(tensor)
        return {"dtype": dtype, "shape": list(tensor.shape), "at": at}

    linears = {
        name: {
            "format": linear.format,
            "out_features": linear.out_features,
            "in_features": linear.in_features,
            "gated": linear.gated,
            **{part: place(getattr(linear, part)) for part in _LINEAR_TENSORS},
        }
        for name, linear in weights.linears.items()
    }
    vectors = {name: place(vector) for name, vector in weights.vectors.items()}
    return {"linears": linears, "vectors": vectors, "nbytes": nbytes}


def _chunks(head: bytes, pieces: Iterable[Tensor]) -> Iterator[bytes | bytearray]:
    """Cut a file into writes of 2 MB at multiples of it: the system then keeps them as large pages."""
    staged = bytearray(head)
    for piece in pieces:
        staged += piece.contiguous().view(-1).view(torch.uint8).numpy().data
        staged += bytes(_room(piece) - piece.nbytes)
        while len(staged) >= _HUGE_PAGE:
            yield staged[:_HUGE_PAGE]
            del staged[:_HUGE_PAGE]
    yield staged


def _read_header(file: BinaryIO) -> tuple[dict[str, Any], int] | None:
    """Return the header and where the tensors start; None unless the file is ours and complete."""
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size:
        return None
    magic, length, digest = _PREFIX.unpack(prefix)
    size = os.fstat(file.fileno()).st_size
    if magic != _MAGIC or length > size:
        return None
    text = file.read(length)
    if _digest(text) != digest:
        return None
    header: dict[str, Any] = json.loads(text)
    start = _padded(_PREFIX.size + length, _HUGE_PAGE)
    return (header, start) if size == start + header["nbytes"] else None


def _map(file: BinaryIO) -> Tensor:
    """Return a whole file as bytes; the mapping lives as long as a tensor in it."""
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # of a kernel without them
            mapped.madvise(mmap.MADV_HUGEPAGE)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(mapped, dtype=torch.uint8)


def _tensor(entry: dict[str, Any], data: Tensor) -> Tensor:
    dtype: torch.dtype = getattr(torch, entry["dtype"])
    nbytes = math.prod(entry["shape"]) * dtype.itemsize
    return data[entry["at"] : entry["at"] + nbytes].view(dtype).view(entry["shape"])


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=16).digest()


def _padded(nbytes: int, unit: int) -> int:
    return -(-nbytes // unit) * unit


def _room(tensor: Tensor) -> int:
    return _padded(tensor.nbytes, _CACHE_LINE)
