"""Small steps as CUDA graphs: a decode step is hundreds of short kernels that take longer to launch than to run.

A graph replays fixed kernels on fixed addresses, so a step is padded to the next of a few numbers of rows and its
inputs are copied into the buffers that were captured. Attention follows: its work items are such inputs too.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.batch import Batch
from engine.models.model import Model
from kernels.kv_cache import KVCache

if TYPE_CHECKING:
    from kernels.triton_attention import StaticPlan

__all__ = ["CudaGraphs", "PaddedStep"]

# before capturing, everything must have been compiled, tuned and allocated
WARM_UP_RUNS = 2
# runs of a sequence whose last block is partly filled; with more, a step may not fit and runs as it is
PARTIAL_BLOCKS = 16


class CudaGraphs:
    """Runs a step of few rows by replaying a graph, captured when its number of rows is first met.

    Args:
        model: computes with the triton backend.
        kv_cache: read and written.
        max_rows: steps of more rows are not for a graph.
        max_model_len: prompt positions are below it.
        capture: False runs the padded steps as they are, which needs no CUDA.
    """

    def __init__(
        self, model: Model, kv_cache: KVCache, *, max_rows: int, max_model_len: int, capture: bool = True
    ) -> None:
        self._model = model
        self._kv_cache = kv_cache
        self._max_model_len = max_model_len
        self._capture = capture
        self._sizes = _powers_of_two(max_rows)
        self._steps: dict[int, PaddedStep] = {}
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    @classmethod
    def for_model(cls, model: Model, kv_cache: KVCache, *, max_rows: int, max_model_len: int) -> "CudaGraphs | None":
        """Return graphs for a model on a CUDA device with the triton backend; None for any other."""
        if model.backend.name != "triton" or kv_cache.data.device.type != "cuda":
            return None
        return cls(model, kv_cache, max_rows=max_rows, max_model_len=max_model_len)

    @torch.inference_mode()
    def run(self, batch: Batch) -> Tensor | None:
        """Compute a step's KV and return logits [R, vocab] float32; None, with nothing done, if no graph fits it."""
        size = next((size for size in self._sizes if size >= len(batch.token_ids)), None)
        if size is None:
            return None
        if size not in self._steps:
            self._steps[size] = PaddedStep(self._model, self._kv_cache, size, self._max_model_len)
        step = self._steps[size]
        if not step.fill(batch):
            return None
        logits = self._replayed(step) if self._capture else step.forward()
        return logits[batch.logit_rows]

    def _replayed(self, step: "PaddedStep") -> Tensor:
        """Run the step that was filled in by its graph."""
        if step.num_rows not in self._graphs:
            with torch.cuda.device(self._kv_cache.data.device):
                self._graphs[step.num_rows] = self._captured(step)
        graph, logits = self._graphs[step.num_rows]
        graph.replay()
        return logits

    def _captured(self, step: "PaddedStep") -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Capture a step that holds real work, which autotuning then measures; to run it twice changes nothing."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                step.forward()
        torch.cuda.current_stream().wait_stream(stream)
        # one pool for all: only one graph runs at a time, and its logits are read before the next
        pool = next((graph.pool() for graph, _ in self._graphs.values()), None)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            logits = step.forward()
        return graph, logits


class PaddedStep:
    """A step of a fixed number of rows at fixed addresses.

    Rows beyond those of the batch hold token 0, attend to nothing and have slot -1, which is written nowhere.
    """

    def __init__(self, model: Model, kv_cache: KVCache, num_rows: int, max_model_len: int) -> None:
        self.num_rows = num_rows
        self._model = model
        self._kv_cache = kv_cache
        self._static = _static_plan(model, kv_cache, num_rows, max_model_len)
        device = kv_cache.data.device
        self._token_ids = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._slots = torch.full_like(self._token_ids, -1)
        self._all_rows = torch.arange(num_rows, device=device)

    def fill(self, batch: Batch) -> bool:
        """Take over a batch of at most as many rows; False when its runs do not fit."""
        if not self._static.fill(self._model.plan(batch.sequences, self._kv_cache.block_size)):
            return False
        num_rows = len(batch.token_ids)
        self._token_ids[:num_rows].copy_(batch.token_ids, non_blocking=True)
        self._slots[:num_rows].copy_(batch.slot_mapping, non_blocking=True)
        self._token_ids[num_rows:] = 0
        self._slots[num_rows:] = -1
        return True

    def forward(self) -> Tensor:
        """Compute the step that was filled in and return logits [num_rows, vocab]; those of padding mean nothing."""
        plan = self._static.plan
        return self._model.forward(
            self._token_ids, plan.query_positions, self._slots, plan, self._kv_cache, self._all_rows
        )


def _static_plan(model: Model, kv_cache: KVCache, num_rows: int, max_model_len: int) -> "StaticPlan":
    """Return a plan with room for as many sequences as rows, each as long as the model allows or the cache holds."""
    from kernels.triton_attention import StaticPlan

    per_sequence = -(-max_model_len // kv_cache.block_size) + PARTIAL_BLOCKS
    return StaticPlan(
        model.plan((), kv_cache.block_size),
        kv_cache,
        num_rows=num_rows,
        num_heads=model.config.num_heads,
        windows=model.config.layer_windows,
        # a run read with several shifts counts for each
        max_blocks=min(num_rows * per_sequence, 2 * kv_cache.num_blocks),
        max_positions=max_model_len,
    )


def _powers_of_two(limit: int) -> tuple[int, ...]:
    """Return 1, 2, 4, ... up to the first that is not below the limit."""
    return tuple(1 << exponent for exponent in range((limit - 1).bit_length() + 1))
