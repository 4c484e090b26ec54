"""The decoder's logits equal transformers' float32 eager logits, over paged blocks with ragged runs."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import MODELS, make_folder

from engine.config import EngineConfig
from engine.models.decoder import Decoder
from engine.models.loader import load_models
from engine.models.model import Model
from kernels.backend import available_backends, get_backend
from kernels.kv_cache import KVCache
from kernels.runs import Run, SequencePlan

BLOCK_SIZE = 4
# interpreted, triton takes minutes for all of this: test_triton_*.py choose from it
BACKENDS = [name for name, reason in available_backends().items() if reason is None and name != "triton"]


@pytest.fixture(params=MODELS)
def model(request, tmp_path):
    family, settings = MODELS[request.param]
    return make_folder(tmp_path, family, settings), tmp_path


class PagedSequence:
    """A prompt in runs of given lengths, each starting at slot 0 of its own scattered blocks."""

    def __init__(self, tokens: list[int], run_lengths: list[int], free_blocks: list[int]):
        assert sum(run_lengths) == len(tokens)
        self.tokens, self.runs, self.slots, start = tokens, [], [], 0
        for length in run_lengths:
            blocks = tuple(free_blocks.pop() for _ in range(-(-length // BLOCK_SIZE)))
            self.runs.append(Run(blocks, length, start))
            self.slots += [blocks[i // BLOCK_SIZE] * BLOCK_SIZE + i % BLOCK_SIZE for i in range(length)]
            start += length

    def plan(self, done: int, upto: int) -> SequencePlan:
        """Compute positions done..upto; runs are cut at what is computed then."""
        runs = [Run(r.block_ids, max(0, min(r.num_tokens, upto - r.start)), r.start) for r in self.runs]
        return SequencePlan(range(done, upto), tuple(runs))


def load(folder: Path, backend: str, dtype: str, weights: str = "full") -> Model:
    models = load_models(folder, EngineConfig(weights=weights), getattr(torch, dtype), get_backend(backend))
    return models.full if weights == "full" else models.lean


def run_steps(
    decoder: Model, sequences: list[PagedSequence], steps: list[list[tuple[int, int]]], dtype: str = "float32"
) -> list[torch.Tensor]:
    """Run steps of (done, upto) per sequence over a NaN-filled cache; return all logits of every sequence."""
    config = decoder.config
    shape = (64, BLOCK_SIZE, config.num_layers, config.num_kv_heads, config.head_dim)
    cache = KVCache.allocate(*shape, getattr(torch, dtype))
    cache.data.fill_(torch.nan)
    logits: list[list[torch.Tensor]] = [[] for _ in sequences]
    for step in steps:
        intervals = [(s, done, upto) for s, (done, upto) in zip(sequences, step, strict=True)]
        plan = decoder.plan([s.plan(done, upto) for s, done, upto in intervals], BLOCK_SIZE)
        tokens = [t for s, done, upto in intervals for t in s.tokens[done:upto]]
        positions = [p for _, done, upto in intervals for p in range(done, upto)]
        slots = [slot for s, done, upto in intervals for slot in s.slots[done:upto]]
        rows = torch.arange(len(tokens))
        out = decoder.forward(torch.tensor(tokens), torch.tensor(positions), torch.tensor(slots), plan, cache, rows)
        assert out.dtype == torch.float32
        for index, part in enumerate(out.split([upto - done for _, done, upto in intervals])):
            logits[index].append(part)
    return [torch.cat(parts) for parts in logits]


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(97, (n,), generator=generator).tolist() for n in (45, 30)]


def paged(first: list[int], second: list[int]) -> list[PagedSequence]:
    free = torch.randperm(64, generator=torch.Generator().manual_seed(2)).tolist()
    return [PagedSequence(first, [5, 1, 8, 20, 11], free), PagedSequence(second, [30], free)]


STEPS = [[(0, 7), (0, 30)], [(7, 20), (30, 30)], [(20, 44), (30, 30)], [(44, 45), (30, 30)]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_equal_transformers(model, backend):
    peer, folder = model
    first, second = prompts()
    decoder = load(folder, backend, "float32")
    chunked = run_steps(decoder, paged(first, second), STEPS)
    whole = run_steps(decoder, paged(first, second), [[(0, 45), (0, 30)]])
    for tokens, in_chunks, at_once in zip((first, second), chunked, whole, strict=True):
        with torch.inference_mode():
            expected = peer(torch.tensor([tokens])).logits[0]
        scale = (expected.max() - expected.min()).item()
        assert (at_once - expected).abs().max().item() < 1e-5 * scale
        assert (in_chunks - expected).abs().max().item() < 1e-5 * scale


# Share of the logits' range by which they are off on average, after three layers of random weights: bf16 keeps 8 bits,
# float16 11, an 8-bit weight is off by up to 1/254 of the largest of its row.
COARSE = [("bfloat16", "full", 0.02), ("float16", "full", 0.003), ("float32", "int8", 0.01), ("float16", "int8", 0.01)]


@pytest.mark.parametrize(("dtype", "weights", "tolerance"), COARSE)
@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_in_fewer_bits_are_near_float32(tmp_path, backend, dtype, weights, tolerance):
    if weights == "int8" and backend != "cpu":
        pytest.skip("only the C++ kernels have 8-bit weights")
    family, settings = MODELS["qwen3-norms"]
    peer = make_folder(tmp_path, family, settings)
    first, second = prompts()
    logits = run_steps(load(tmp_path, backend, dtype, weights), paged(first, second), STEPS, dtype)[0]
    with torch.inference_mode():
        expected = peer(torch.tensor([first])).logits[0]
    assert (logits - expected).abs().mean() < tolerance * (expected.max() - expected.min())


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_logit_rows_are_returned(tmp_path, backend):
    make_folder(tmp_path, "Llama", {})
    decoder = load(tmp_path, backend, "float32")
    sequence = PagedSequence(prompts()[1], [30], list(range(64)))
    everything = run_steps(decoder, [sequence], [[(0, 30)]])[0]
    config = decoder.config
    cache = KVCache.allocate(64, BLOCK_SIZE, config.num_layers, config.num_kv_heads, config.head_dim, torch.float32)
    arguments = (torch.tensor(sequence.tokens), torch.arange(30), torch.tensor(sequence.slots))
    rows = torch.tensor([3, 29])
    plan = decoder.plan([sequence.plan(0, 30)], BLOCK_SIZE)
    some = decoder.forward(*arguments, plan, cache, rows)
    torch.testing.assert_close(some, everything[rows], rtol=1e-5, atol=1e-5)
    none = decoder.forward(*arguments, plan, cache, torch.tensor([], dtype=torch.int64))
    assert none.shape == (0, 97)


def test_sharded_weights_are_the_same(tmp_path):
    make_folder(tmp_path / "whole", "Qwen2", {})
    make_folder(tmp_path / "shards", "Qwen2", {}, shard=True)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    whole, shards = (
        Decoder.from_folder(tmp_path / name, dtype=torch.float32, backend=get_backend("reference"))
        for name in ("whole", "shards")
    )
    first, second = prompts()
    for a, b in zip(*(run_steps(d, paged(first, second), STEPS) for d in (whole, shards)), strict=True):
        assert torch.equal(a, b)


def as_v4(folder: Path) -> None:
    """Rewrite config.json as transformers v4 wrote it: rope_theta and rope_scaling at the top, torch_dtype."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("name", ["llama-tied", "llama-llama3-rope", "qwen2-mixed-windows"])
def test_both_forms_of_config_give_the_same_logits(tmp_path, name):
    make_folder(tmp_path, *MODELS[name])
    first, second = prompts()
    v5 = Decoder.from_folder(tmp_path, dtype=torch.float32, backend=get_backend("reference"))
    as_v4(tmp_path)
    v4 = Decoder.from_folder(tmp_path, dtype=torch.float32, backend=get_backend("reference"))
    assert v4.config == v5.config
    for a, b in zip(*(run_steps(d, paged(first, second), STEPS) for d in (v4, v5)), strict=True):
        assert torch.equal(a, b)


def test_weights_of_the_saved_dtype_are_not_copied(tmp_path):
    make_folder(tmp_path, "Llama", {})
    decoder = Decoder.from_folder(tmp_path, dtype=torch.float32, backend=get_backend("reference"))
    saved = load_file(tmp_path / "model.safetensors")
    torch.testing.assert_close(decoder.layers[1].down.weight, saved["model.layers.1.mlp.down_proj.weight"])
    gate = saved["model.layers.2.mlp.gate_proj.weight"]
    torch.testing.assert_close(decoder.layers[2].gate_up.weight[:80], gate)
