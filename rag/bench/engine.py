"""The engine benchmark: the machine's ceilings, then every case beside its floor, and on peers in the same run."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path

import torch

from engine.config import EngineConfig
from engine.engine import Engine
from engine.kernel_meter import busy_counter
from engine.models.config import ModelConfig
from rag.bench.engine_beside import measure_overhead, measure_search
from rag.bench.engine_cases import BATCHES, CONTEXTS, GROUPS, TAIL, Case, Prompts, make_cases, passages_of
from rag.bench.engine_config import EngineBenchConfig
from rag.bench.engine_floor import EIGHT_BIT, INT8_BYTES, ModelShape, Storage
from rag.bench.engine_machine import best_of, measure_machine
from rag.bench.engine_measure import PEER_TOKENS, CaseRunner, Measured, result_of, sharing_of
from rag.bench.engine_own import OwnEngine, blocks_needed, fitting
from rag.bench.engine_report import (
    CaseKind,
    CaseResult,
    EngineReport,
    EngineSetting,
    Machine,
    Overhead,
    PeerInfo,
    SearchFigure,
    ServerStart,
    Skipped,
)  # fmt: skip
from rag.bench.engine_serve import measure_start
from rag.bench.environment import RunClock
from rag.bench.peers.opening import PeerSetting, open_peers
from rag.bench.progress import BenchEvent, Counter, Progress
from rag.config import RagConfig
from rag.errors import ServerError
from rag.model_hub import ModelHub

__all__ = ["run", "storage_of"]

MEMORY_SHARE = 3  # a third of the memory is for KV at most
SPARE_BLOCKS = 256  # for what is not a case: a decode step beside a search
PEER_ROOM = 256  # tokens that peers may add to the longest prompt
BESIDE_CONTEXT = 1024  # tokens before the decode steps that `overhead` and `search` time
BESIDE_STEPS = 40
STARTS = 3


def run(config: RagConfig, bench: EngineBenchConfig, progress: Progress) -> EngineReport:
    """Measure; Ctrl-C ends the cases early and keeps what is complete.

    Args:
        config: model and engine; its data directory is not touched.
        bench: what to measure.
        progress: called as it advances, in the calling thread.

    Raises:
        KeyboardInterrupt: before any case was measured.
        UnknownModelError: the model is not here.
        CacheMismatchError: a case hit the cache other than it says.
    """
    clock = RunClock()
    folder = ModelHub(config.models_dir).resolve(config.model)
    server, skipped = _server(config, bench, progress)
    progress(BenchEvent("load", 0, None))
    cases = make_cases(bench.only or GROUPS, batches=bench.batches or BATCHES, contexts=bench.contexts or CONTEXTS)
    engine = Engine.from_pretrained(folder, _engine_config(config, bench, folder, cases))
    engine.calibrate()  # as a server does before its first question
    shape = ModelShape.of(engine.runner.model.config)
    machine = measure_machine(shape, progress) if cases else None
    chosen, left_out = _choose(cases, engine, bench.tokens)
    own = OwnEngine(engine)
    prompts = Prompts(_vocabulary(engine), bench.seed)
    peers = _peer_setting(config, bench, folder, chosen, shape, progress)
    measured, interrupted, infos = _compare(own, chosen, prompts, bench, peers, progress)
    overhead, search = (None, None) if interrupted else _beside(own, prompts, bench, progress)
    if machine is not None and not interrupted:  # once more: the machine's best is what counts
        machine = best_of(machine, measure_machine(shape, progress))
    return EngineReport(
        setting=_setting(engine, shape, config, bench),
        environment=clock.environment(),
        interrupted=interrupted,
        problems=[],
        warnings=clock.warnings,
        seconds=clock.seconds,
        machine=machine,
        cases=[] if machine is None else _results(measured, engine, shape, machine, bench.seed),
        sharing=sharing_of(measured, seed=bench.seed),
        overhead=overhead,
        search=search,
        server=server,
        peers=infos,
        skipped=[*left_out, *skipped],
    )


def _results(
    measured: Mapping[Case, Measured], engine: Engine, shape: ModelShape, machine: Machine, seed: int
) -> list[CaseResult]:
    return [
        result_of(case, found, shape, storage_of(engine, case), machine, seed=seed)
        for case, found in measured.items()
        if found.own
    ]


def storage_of(engine: Engine, case: Case) -> Storage:
    """Tell in what the engine computes a case: rows whose KV stays private may have weights of their own."""
    runner, eight_bit = engine.runner, engine.config.dtype == "int8"
    kv_bytes = float(runner.kv_cache.dtype.itemsize)
    rows = case.batch if case.decodes else case.new
    private = case.decodes or case.cached > 0
    lean = private and runner.lean is not None and (runner.lean_rows is None or rows <= runner.lean_rows)
    mode = EIGHT_BIT if eight_bit else _kv_dtype(engine)
    if lean:
        return Storage((mode, "int8"), kv_bytes, INT8_BYTES)
    return Storage((mode,), kv_bytes, 1.0 if eight_bit else kv_bytes)


def _server(
    config: RagConfig, bench: EngineBenchConfig, progress: Progress
) -> tuple[ServerStart | None, list[Skipped]]:
    """Time the server's start before anything of ours is loaded."""
    if not bench.wants("serve"):
        return None, []
    progress(BenchEvent("serve", 0, None))
    try:
        return measure_start(config, repeats=min(STARTS, bench.repeats)), []
    except ServerError as error:
        return None, [Skipped(name="serve", reason=str(error))]


def _engine_config(config: RagConfig, bench: EngineBenchConfig, folder: Path, cases: Sequence[Case]) -> EngineConfig:
    """Make an engine that runs every batch at once, holds every cached passage, and does not guess tokens ahead."""
    base = config.engine.build()
    shape = ModelShape.of(ModelConfig.from_folder(folder))
    per_block = 4 * base.block_size * shape.kv_values * shape.layers  # of float32, the largest; what is unused is free
    wanted = blocks_needed(cases, base.block_size, bench.tokens) + SPARE_BLOCKS
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MEMORY_SHARE
    given = None if bench.kv_gib is None else int(bench.kv_gib * 2**30)
    return replace(
        base,
        dtype=bench.dtype or base.dtype,
        weights=bench.weights or base.weights,
        kv_cache_bytes=given or base.kv_cache_bytes or max(per_block, min(per_block * wanted, memory)),
        max_num_seqs=max(base.max_num_seqs, *(case.batch for case in cases), 1),
        max_draft_tokens=0,
    )


def _choose(cases: Sequence[Case], engine: Engine, steps: int) -> tuple[list[Case], list[Skipped]]:
    left_out = fitting(
        cases,
        blocks=engine.cache.pool.num_blocks - SPARE_BLOCKS,
        block_size=engine.config.block_size,
        context=engine.max_model_len,
        steps=steps,
    )
    skipped = [Skipped(name=case.name, reason=reason) for case, reason in left_out.items()]
    return [case for case in cases if case not in left_out], skipped


def _compare(
    own: OwnEngine,
    cases: Sequence[Case],
    prompts: Prompts,
    bench: EngineBenchConfig,
    peers: PeerSetting,
    progress: Progress,
) -> tuple[dict[Case, Measured], bool, list[PeerInfo]]:
    """Run the cases on our engine and on the peers that can be had."""
    progress(BenchEvent("peers", 0, None))
    with open_peers(bench.peers, peers) as (opened, infos):
        advance = Counter(progress, "cases", len(cases) * (bench.repeats + 1) * (1 + len(opened))).advance
        runner = CaseRunner(own, opened, prompts, steps=bench.tokens, seed=bench.seed)
        measured, interrupted = runner.measure(cases, repeats=bench.repeats, advance=advance)
        return measured, interrupted, infos


def _peer_setting(
    config: RagConfig,
    bench: EngineBenchConfig,
    folder: Path,
    cases: Sequence[Case],
    shape: ModelShape,
    progress: Progress,
) -> PeerSetting:
    small = [case for case in cases if case.batch * case.context <= PEER_TOKENS]
    kept = sum(length for length, _ in {passage for case in small for passage in passages_of(case)})
    return PeerSetting(
        folder=folder,
        model=config.model,
        models_dir=config.models_dir,
        gguf=bench.gguf,
        pythons=dict(bench.peer_pythons),
        context=max((case.context for case in small), default=0) + PEER_ROOM,
        tokens=max((case.new * case.batch for case in small), default=0) + PEER_ROOM,
        kv_gib=1 + ceil(2 * shape.kv_values * shape.layers * kept / 2**30),
        threads=torch.get_num_threads(),
        dtype="bfloat16",
        report=lambda _stage, fraction: progress(BenchEvent("peers", round(100 * (fraction or 0)), 100)),
    )


def _beside(
    own: OwnEngine, prompts: Prompts, bench: EngineBenchConfig, progress: Progress
) -> tuple[Overhead | None, SearchFigure | None]:
    """Time what surrounds a batch-1 decode step."""
    progress(BenchEvent("beside", 0, None))
    cached = min(BESIDE_CONTEXT, own.engine.max_model_len // 2) - TAIL
    prompt = prompts.passage(cached, 0) + prompts.passage(TAIL, 1)
    overhead = search = None
    if bench.wants("overhead"):
        busy = busy_counter(own.engine.runner.model.backend.name)
        overhead = measure_overhead(own, prompt, cached, steps=BESIDE_STEPS, busy=busy)
    if bench.wants("search"):
        search = measure_search(own, prompt, cached, steps=BESIDE_STEPS, seed=bench.seed)
    return overhead, search


def _setting(engine: Engine, shape: ModelShape, config: RagConfig, bench: EngineBenchConfig) -> EngineSetting:
    one = storage_of(engine, Case(CaseKind.DECODE, TAIL))
    return EngineSetting(
        model=config.model,
        dtype="int8" if engine.config.dtype == "int8" else _kv_dtype(engine),
        kv_dtype=_kv_dtype(engine),
        weights=engine.config.weights,
        decode_weights=one.modes[-1],
        lean_rows=engine.runner.lean_rows,
        backend=engine.runner.model.backend.name,
        device=engine.config.device,
        block_size=engine.config.block_size,
        kv_blocks=engine.cache.pool.num_blocks,
        max_num_batched_tokens=engine.config.max_num_batched_tokens,
        linear_parameters=shape.linear_parameters,
        head_parameters=shape.head,
        operations_per_pair=shape.layers * shape.pair_operations,
        kv_bytes_per_token=int(one.kv_bytes * shape.layers * shape.kv_values),
        repeats=bench.repeats,
        tokens=bench.tokens,
        seed=bench.seed,
    )


def _kv_dtype(engine: Engine) -> str:
    return str(engine.runner.kv_cache.dtype).removeprefix("torch.")


def _vocabulary(engine: Engine) -> list[int]:
    """Return every token id but those that end an answer."""
    return sorted({*range(engine.runner.model.config.vocab_size)} - set(engine.tokenizer.eos_token_ids))
