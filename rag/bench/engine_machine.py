"""Measures the machine: GEMM of the model's own layers by rows, one row, and read bandwidth. Takes seconds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from engine.kernel_meter import linear_layers
from rag.bench.engine_floor import EIGHT_BIT, INT8_BYTES, ModelShape
from rag.bench.engine_report import Bandwidth, GemmRate, Machine
from rag.bench.progress import BenchEvent, Progress

__all__ = ["best_of", "measure_machine"]

ROWS = (1, 16, 32, 110, 128, 512, 1024, 2048)
SAMPLES = 5  # at most; the first one warms up
SAMPLE_OPERATIONS = 8e9  # a sample runs as many layers as reach it
SAMPLE_BYTES = 256 << 20  # of weights at most, unless one layer has more
ENOUGH_SECONDS = 0.4  # no further sample after so long
BUFFERS = tuple(n << 20 for n in (64, 128, 256, 512, 1024))
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": INT8_BYTES, "int8_dynamic": 1}  # of our packed weights
_DTYPES = {"int8_dynamic": EIGHT_BIT}  # names of formats that differ from those of the report


@dataclass(frozen=True, slots=True)
class _Kernel:
    """A way to compute linear layers.

    Attributes:
        name: who computes.
        dtype: of the weights, as in `GemmRate`.
        weight_bytes: of one weight, its share of scales included.
        rows: at which it is measured.
        prepare: from a weight [out, in] float32 to what maps rows [n, in] float32 to [n, out].
        cast: what the rows are turned into, outside the time.
    """

    name: str
    dtype: str
    weight_bytes: float
    rows: tuple[int, ...]
    prepare: Callable[[Tensor], Callable[[Tensor], Tensor]]
    cast: Callable[[Tensor], Tensor]


@torch.inference_mode()
def measure_machine(shape: ModelShape, progress: Progress) -> Machine:
    """Measure with as many threads as torch has; a kernel that this machine lacks is left out."""
    began = perf_counter()
    kernels = list(_kernels())
    gemm: list[GemmRate] = []
    for done, kernel in enumerate(kernels):
        progress(BenchEvent("machine", done, len(kernels) + 1))
        gemm += _rates(kernel, shape)
    progress(BenchEvent("machine", len(kernels), len(kernels) + 1))
    bandwidth = [_bandwidth(size) for size in BUFFERS]
    progress(BenchEvent("machine", len(kernels) + 1, len(kernels) + 1))
    return Machine(threads=torch.get_num_threads(), gemm=gemm, bandwidth=bandwidth, seconds=perf_counter() - began)


def best_of(first: Machine, second: Machine) -> Machine:
    """Merge two measurements: a ceiling is the best that was ever seen."""
    gemm = {(rate.kernel, rate.dtype, rate.rows): rate for rate in first.gemm}
    for rate in second.gemm:
        key = (rate.kernel, rate.dtype, rate.rows)
        gemm[key] = max(gemm.get(key, rate), rate, key=lambda found: found.gflops)
    bandwidth = {item.bytes: item for item in first.bandwidth}
    for item in second.bandwidth:
        bandwidth[item.bytes] = max(bandwidth.get(item.bytes, item), item, key=lambda found: found.gbytes)
    return Machine(
        threads=first.threads,
        gemm=list(gemm.values()),
        bandwidth=list(bandwidth.values()),
        seconds=first.seconds + second.seconds,
    )


def _kernels() -> Iterator[_Kernel]:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        yield _torch_kernel(dtype)
    yield _Kernel("torch", EIGHT_BIT, 1, tuple(n for n in ROWS if n >= 32), _int8_gemm, _to_int8)
    yield _Kernel("torch", "int8", 1, (1,), _int8_gemv, lambda x: x.to(torch.bfloat16))
    for name, prepare in linear_layers().items():
        yield _Kernel("preread", _DTYPES.get(name, name), _BYTES[name], ROWS, prepare, lambda x: x)


def _torch_kernel(dtype: torch.dtype) -> _Kernel:
    def prepare(weight: Tensor) -> Callable[[Tensor], Tensor]:
        converted = weight.to(dtype, copy=True)
        return lambda x: F.linear(x, converted)

    name = str(dtype).removeprefix("torch.")
    return _Kernel("torch", name, dtype.itemsize, ROWS, prepare, lambda x: x.to(dtype))


def _to_int8(x: Tensor) -> Tensor:
    return (x * 32).clamp(-127, 127).to(torch.int8)


def _int8_gemm(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Multiply int8 rows by int8 weights into int32."""
    quantised = _to_int8(weight * 100).t()
    multiply = torch._int_mm  # noqa: SLF001 - torch has no public name for it
    return lambda x: multiply(x, quantised)


def _int8_gemv(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Multiply bfloat16 rows by int8 weights with a scale an output feature, which is what torch has."""
    quantised, scales = _to_int8(weight * 100), torch.full((len(weight),), 0.01, dtype=torch.bfloat16)
    multiply = torch._weight_int8pack_mm  # noqa: SLF001 - torch has no public name for it
    return lambda x: multiply(x, quantised, scales)


def _rates(kernel: _Kernel, shape: ModelShape) -> Iterator[GemmRate]:
    """Measure a kernel at each number of rows; one that cannot run here gives nothing."""
    per_layer = shape.layer_parameters
    most = max(1, min(shape.layers, int(SAMPLE_BYTES / (per_layer * kernel.weight_bytes))))
    try:
        random = [0.02 * torch.randn(out, inner) for out, inner in shape.matrices]
        weights = [[kernel.prepare(weight) for weight in random] for _ in range(most)]  # equal, but each in its place
        for rows in kernel.rows:
            layers = max(1, min(most, round(SAMPLE_OPERATIONS / (2 * rows * per_layer))))
            inputs = [kernel.cast(torch.randn(rows, inner)) for _, inner in shape.matrices]
            seconds = _best_seconds(weights, inputs, layers)
            yield GemmRate(
                kernel=kernel.name,
                dtype=kernel.dtype,
                rows=rows,
                gflops=2e-9 * rows * per_layer * layers / seconds,
                gbytes=1e-9 * per_layer * kernel.weight_bytes * layers / seconds,
            )
    except (RuntimeError, AttributeError, NotImplementedError, ValueError):
        return


def _best_seconds(weights: list[list[Callable[[Tensor], Tensor]]], inputs: list[Tensor], layers: int) -> float:
    """Time the linear layers of `layers` layers, going round through the weights; return the best sample."""
    best, position, deadline = float("inf"), 0, perf_counter() + ENOUGH_SECONDS
    for _ in range(SAMPLES):
        chosen = [weights[(position + n) % len(weights)] for n in range(layers)]
        position += layers
        began = perf_counter()
        for layer in chosen:
            for linear, rows in zip(layer, inputs, strict=True):
                linear(rows)
        ended = perf_counter()
        best = min(best, ended - began)
        if ended > deadline:
            break
    return best


def _bandwidth(size: int) -> Bandwidth:
    """Read a buffer of so many bytes as a matrix that is multiplied by a vector."""
    columns = 4096
    matrix, vector = torch.ones(size // (4 * columns), columns), torch.ones(columns)
    best = float("inf")
    for _ in range(SAMPLES):
        began = perf_counter()
        torch.mv(matrix, vector)
        best = min(best, perf_counter() - began)
    return Bandwidth(bytes=size, gbytes=1e-9 * size / best)
