"""Linear layers with packed weights on the C++ kernels: float32 in and out, the weights in a format of choice."""

import ctypes
import math
import threading
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, Self

import torch
from torch import Tensor

from kernels.cpu_library import DTYPE_CODES, CpuLibrary, load_library
from kernels.errors import ShapeError

__all__ = ["FORMATS", "Epilogue", "LinearStruct", "PackedLinear", "WeightFormat", "WeightMemory"]

WeightFormat = Literal["float32", "bfloat16", "float16", "int8", "int8_dynamic"]
Epilogue = Literal["store", "add", "silu_mul"]

# format -> (its code, the type of a packed weight)
_FORMATS: Final[dict[str, tuple[int, torch.dtype]]] = {
    "float32": (0, torch.float32),
    "bfloat16": (1, torch.bfloat16),
    "float16": (2, torch.float16),
    "int8": (3, torch.int8),
    "int8_dynamic": (4, torch.uint8),
}
FORMATS: Final = tuple(_FORMATS)

_EPILOGUES: Final[dict[str, int]] = {"store": 0, "add": 1, "silu_mul": 2}

# outputs in a panel, inputs that share a scale, and what their scales take: of cpu/linear.h
_PANEL: Final = 32
_GROUP_INPUTS: Final = 64
_GROUP_HEAD: Final = 2

_HUGE_PAGE: Final = 2 << 20
_ARENA_BYTES: Final = 64 << 20


class LinearStruct(ctypes.Structure):
    """Mirror `Linear` of cpu/linear.h."""

    _fields_: ClassVar = [
        ("format", ctypes.c_int32),
        ("gated", ctypes.c_int32),
        ("out_features", ctypes.c_int64),
        ("in_features", ctypes.c_int64),
        ("panels", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    ]


class _PackArgs(ctypes.Structure):
    _fields_: ClassVar = [
        ("format", ctypes.c_int32),
        ("gated", ctypes.c_int32),
        ("out_features", ctypes.c_int64),
        ("in_features", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("dtype", ctypes.c_int64),
        ("panels", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
    ]


class _LinearArgs(ctypes.Structure):
    _fields_: ClassVar = [
        ("weight", LinearStruct),
        ("x", ctypes.c_void_p),
        ("x_stride", ctypes.c_int64),
        ("y", ctypes.c_void_p),
        ("y_stride", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("epilogue", ctypes.c_int32),
    ]


class WeightMemory:
    """Memory for packed weights, cut from large pieces that the system backs with huge pages.

    Reading all weights for one row is bound by address translation otherwise: a quarter slower in 4 KB pages. A piece
    lives as long as one of the tensors in it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._piece = torch.empty(0, dtype=torch.uint8)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, library: CpuLibrary) -> Tensor:
        """Return an uninitialised tensor that starts at a cache line."""
        nbytes = math.prod(shape) * dtype.itemsize
        padded = -(-nbytes // 64) * 64
        with self._lock:
            if padded > len(self._piece):
                self._piece = _huge_pages(max(padded, _ARENA_BYTES), library)
            tensor, self._piece = self._piece[:nbytes], self._piece[padded:]
        return tensor.view(dtype).view(shape)


_common_memory: Final = WeightMemory()


def _huge_pages(nbytes: int, library: CpuLibrary) -> Tensor:
    """Return untouched memory at a multiple of the huge page; what is never written takes no room."""
    nbytes = -(-nbytes // _HUGE_PAGE) * _HUGE_PAGE
    memory = torch.empty(nbytes + _HUGE_PAGE, dtype=torch.uint8)
    start = -memory.data_ptr() % _HUGE_PAGE
    library.function("preread_huge_pages", [ctypes.c_void_p, ctypes.c_int64])(memory.data_ptr() + start, nbytes)
    return memory[start : start + nbytes]


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """A weight in the layout of the C++ kernels: y = x W' + b.

    The compute mode follows from the format and the variant: "float16" and "int8" (weights only, one scale for 64
    inputs of an output) multiply in float16 where the processor can and add up chunks of 64 in float32, else all is
    float32; "bfloat16" is widened to float32 (AVX512-BF16 multiplies at half the rate of float32); "float32" is
    float32. "int8_dynamic" also rounds activations to 8 bits, 128 inputs of a row with a scale of their own, and adds
    up whole numbers (AVX512-VNNI; slower, with the same result, elsewhere). Every row of the result is independent of
    the other rows.

    Attributes:
        format: of the weights.
        out_features: rows of the weight (gate and up together if gated).
        in_features: columns of the weight.
        gated: whether the rows are [gate; up], for the epilogue "silu_mul".
        panels: the packed weights, [panels of 32 outputs, in_features, 32]; those of "int8" have two more rows, of
            scales, before every 64. See cpu/linear.h for "int8_dynamic".
        scales: of each packed output, float32; None for formats without.
        bias: of each packed output, float32, or None.
    """

    format: WeightFormat
    out_features: int
    in_features: int
    gated: bool
    panels: Tensor
    scales: Tensor | None
    bias: Tensor | None
    library: CpuLibrary

    @classmethod
    def pack(
        cls,
        weight: Tensor,
        bias: Tensor | None = None,
        format: WeightFormat = "float32",  # noqa: A002
        *,
        silu_mul: bool = False,
        library: CpuLibrary | None = None,
        memory: WeightMemory | None = None,
    ) -> Self:
        """Pack a weight [out, in] of float32, bfloat16 or float16.

        Args:
            weight: [out_features, in_features].
            bias: [out_features], or None.
            format: one of `FORMATS`.
            silu_mul: the rows are [gate; up] and results are silu(gate) * up.
            library: the kernels; the best ones that run here if None.
            memory: where the packed weight goes; some that every weight may share a piece of if None.

        Raises:
            ShapeError: the weight, the bias or the format is not one of those.
        """
        _check_weight(weight, bias, format, gated=silu_mul)
        library = library or load_library()
        out_features, in_features = weight.shape
        code, dtype = _FORMATS[format]
        panels_shape = _num_panels(out_features, gated=silu_mul), _panel_rows(in_features, format), _PANEL
        panels = (memory or _common_memory).empty(panels_shape, dtype, library)
        scales = torch.empty(len(panels), _PANEL)
        _fill_panels(weight.detach().contiguous(), panels, scales, code, gated=silu_mul, library=library)
        return cls(
            format=format,
            out_features=out_features,
            in_features=in_features,
            gated=silu_mul,
            panels=panels,
            scales=scales if format in ("float16", "int8_dynamic") else None,
            bias=None if bias is None else _pack_bias(bias, len(panels), gated=silu_mul),
            library=library,
        )

    @property
    def struct(self) -> LinearStruct:
        """Return what the C++ side takes; it is valid as long as this object lives."""
        return LinearStruct(
            _FORMATS[self.format][0],
            self.gated,
            self.out_features,
            self.in_features,
            self.panels.data_ptr(),
            _pointer(self.scales),
            _pointer(self.bias),
        )

    @property
    def nbytes(self) -> int:
        """Return the bytes that one use of the weight reads."""
        return sum(tensor.nbytes for tensor in (self.panels, self.scales, self.bias) if tensor is not None)

    @property
    def num_outputs(self) -> int:
        """Return the columns of a result: half the outputs when they are gate and up."""
        return self.out_features // 2 if self.gated else self.out_features

    def __call__(self, x: Tensor, out: Tensor | None = None, epilogue: Epilogue | None = None) -> Tensor:
        """Return x W' + b as float32 [rows, num_outputs].

        Args:
            x: float32 [rows, in_features], rows of any stride.
            out: where to write, float32 [rows, num_outputs], not overlapping x; new if None.
            epilogue: "store", "add" (to `out`), or "silu_mul" (the default, and the only one, of a gated weight).

        Raises:
            ShapeError: a tensor or the epilogue does not fit the weight.
        """
        epilogue = epilogue or ("silu_mul" if self.gated else "store")
        if epilogue not in _EPILOGUES or (epilogue == "silu_mul") != self.gated:
            raise ShapeError(
                f"epilogue {epilogue!r} does not fit a weight packed with silu_mul={self.gated}; "
                "the choices are 'silu_mul' for those, else 'store' and 'add'"
            )
        if epilogue == "add" and out is None:
            raise ShapeError("epilogue 'add' needs the tensor to add to: pass out=")
        _check_rows("x", x, None, self.in_features)
        if out is None:
            out = torch.empty(len(x), self.num_outputs)
        _check_rows("out", out, len(x), self.num_outputs)
        args = _LinearArgs(
            self.struct, x.data_ptr(), x.stride(0), out.data_ptr(), out.stride(0), len(x), _EPILOGUES[epilogue]
        )
        self.library.function("preread_linear", [ctypes.POINTER(_LinearArgs)])(args)
        return out


def _num_panels(out_features: int, *, gated: bool) -> int:
    return 2 * -(-(out_features // 2) // _PANEL) if gated else -(-out_features // _PANEL)


def _panel_rows(in_features: int, weight_format: WeightFormat) -> int:
    """Return the rows of 32 that a panel has: of the inputs, and of scales."""
    if weight_format == "int8_dynamic":
        return -(-in_features // 4) * 4
    return in_features + (-(-in_features // _GROUP_INPUTS) * _GROUP_HEAD if weight_format == "int8" else 0)


def _fill_panels(
    weight: Tensor, panels: Tensor, scales: Tensor, code: int, *, gated: bool, library: CpuLibrary
) -> None:
    """Write a contiguous weight [out, in] into panels, and the scales of its rows into `scales` [panels, rows]."""
    args = _PackArgs(
        code,
        gated,
        *weight.shape,
        weight.data_ptr(),
        DTYPE_CODES[weight.dtype],
        panels.data_ptr(),
        scales.data_ptr(),
    )
    library.function("preread_linear_pack", [ctypes.POINTER(_PackArgs)])(args)


def _pack_bias(bias: Tensor, panels: int, *, gated: bool) -> Tensor:
    """Return the bias in the order of the packed outputs, 0 where they are padding."""
    parts = 2 if gated else 1
    padded = torch.zeros(parts, panels // parts * _PANEL)
    padded[:, : len(bias) // parts] = bias.detach().reshape(parts, -1)
    return padded.view(parts, -1, _PANEL).transpose(0, 1).contiguous().view(panels, _PANEL)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _check_weight(weight: Tensor, bias: Tensor | None, weight_format: str, *, gated: bool) -> None:
    if weight_format not in _FORMATS:
        raise ShapeError(f"weight format {weight_format!r} does not exist; choose from {', '.join(FORMATS)}")
    if weight.dim() != 2 or 0 in weight.shape or (gated and weight.shape[0] % 2):
        need = "[gate; up, in]: an even number of rows" if gated else "[out, in]"
        raise ShapeError(f"a weight is {need}, at least one each; got {list(weight.shape)}")
    if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16) or weight.device.type != "cpu":
        raise ShapeError(f"a weight is float32, bfloat16 or float16 on the CPU; got {weight.dtype} on {weight.device}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(f"the bias of a weight {list(weight.shape)} is [{weight.shape[0]}]; got {list(bias.shape)}")


def _check_rows(name: str, tensor: Tensor, rows: int | None, columns: int) -> None:
    fits = tensor.dim() == 2 and tensor.shape[1] == columns and (rows is None or len(tensor) == rows)
    plain = tensor.dtype == torch.float32 and tensor.device.type == "cpu"
    if not (fits and plain and (columns == 1 or tensor.stride(1) == 1)):
        raise ShapeError(
            f"{name} is float32 [{'rows' if rows is None else rows}, {columns}] on the CPU with adjacent columns; "
            f"got {tensor.dtype} {list(tensor.shape)} with strides {list(tensor.stride())} on {tensor.device}"
        )
