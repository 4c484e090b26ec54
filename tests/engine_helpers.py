"""Engines over tiny models, and what must hold of one that has nothing to do."""

import random
from pathlib import Path

from tiny_models import SIZES

from engine import Engine, EngineConfig, Generation, Prompt, Segment, SegmentKind, TokenDelta

BLOCK = 16


def tiny_engine(folder: Path, *, num_blocks: int = 200, store=None, **settings) -> Engine:
    """Load the float32 model of a folder with a pool of so many blocks."""
    settings = {"dtype": "float32", "backend": "reference", "block_size": BLOCK, **settings}
    probe = EngineConfig(**settings, kv_cache_bytes=1 << 20)
    engine = Engine.from_pretrained(folder, probe)
    size = engine.runner.kv_cache.bytes_per_block * num_blocks
    return Engine.from_pretrained(folder, EngineConfig(**settings, kv_cache_bytes=size), store=store)


def random_tokens(generator: random.Random, count: int) -> tuple[int, ...]:
    return tuple(generator.randrange(SIZES["vocab_size"]) for _ in range(count))


def template(tokens) -> Segment:
    return Segment(tuple(tokens), SegmentKind.TEMPLATE, "template")


def passage(tokens, name: str = "") -> Segment:
    return Segment(tuple(tokens), SegmentKind.PASSAGE, name)


def tail(tokens) -> Segment:
    return Segment(tuple(tokens), SegmentKind.TAIL, "tail")


def collect(events) -> Generation:
    """Read a stream to its end and check that its deltas add up to its generation."""
    *deltas, generation = events
    assert isinstance(generation, Generation)
    assert all(isinstance(delta, TokenDelta) for delta in deltas)
    assert "".join(delta.text for delta in deltas) == generation.text
    assert tuple(token for delta in deltas for token in delta.token_ids) == generation.token_ids
    return generation


def ask(engine: Engine, prompt: Prompt, sampling=None, **settings) -> Generation:
    return collect(engine.stream(engine.submit(prompt, sampling, **settings)))


def check_settled(engine: Engine) -> None:
    """Nothing runs, waits or is remembered, and every block is free or cached."""
    engine.check_invariants()
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    assert stats.free_blocks + stats.cached_blocks == stats.num_blocks
    assert not engine._answers
    assert stats.totals.requests == stats.totals.finished
