"""The least time that a case can take: operations over the measured peak, bytes over the measured bandwidth."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rag.bench.engine_cases import Case
from rag.bench.engine_report import Bandwidth, Bound, Floor, Machine

if TYPE_CHECKING:
    from engine.models.config import ModelConfig

__all__ = ["EIGHT_BIT", "INT8_BYTES", "ModelShape", "Storage", "floor_of", "visible_pairs"]


EIGHT_BIT = "int8x8"  # weights and activations
INT8_BYTES = 1 + 2 / 64  # of a weight of our kernels with its share of a bfloat16 scale, one for 64 inputs


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a model computes and stores for a token.

    Attributes:
        matrices: (out, in) features of one layer's linear layers, fused where they can be.
        layers: how many.
        head: parameters of the output head.
        pair_operations: of attention, for one query, one key, one layer: two multiplications and two additions for
            each head and dimension.
        kv_values: keys and values of one token in one layer.
        windows: sliding window of every layer; None sees everything.
    """

    matrices: tuple[tuple[int, int], ...]
    layers: int
    head: int
    pair_operations: int
    kv_values: int
    windows: tuple[int | None, ...]

    @classmethod
    def of(cls, config: "ModelConfig") -> "ModelShape":
        """Read it from a model's configuration."""
        hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
        return cls(
            matrices=(
                ((config.num_heads + 2 * config.num_kv_heads) * dim, hidden),
                (hidden, config.num_heads * dim),
                (2 * inner, hidden),
                (hidden, inner),
            ),
            layers=config.num_layers,
            head=config.vocab_size * hidden,
            pair_operations=4 * config.num_heads * dim,
            kv_values=2 * config.num_kv_heads * dim,
            windows=config.layer_windows,
        )

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer's linear layers."""
        return sum(rows * columns for rows, columns in self.matrices)

    @property
    def linear_parameters(self) -> int:
        """Weights of every layer's linear layers, without the head."""
        return self.layers * self.layer_parameters


@dataclass(frozen=True, slots=True)
class Storage:
    """In what the engine computes, and how large its numbers are.

    Attributes:
        modes: names of the dtypes whose measured peak counts.
        kv_bytes: of one stored key or value.
        weight_bytes: of one weight.
    """

    modes: tuple[str, ...]
    kv_bytes: float
    weight_bytes: float


def visible_pairs(first: int, count: int, window: int | None) -> int:
    """Count the keys that `count` queries from position `first` on see, each its own and those before it."""
    if window is None:
        return count * first + count * (count + 1) // 2
    growing = max(0, min(count, window - 1 - first))  # queries that see everything before them and less than a window
    return growing * first + growing * (growing + 1) // 2 + (count - growing) * window


def floor_of(case: Case, shape: ModelShape, storage: Storage, machine: Machine) -> Floor:
    """Compute the floor of a case; every layer is counted for every computed token, the head where one is sampled."""
    rows = case.batch if case.decodes else case.new
    first = case.context if case.decodes else case.cached
    linear = 2 * rows * shape.linear_parameters
    pairs = case.batch * sum(visible_pairs(first, 1 if case.decodes else case.new, window) for window in shape.windows)
    operations = linear + 2 * case.batch * shape.head + pairs * shape.pair_operations
    traffic = int(
        storage.weight_bytes * (shape.linear_parameters + shape.head) + storage.kv_bytes * _kv_read(case, shape)
    )
    compute_ms = operations / (1e6 * _peak(machine, storage.modes))
    memory_ms = traffic / (1e6 * _bandwidth(machine.bandwidth, traffic))
    return Floor(
        operations=operations,
        bytes=traffic,
        compute_ms=compute_ms,
        memory_ms=memory_ms,
        ms=max(compute_ms, memory_ms),
        bound=Bound.COMPUTE if compute_ms >= memory_ms else Bound.MEMORY,
        linear_ms=linear / (1e6 * _best_rate(machine, storage.modes, rows)),
    )


def _kv_read(case: Case, shape: ModelShape) -> int:
    """Count the stored keys and values that a step has to read: those before it, a shared passage once."""
    own = case.new if case.decodes else 0
    values = 0
    for window in shape.windows:
        if window is not None and window < case.context:  # the passage is not seen whole: count what each one sees
            values += case.batch * min(window, case.cached + own)
        else:
            values += case.cached * (1 if case.shared else case.batch) + own * case.batch
    return values * shape.kv_values


def _peak(machine: Machine, modes: tuple[str, ...]) -> float:
    """Return the best measured rate of the compute modes, at any number of rows; of all where they have none."""
    rates = [rate.gflops for rate in machine.gemm if rate.dtype in modes]
    return max(rates or [rate.gflops for rate in machine.gemm])


def _best_rate(machine: Machine, modes: tuple[str, ...], rows: int) -> float:
    """Return the best rate of any kernel at the measured number of rows that is nearest.

    8-bit activations are another arithmetic: they count only where they are the compute mode.
    """
    rates = [rate for rate in machine.gemm if rate.dtype != EIGHT_BIT or EIGHT_BIT in modes]
    nearest = min({rate.rows for rate in rates}, key=lambda measured: (abs(measured - rows), measured))
    return max(rate.gflops for rate in rates if rate.rows == nearest)


def _bandwidth(measured: list[Bandwidth], traffic: int) -> float:
    """Return the bandwidth over the largest size that is no larger than the traffic, or over the smallest."""
    sizes = sorted(measured, key=lambda item: item.bytes)
    return max((item for item in sizes if item.bytes <= traffic), key=lambda item: item.bytes, default=sizes[0]).gbytes
