"""Padded steps: the same logits and KV as the step alone. What is captured runs here as it is, interpreted.

The capture itself is tested where there is a GPU, with TRITON_INTERPRET=0.
"""

from collections.abc import Sequence

import pytest
import torch
from tiny_models import make_engine_folder

from engine.batch import Batch
from engine.cuda_graphs import CudaGraphs
from engine.models.decoder import Decoder
from kernels.backend import get_backend
from kernels.kv_cache import KVCache
from kernels.runs import Run, SequencePlan
from kernels.triton_attention import TritonBackend
from kernels.triton_kernels import INTERPRETED

BLOCK_SIZE, NUM_BLOCKS, MAX_LEN = 4, 60, 128
DEVICE = "cpu" if INTERPRETED else "cuda"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["llama-tied", "qwen3-yarn-window"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    make_engine_folder(path, request.param)
    return path


def load(folder, backend, device=DEVICE) -> Decoder:
    return Decoder.from_folder(folder, dtype=torch.float32, device=device, backend=backend)


def new_cache(decoder: Decoder, device=DEVICE) -> KVCache:
    """A cache whose contents are the same each time; the last block's are NaN."""
    config = decoder.config
    shape = (NUM_BLOCKS, BLOCK_SIZE, config.num_layers, config.num_kv_heads, config.head_dim)
    cache = KVCache.allocate(*shape, torch.float32)
    cache.data.copy_(torch.randn(cache.data.shape, generator=torch.Generator().manual_seed(3)))
    cache.data[-1] = torch.nan
    return KVCache(cache.data.to(device))


def batch_of(sequences: Sequence[SequencePlan], logit_rows: Sequence[int], device=DEVICE) -> Batch:
    """A step in which each sequence computes its positions, which lie in its last run."""
    positions = [p for sequence in sequences for p in sequence.query_positions]
    offsets = [(s.runs[-1].block_ids, p - s.runs[-1].start) for s in sequences for p in s.query_positions]
    slots = [blocks[offset // BLOCK_SIZE] * BLOCK_SIZE + offset % BLOCK_SIZE for blocks, offset in offsets]
    return Batch(
        torch.tensor([7 * p % 97 for p in positions], device=device),
        torch.tensor(positions, device=device),
        torch.tensor(slots, device=device),
        tuple(sequences),
        torch.tensor(logit_rows, dtype=torch.int64, device=device),
        private=False,
    )


def decode(*private: int) -> list[SequencePlan]:
    """A sequence a number: a shared template, a passage at its own shift, so many tokens, the last of them new."""
    template, passage, sequences = Run((0, 1, 2), 10, 0), (3, 4, 5, 6), []
    for index, length in enumerate(private):
        blocks = tuple(range(10 + 10 * index, 20 + 10 * index))
        moved = Run(passage, 14, 10 + index, shift=index)
        tail = Run(blocks[: -(-length // BLOCK_SIZE)], length, 24 + index)
        sequences.append(SequencePlan((23 + index + length,), (template, moved, tail)))
    return sequences


STEPS = [
    (decode(3, 5, 1), [0, 1, 2]),
    (decode(9), [0]),
    (decode(4, 4, 4, 4), [1, 3]),
    # three tokens of a prompt and one of another
    ([SequencePlan(range(24, 27), decode(3)[0].runs), *decode(3, 8)[1:]], [2, 3]),
    (decode(2, 6, 2), []),
]


def expected(folder, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and the cache after the same step, not padded, with the reference kernels."""
    decoder = load(folder, get_backend("reference"), "cpu")
    cache = new_cache(decoder, "cpu")
    batch = batch_of(batch.sequences, batch.logit_rows.tolist(), "cpu")
    plan = decoder.plan(batch.sequences, BLOCK_SIZE)
    logits = decoder.forward(batch.token_ids, batch.positions, batch.slot_mapping, plan, cache, batch.logit_rows)
    return logits, cache.data


def test_padded_steps_equal_plain_ones(folder):
    """One after the other through the same buffers: a smaller step sees nothing of the larger one before it."""
    decoder = load(folder, TritonBackend())
    cache = new_cache(decoder)
    initial = cache.data.clone()
    graphs = CudaGraphs(decoder, cache, max_rows=4, max_model_len=MAX_LEN, capture=not INTERPRETED)
    for sequences, logit_rows in STEPS:
        cache.data.copy_(initial)
        batch = batch_of(sequences, logit_rows)
        logits = graphs.run(batch)
        wanted, wanted_kv = expected(folder, batch)
        assert logits.shape == wanted.shape
        torch.testing.assert_close(logits.cpu(), wanted, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(cache.data.cpu(), wanted_kv, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert sorted(graphs._steps) == [1, 4]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Decoder:
    path = tmp_path_factory.mktemp("small")
    make_engine_folder(path, "llama-tied")
    return load(path, TritonBackend())


def test_what_fits_no_graph_is_left_to_the_caller_and_nothing_is_written(small):
    cache = new_cache(small)
    before = cache.data.clone()
    graphs = CudaGraphs(small, cache, max_rows=2, max_model_len=40, capture=False)
    too_long = SequencePlan((63,), (Run(tuple(range(16)), 64, 0),))
    scattered = Run((0,), 1, 0), *(Run((1 + i,), 1, 1 + i, shift=i) for i in range(30))
    for sequences in (decode(1, 1, 1), [too_long], [SequencePlan((30,), scattered)]):
        assert graphs.run(batch_of(sequences, [0])) is None
    assert torch.equal(cache.data.nan_to_num(9.0), before.nan_to_num(9.0))


@pytest.mark.parametrize(("max_rows", "sizes"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 8]), (16, [1, 2, 4, 8, 16])])
def test_sizes_are_powers_of_two(small, max_rows, sizes):
    graphs = CudaGraphs(small, new_cache(small), max_rows=max_rows, max_model_len=MAX_LEN)
    assert list(graphs._sizes) == sizes


def test_graphs_are_for_triton_on_cuda(tiny_folder, small):
    """Elsewhere the caller gets none and runs every step as it is."""
    on_cpu = load(tiny_folder, get_backend("reference"), "cpu")
    assert CudaGraphs.for_model(on_cpu, new_cache(on_cpu, "cpu"), max_rows=4, max_model_len=MAX_LEN) is None
    graphs = CudaGraphs.for_model(small, new_cache(small), max_rows=4, max_model_len=MAX_LEN)
    assert (graphs is not None) == (DEVICE == "cuda")
