"""A decoder is made of weights that fit together, or not at all; what it computes is tested against the reference."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from engine import Engine, EngineConfig
from kernels.cpu_decoder import CpuDecoder
from kernels.cpu_library import available_variants
from kernels.cpu_linear import PackedLinear
from kernels.cpu_weights import WeightSet
from kernels.errors import ShapeError
from kernels.runs import Run, SequencePlan

pytestmark = pytest.mark.skipif(not available_variants(), reason="the C++ kernels are not compiled")

HIDDEN, HEADS, KV_HEADS, DIM, INNER = 24, 3, 1, 8, 40


def linear(out_features: int, in_features: int, *, silu_mul: bool = False) -> PackedLinear:
    return PackedLinear.pack(torch.ones(out_features, in_features), silu_mul=silu_mul)


def weights() -> WeightSet:
    linears = {
        "layers.0.qkv": linear((HEADS + 2 * KV_HEADS) * DIM, HIDDEN),
        "layers.0.output": linear(HIDDEN, HEADS * DIM),
        "layers.0.gate_up": linear(2 * INNER, HIDDEN, silu_mul=True),
        "layers.0.down": linear(HIDDEN, INNER),
        "head": linear(50, HIDDEN),
    }
    norms = {f"layers.0.{name}": torch.ones(HIDDEN) for name in ("input_norm", "mlp_norm")}
    heads = {f"layers.0.{name}": torch.ones(DIM) for name in ("q_norm", "k_norm")}
    return WeightSet(linears, {**norms, **heads, "norm": torch.ones(HIDDEN)})


def decoder(parts: WeightSet) -> CpuDecoder:
    return CpuDecoder(parts, num_layers=1, num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=DIM, eps=1e-5)


def test_weights_that_fit():
    parts = weights()
    assert decoder(parts).nbytes == sum(part.nbytes for part in parts.linears.values())


@pytest.mark.parametrize("name", ["layers.0.qkv", "layers.0.output", "layers.0.gate_up", "layers.0.down", "head"])
def test_a_linear_of_another_shape_is_refused(name):
    parts = weights()
    wrong = linear(parts.linears[name].out_features, 23, silu_mul=parts.linears[name].gated)
    with pytest.raises(ShapeError):
        decoder(replace(parts, linears={**parts.linears, name: wrong}))


@pytest.mark.parametrize(
    "name", ["norm", "layers.0.input_norm", "layers.0.mlp_norm", "layers.0.q_norm", "layers.0.k_norm"]
)
@pytest.mark.parametrize("wrong", [torch.ones(7), torch.ones(48)[::2], torch.ones(24, dtype=torch.bfloat16)])
def test_a_norm_of_another_shape_or_kind_is_refused(name, wrong: Tensor):
    parts = weights()
    with pytest.raises(ShapeError, match=name.rpartition(".")[2]):
        decoder(replace(parts, vectors={**parts.vectors, name: wrong}))


def test_fewer_threads_than_planned_change_nothing(tiny_folder):
    config = EngineConfig(dtype="float16", weights="full", kv_cache_bytes=4 << 20)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        runner = Engine.from_pretrained(tiny_folder, config).runner
        for rows in (1, 5, 200):
            plan = runner.model.plan([SequencePlan(range(rows), (Run(tuple(range(13)), rows, 0),))], 16)
            ids = torch.arange(rows)
            found = []
            for count in (3, 2, 1):
                torch.set_num_threads(count)
                found.append(runner.model.forward(ids % 50, ids, ids, plan, runner.kv_cache, ids))
            torch.set_num_threads(3)
            assert torch.equal(found[0], found[1])
            assert torch.equal(found[0], found[2])
    finally:
        torch.set_num_threads(threads)
