"""What chunk reuse does over time and to the disk: endurance, the speed of reading at ingestion, loads."""

from collections.abc import Callable
from statistics import median
from time import perf_counter

from engine.config import SamplingParams
from engine.kv_tier import DiskTier
from engine.prompt import Prompt
from rag.bench.reuse_engine import FRESH, KNOWN, ReuseEngine
from rag.bench.reuse_report import DiskFigure, Endurance, PrecomputeFigure, ReuseCase
from rag.bench.statistics import median_ratio, summarise

__all__ = ["measure_disk", "measure_endurance", "measure_precompute"]


def measure_endurance(own: ReuseEngine, case: ReuseCase, batches: int, advance: Callable[[], None]) -> Endurance:
    """Ask over the same passages in new orders, each beside the same prompt with nothing cached."""
    passages = own.passages(case.length, case.passages)
    own.read(passages)
    cache = own.engine.cache
    cached, evicted = cache.num_cached_blocks, cache.num_evicted_blocks
    chunk, full = list[float](), list[float]()
    for number in range(-1, batches):
        prompt = own.question(own.shuffled(passages, case.passages))
        chunk_ms, full_ms = own.chunk_ms(prompt, case.repair), own.full_ms(prompt)
        if number >= 0:  # the round before warms the machine
            chunk.append(chunk_ms)
            full.append(full_ms)
        advance()
    tenth = max(10, batches // 10)
    ratios = [whole / pieces for whole, pieces in zip(full, chunk, strict=True)]
    return Endurance(
        case=case,
        chunk_ms=chunk,
        full_ms=full,
        first=median(ratios[:tenth]),
        last=median(ratios[-tenth:]),
        cached_blocks_before=cached,
        cached_blocks_after=cache.num_cached_blocks,
        evicted_blocks=cache.num_evicted_blocks - evicted,
    )


def measure_precompute(
    own: ReuseEngine, length: int, count: int, *, repeats: int, seed: int, advance: Callable[[], None]
) -> PrecomputeFigure:
    """Read batches of passages as ingestion does, beside plain prompts of as many tokens."""
    tier = _tier_of(own)
    rates: dict[str, list[float]] = {"precompute": [], "prefill": []}
    own.read(own.passages(length, 1))  # the template's own KV is there
    for repeat in range(-1, repeats):
        passages = [own.new_passage(length) for _ in range(count)]
        began = perf_counter()
        own.engine.precompute(own.template, passages, KNOWN)
        tier.flush()
        precompute = count * length / (perf_counter() - began)
        own.engine.cache.purge(KNOWN, [passage.tokens for passage in passages])
        plain = [Prompt.from_tokens(own.new_passage(length).tokens) for _ in range(count)]
        began = perf_counter()
        own.engine.generate(plain, SamplingParams(max_tokens=0), namespace=FRESH)
        prefill = count * length / (perf_counter() - began)
        own.engine.cache.drop_namespace(FRESH)
        if repeat >= 0:
            rates["precompute"].append(precompute)
            rates["prefill"].append(prefill)
        advance()
    return PrecomputeFigure(
        passages=count,
        length=length,
        precompute=summarise(rates["precompute"]),
        prefill=summarise(rates["prefill"]),
        share=median_ratio(rates["precompute"], rates["prefill"], seed=seed),
    )


def measure_disk(
    own: ReuseEngine, length: int, count: int, repair: int, *, repeats: int, advance: Callable[[], None]
) -> DiskFigure:
    """Load passages that were just written, directly and on the way to a first token."""
    tier, pool = _tier_of(own), own.engine.cache.pool
    passages = own.passages(length, count)
    own.engine.precompute(own.template, passages, KNOWN)
    tier.flush()
    per_passage = -(-length // own.block_size)
    load, device, disk = list[float](), list[float](), list[float]()
    for repeat in range(-1, repeats):
        own.read(passages)
        on_device = own.chunk_ms(own.question(own.shuffled(passages, count)), repair)
        own.engine.cache.drop_namespace(KNOWN)
        blocks = [pool.allocate(per_passage) for _ in passages]
        began = perf_counter()
        loaded = [
            tier.load(KNOWN, own.template.tokens, passage.tokens, run)
            for passage, run in zip(passages, blocks, strict=True)
        ]
        load_ms = 1e3 * (perf_counter() - began)
        assert all(loaded), "a passage was not on the disk"
        for run in blocks:
            pool.drop(run)
        from_disk = own.chunk_ms(own.question(own.shuffled(passages, count)), repair)
        if repeat >= 0:
            load.append(load_ms)
            device.append(on_device)
            disk.append(from_disk)
        advance()
    return DiskFigure(
        tokens=length * count,
        bytes=per_passage * count * own.engine.runner.kv_cache.bytes_per_block,
        load_ms=summarise(load),
        device_ms=summarise(device),
        disk_ms=summarise(disk),
    )


def _tier_of(own: ReuseEngine) -> DiskTier:
    assert own.engine.tier is not None, "the engine has no store"
    return own.engine.tier
