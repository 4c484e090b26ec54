"""Greedy answers equal transformers' in float32: cache cold or hit, alone or batched, whole or chunked, preempted."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from exactness import Exactness
from tiny_models import MODELS, SIZES, make_engine_folder

from engine import Engine, EngineConfig, Generation, Prompt, SamplingParams, Segment, SegmentKind

NEW_TOKENS = 64
SAMPLING = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True)


def engine_for(folder: Path, **settings) -> Engine:
    config = EngineConfig(dtype="float32", backend="reference", **{"kv_cache_bytes": 64 << 20, **settings})
    return Engine.from_pretrained(folder, config)


def answer_alone(engine: Engine, prompts: Sequence[Prompt]) -> list[Generation]:
    return [engine.generate([prompt], SAMPLING)[0] for prompt in prompts]


def check_all(exactness: Exactness, prompts: Sequence[Prompt], results: Sequence[Generation]) -> None:
    for prompt, result in zip(prompts, results, strict=True):
        assert len(result.token_ids) == NEW_TOKENS
        exactness.check(prompt.tokens, result.token_ids)


def check_every_way(folder: Path, model, prompts: list[Prompt], *, tight_blocks: int) -> Exactness:
    """Answer the prompts in every way that the engine can take and compare each answer."""
    exactness = Exactness(model)
    engine = engine_for(folder)
    cold = answer_alone(engine, prompts)
    check_all(exactness, prompts, cold)
    hit = answer_alone(engine, prompts)
    check_all(exactness, prompts, hit)
    assert all(again.cache.cached_tokens > 0 for again in hit), "the second pass found nothing in the cache"
    check_all(exactness, prompts, engine_for(folder, max_num_seqs=16).generate(prompts, SAMPLING))
    chunked = engine_for(folder, max_num_batched_tokens=23, max_num_seqs=5)
    check_all(exactness, prompts, chunked.generate(prompts, SAMPLING))
    tight = engine_for(folder, kv_cache_bytes=tight_blocks * engine.runner.kv_cache.bytes_per_block, max_num_seqs=16)
    check_all(exactness, prompts, tight.generate(prompts, SAMPLING))
    assert tight.stats().preemptions > 0, "nothing was preempted: the pool is not tight enough"
    for used in (engine, chunked, tight):
        used.check_invariants()
    return exactness


def random_tokens(generator: random.Random, low: int, high: int) -> tuple[int, ...]:
    return tuple(generator.randrange(SIZES["vocab_size"]) for _ in range(generator.randint(low, high)))


def random_prompts(count: int) -> list[Prompt]:
    """Half plain texts, half templates with passages in any order and a tail; lengths off block boundaries."""
    generator = random.Random(7)
    template = Segment(random_tokens(generator, 20, 40), SegmentKind.TEMPLATE)
    passages = [Segment(random_tokens(generator, 3, 45), SegmentKind.PASSAGE, f"p{i}") for i in range(6)]
    prompts = [Prompt.from_tokens(random_tokens(generator, 20, 90)) for _ in range(count // 2)]
    for _ in range(count - len(prompts)):
        chosen = generator.sample(passages, generator.randint(1, 3))
        tail = Segment(random_tokens(generator, 1, 20), SegmentKind.TAIL)
        prompts.append(Prompt([template, *chosen, tail]))
    return prompts


@pytest.mark.parametrize("count", [4, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MODELS)
def test_tiny_models_of_every_family(tmp_path, one_thread, name, count):
    model = make_engine_folder(tmp_path, name)
    prompts = random_prompts(count)
    blocks = 2 * max(prompt.num_blocks(16, extra_tokens=NEW_TOKENS) for prompt in prompts)
    exactness = check_every_way(tmp_path, model, prompts, tight_blocks=blocks)
    print(f"{name}: {exactness}")
    assert exactness.tokens == 5 * len(prompts) * NEW_TOKENS
    assert exactness.near_ties <= exactness.tokens // 1000


def smollm2_prompts(folder: Path, count: int) -> list[Prompt]:
    """Questions over real documentation, as template, passages and tail."""
    from pydoc_data.topics import topics

    from engine.tokenizer import Tokenizer

    tokenizer = Tokenizer(folder)
    generator = random.Random(3)
    names = sorted(topics)
    passages = {n: tuple(tokenizer.encode(topics[n][: generator.randint(150, 500)] + "\n\n")) for n in names}
    head = "<|im_start|>system\nAnswer from the documentation.<|im_end|>\n<|im_start|>user\n"
    template = Segment(tuple(tokenizer.encode(head, special_tokens=True)), SegmentKind.TEMPLATE)
    prompts = []
    for name in generator.sample(names, count):
        chosen = [name, *generator.sample(names[:6], 1)]
        generator.shuffle(chosen)
        question = f"What is {name} in Python?<|im_end|>\n<|im_start|>assistant\n"
        tail = Segment(tuple(tokenizer.encode(question, special_tokens=True)), SegmentKind.TAIL)
        prompts.append(Prompt([template, *(Segment(passages[n], SegmentKind.PASSAGE, n) for n in chosen), tail]))
    return prompts


@pytest.mark.model
@pytest.mark.parametrize("count", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_smollm2(smollm2, count):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32, attn_implementation="eager").eval()
    prompts = smollm2_prompts(smollm2, count)
    longest = max(prompt.num_blocks(16, extra_tokens=NEW_TOKENS) for prompt in prompts)
    exactness = check_every_way(smollm2, model, prompts, tight_blocks=longest + longest // 2)
    print(f"SmolLM2, {count} prompts: {exactness}")
    assert exactness.tokens == 5 * count * NEW_TOKENS
