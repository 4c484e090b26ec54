"""KV kept in 8 bits: half the memory, the same answers in steps of any shape and after a restart."""

import random
from pathlib import Path

import pytest
import torch
from engine_helpers import BLOCK, ask, check_settled, passage, random_tokens, tail, template, tiny_engine

from engine import Engine, EngineConfig, Prompt, Reuse, SamplingParams
from engine.errors import ConfigError
from engine.kv_store import ExtentStore
from kernels.cpu_library import available_variants

pytestmark = pytest.mark.usefixtures("one_thread")

EIGHT = SamplingParams(max_tokens=8, ignore_eos=True)


def prompts() -> list[Prompt]:
    """Prompts that share a template and a passage, with blocks that are partly filled."""
    generator = random.Random(5)
    head = [template(random_tokens(generator, 21)), passage(random_tokens(generator, 50))]
    return [Prompt([*head, passage(random_tokens(generator, 33 + i)), tail((3, 4, 5 + i))]) for i in range(3)]


def answers(engine: Engine) -> list[tuple[int, ...]]:
    found = [generation.token_ids for generation in engine.generate(prompts(), EIGHT)]
    check_settled(engine)
    return found


@pytest.fixture(scope="module")
def expected(tiny_folder) -> list[tuple[int, ...]]:
    engine = tiny_engine(tiny_folder, kv_dtype="int8")
    return [engine.generate([prompt], EIGHT)[0].token_ids for prompt in prompts()]


@pytest.mark.parametrize(
    "settings", [{}, {"max_num_batched_tokens": 7}, {"max_num_seqs": 1}, {"num_blocks": 16}], ids=str
)
def test_answers_do_not_depend_on_the_shape_of_steps(settings, tiny_folder, expected):
    engine = tiny_engine(tiny_folder, kv_dtype="int8", **settings)
    assert answers(engine) == expected
    assert answers(engine) == expected, "with what is cached by now"


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=pytest.mark.skipif(
    not available_variants(), reason="the C++ kernels are not compiled"))])  # fmt: skip
def test_other_backends_say_what_the_reference_says(backend, tiny_folder, expected):
    settings = {"kv_dtype": "int8", "weights": "full"}
    engines = [tiny_engine(tiny_folder, backend=name, **settings) for name in ("reference", backend)]
    ours, theirs = (ask(engine, prompts()[0], forced=expected[0]).forced_logprobs for engine in engines)
    # a value that lies between two of the 255 may be rounded either way where it is computed in other steps
    assert divergence(ours, theirs) < 2e-3


def test_eight_bits_are_close_to_the_numbers_they_stand_for(tiny_folder, expected):
    ours, exact = (
        ask(tiny_engine(tiny_folder, kv_dtype=name), prompts()[0], forced=expected[0]).forced_logprobs
        for name in ("int8", "auto")
    )
    assert not torch.equal(ours, exact)
    assert divergence(exact, ours) < 0.01


def divergence(exact: torch.Tensor, other: torch.Tensor) -> float:
    """Mean KL of log-probabilities [tokens, vocab], in nats."""
    return float((exact.exp() * (exact - other)).sum(-1).mean())


def test_fewer_bytes_a_token_hold_more_tokens(tiny_folder):
    config = {"dtype": "float32", "backend": "reference", "kv_cache_bytes": 1 << 20}
    engines = {
        name: Engine.from_pretrained(tiny_folder, EngineConfig(kv_dtype=name, **config))
        for name in ("auto", "float32", "float16", "int8")
    }
    blocks = {name: engine.stats().num_blocks for name, engine in engines.items()}
    assert blocks["auto"] == blocks["float32"]
    dim = engines["int8"].runner.model.config.head_dim
    assert blocks["int8"] / blocks["float16"] == pytest.approx(2 * dim / (dim + 4), rel=0.02)


def test_a_store_of_one_kind_is_not_read_as_another(tiny_folder):
    engines = {name: tiny_engine(tiny_folder, kv_dtype=name) for name in ("auto", "float32", "float16", "int8")}
    identities = {name: engine.identity for name, engine in engines.items()}
    assert {(name, i.compute_mode, i.kv_dtype) for name, i in identities.items()} == {
        ("auto", "float32", "float32"),
        ("float32", "float32", "float32"),
        ("float16", "float32", "float16"),
        ("int8", "float32", "int8"),
    }
    assert len({identity.digest for identity in identities.values()}) == 3


def test_the_disk_keeps_scales_too(tiny_folder, tmp_path: Path):
    def run() -> tuple[tuple[int, ...], list[str | None]]:
        store = ExtentStore(tmp_path / "kv", capacity_bytes=1 << 30)
        engine = tiny_engine(tiny_folder, kv_dtype="int8", store=store)
        result = ask(engine, prompts()[1], EIGHT, reuse=Reuse.CHUNK, uncertified_repair=BLOCK)
        engine.close()
        store.close()
        return result.token_ids, [report.tier for report in result.cache.segments[:-1]]

    first, tiers = run()
    again, tiers_again = run()
    assert None in tiers
    assert tiers_again == ["disk"] * 3
    assert again == first


def test_purged_blocks_keep_no_scales(tiny_folder):
    engine = tiny_engine(tiny_folder, kv_dtype="int8", num_blocks=40)
    first, second = (segment for segment in prompts()[0].segments[:2])
    engine.precompute(first, [second])
    assert engine.purge("", [second.tokens])
    free = engine.cache.pool.free_blocks
    assert not engine.runner.kv_cache.data[free].any()
    assert not engine.runner.kv_cache.scales[free].any()


def test_unknown_kinds_are_refused():
    with pytest.raises(ConfigError, match="kv_dtype 'int4'"):
        EngineConfig(kv_dtype="int4")
