"""The engine benchmark: its cases are what they say, its floors follow from the model, its figures are right."""

import json
import random
from pathlib import Path

import pytest
from rag_helpers import make_chat_model
from typer.testing import CliRunner

from engine import Engine, EngineConfig, Prompt, SamplingParams, Segment, SegmentKind
from engine.models.config import ModelConfig
from rag.bench import engine as bench_engine
from rag.bench import engine_beside, engine_cases, engine_machine
from rag.bench.engine import run, storage_of
from rag.bench.engine_beside import measure_overhead, measure_search
from rag.bench.engine_cases import Case, Prompts, make_cases, passages_of
from rag.bench.engine_config import EngineBenchConfig
from rag.bench.engine_floor import ModelShape, Storage, floor_of, visible_pairs
from rag.bench.engine_machine import best_of, measure_machine
from rag.bench.engine_measure import CaseRunner, Measured, result_of, sharing_of
from rag.bench.engine_own import FRESH, KEPT, CacheMismatchError, Decoded, OwnEngine, blocks_needed, fitting
from rag.bench.engine_report import Bandwidth, Bound, CaseKind, EngineReport, GemmRate, Machine
from rag.bench.engine_serve import measure_start
from rag.bench.engine_table import render
from rag.bench.peers.errors import PeerError, UnsupportedCaseError
from rag.cli.main import app
from rag.config import RagConfig
from rag.errors import InvalidRequestError, ServerError

PREFILL, WARM, DECODE, SHARED = CaseKind.PREFILL, CaseKind.WARM, CaseKind.DECODE, CaseKind.SHARED
BLOCK = 16


pytestmark = pytest.mark.usefixtures("one_thread")


def small_engine(folder, **settings) -> Engine:
    settings = {"dtype": "float32", "backend": "torch", "kv_cache_bytes": 4 << 20, "max_draft_tokens": 0, **settings}
    return Engine.from_pretrained(folder, EngineConfig(**settings))


@pytest.fixture
def own(tiny_folder) -> OwnEngine:
    return OwnEngine(small_engine(tiny_folder))


def a_rate(gflops, *, dtype="float32", rows=16, kernel="torch"):
    return GemmRate(kernel=kernel, dtype=dtype, rows=rows, gflops=gflops, gbytes=gflops)


def a_machine(*rates, bandwidth=((1 << 20, 50.0), (1 << 30, 20.0))):
    sizes = [Bandwidth(bytes=size, gbytes=gbytes) for size, gbytes in bandwidth]
    return Machine(threads=1, gemm=list(rates or [a_rate(100.0)]), bandwidth=sizes, seconds=1.0)


# --- cases


def test_cases_of_the_report():
    cases = make_cases()
    assert len({case.name for case in cases}) == len(cases)
    assert {(case.new, case.cached) for case in cases if case.kind is WARM} >= {(16, 1024), (110, 1600), (32, 2048)}
    assert {case.context for case in cases if case.kind is DECODE} == {256, 1024, 4096}
    assert [(case.cached, case.batch, case.shared) for case in cases if case.kind is SHARED] == [
        (2048, 16, True),
        (2048, 16, False),
    ]
    assert {case.kind for case in make_cases(["warm", "shared"])} == {WARM, SHARED}


def test_prompts_repeat_what_is_cached_and_nothing_else():
    prompts = Prompts(range(5, 90), seed=3)
    case = Case(DECODE, 16, 40, batch=3)
    first, second = prompts.make(case, 0), prompts.make(case, 1)
    assert [len(prompt) for prompt in first] == [56] * 3
    assert [prompt[:40] for prompt in first] == [prompt[:40] for prompt in second]
    assert len({prompt[:40] for prompt in first}) == 3
    assert len({prompt[40:] for prompt in first + second}) == 6
    assert {token for prompt in first for token in prompt} <= set(range(5, 90))
    assert prompts.make(case, 0) == first
    assert Prompts(range(5, 90), seed=4).make(case, 0) != first
    smaller = prompts.make(Case(DECODE, 16, 40, batch=1), 0)
    assert smaller[0][:40] == first[0][:40], "batches of one context use the same passages"
    sharing = prompts.make(Case(SHARED, 16, 40, 3, shared=True), 0)
    assert len({prompt[:40] for prompt in sharing}) == 1
    assert len(passages_of(case)) == 3
    assert passages_of(Case(SHARED, 16, 40, 3, shared=True)) == ((40, 0),)
    assert passages_of(Case(PREFILL, 128)) == ()


# --- floors

SMOL = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
}  # fmt: skip


@pytest.fixture(scope="module")
def smol(tmp_path_factory):
    path = tmp_path_factory.mktemp("config")
    (path / "config.json").write_text(json.dumps(SMOL))
    return ModelShape.of(ModelConfig.from_folder(path))


def test_shape_of_a_known_model(smol):
    assert 2 * smol.linear_parameters == pytest.approx(212e6, rel=0.005)
    assert smol.layers * smol.pair_operations == 69_120
    assert smol.layers * smol.kv_values * 2 == 23_040


def test_floor_of_prefill_is_its_operations_over_the_peak(smol):
    machine = a_machine(a_rate(300.0, rows=128), a_rate(400.0, rows=2048), a_rate(900.0, dtype="float16", rows=1024))
    floor = floor_of(Case(PREFILL, 1000), smol, Storage(("float32",), 4, 4), machine)
    operations = 1000 * 2 * smol.linear_parameters + 2 * 49152 * 576 + 69_120 * 1000 * 1001 // 2
    assert floor.operations == operations
    assert floor.bound is Bound.COMPUTE
    assert floor.ms == floor.compute_ms == pytest.approx(operations / 400e6)
    assert floor.linear_ms == pytest.approx(2000 * smol.linear_parameters / 900e6), "the best kernel, whatever it is"


def test_rates_with_8_bit_activations_count_only_where_they_are_the_compute_mode(smol):
    machine = a_machine(a_rate(100.0), a_rate(1000.0, dtype="int8x8"))
    case = Case(PREFILL, 16)
    floating = floor_of(case, smol, Storage(("float32",), 4, 4), machine)
    eight = floor_of(case, smol, Storage(("float32", "int8x8"), 4, 4), machine)
    assert floating.linear_ms == pytest.approx(10 * eight.linear_ms)
    assert floating.compute_ms == pytest.approx(10 * eight.compute_ms)


def test_floor_of_a_warm_prompt_counts_the_cached_keys(smol):
    floor = floor_of(Case(WARM, 16, 1024), smol, Storage(("float32",), 2, 2), a_machine())
    cold = floor_of(Case(PREFILL, 16), smol, Storage(("float32",), 2, 2), a_machine())
    assert floor.operations - cold.operations == 16 * 1024 * 69_120
    assert floor.bytes - cold.bytes == 1024 * 23_040


def test_floor_of_a_decode_step_is_its_bytes_over_the_bandwidth(smol):
    case = Case(DECODE, 16, 1008)
    floor = floor_of(case, smol, Storage(("float16",), 2, 1), a_machine(a_rate(9e9)))
    assert floor.bytes == smol.linear_parameters + smol.head + 1024 * 23_040
    assert floor.bound is Bound.MEMORY
    assert floor.ms == pytest.approx(floor.bytes / 50e6), "no larger buffer was read than the step's bytes"
    assert floor.operations == 2 * (smol.linear_parameters + smol.head) + 69_120 * 1025


def test_shared_keys_are_read_once_and_multiplied_by_every_query(smol):
    storage = Storage(("float16",), 2, 2)
    sharing = floor_of(Case(SHARED, 16, 2048, 16, shared=True), smol, storage, a_machine())
    alone = floor_of(Case(SHARED, 16, 2048, 16), smol, storage, a_machine())
    assert sharing.operations == alone.operations
    assert alone.bytes - sharing.bytes == 15 * 2048 * 23_040


@pytest.mark.parametrize("window", [None, 1, 3, 9, 100])
def test_visible_pairs(window):
    for first in (0, 1, 2, 7, 20):
        for count in (1, 4, 13):
            seen = sum(min(position + 1, window or position + 1) for position in range(first, first + count))
            assert visible_pairs(first, count, window) == seen


def test_floor_with_a_window_reads_no_more_than_it():
    shape = ModelShape(((8, 4),), 2, 10, 4, 6, (None, 5))
    floor = floor_of(Case(DECODE, 2, 30, batch=3), shape, Storage(("float32",), 4, 4), a_machine())
    assert floor.bytes == 4 * (2 * 32 + 10) + 4 * 6 * 3 * (32 + 5)


# --- the machine


def test_machine_is_measured_for_every_kernel_and_row_count(monkeypatch):
    monkeypatch.setattr(engine_machine, "ROWS", (1, 4))
    monkeypatch.setattr(engine_machine, "BUFFERS", (1 << 20, 2 << 20))
    monkeypatch.setattr(engine_machine, "SAMPLE_OPERATIONS", 1e4)
    events = []
    machine = measure_machine(ModelShape(((48, 32), (32, 64)), 3, 100, 1, 1, (None,)), events.append)
    measured = {(rate.kernel, rate.dtype, rate.rows) for rate in machine.gemm}
    assert {("torch", "float32", 1), ("torch", "float32", 4), ("torch", "bfloat16", 4)} <= measured
    assert all(rate.gflops > 0 and rate.gbytes > 0 for rate in machine.gemm)
    ones = [rate for rate in machine.gemm if rate.rows == 1 and rate.dtype == "float32"]
    assert all(rate.gbytes == pytest.approx(2 * rate.gflops) for rate in ones), "4 bytes for 2 operations"
    assert [item.bytes for item in machine.bandwidth] == [1 << 20, 2 << 20]
    assert events[-1].done == events[-1].total


def test_a_ceiling_is_the_best_of_two_measurements():
    first = a_machine(a_rate(10.0), a_rate(5.0, dtype="int8"), bandwidth=((1, 3.0),))
    second = a_machine(a_rate(7.0), a_rate(6.0, dtype="int8"), a_rate(1.0, dtype="new"), bandwidth=((1, 4.0),))
    best = best_of(first, second)
    assert {rate.dtype: rate.gflops for rate in best.gemm} == {"float32": 10.0, "int8": 6.0, "new": 1.0}
    assert best.bandwidth[0].gbytes == 4.0
    assert best.seconds == 2.0


# --- our own engine


def tokens(count, seed=0):
    return tuple(random.Random(seed).choices(range(97), k=count))


def test_first_tokens_hit_what_their_case_says(own):
    assert own.first_token(tokens(50), 0) > 0
    assert own.first_token(tokens(50), 0) > 0, "the same prompt again hits nothing"
    prompt = tokens(40, 1)
    assert own.first_token(prompt + tokens(9, 2), 40) > 0
    assert own.engine.cache.is_cached(KEPT, [Segment(prompt, SegmentKind.PASSAGE)])
    assert own.engine.stats().running == 0


def test_a_prompt_that_hits_more_than_its_case_is_an_error(own):
    plain = tokens(50)
    own.engine.generate([plain], SamplingParams(max_tokens=1), namespace=FRESH)
    with pytest.raises(CacheMismatchError, match="48 of 50 prompt tokens were cached instead of 0"):
        own.first_token(plain, 0)
    own.engine.generate([Prompt([Segment(plain[:32], SegmentKind.PASSAGE)])], SamplingParams(max_tokens=0))
    own.first_token(plain, 32)


def test_decode_steps_are_of_the_whole_batch(own):
    prompts = [tokens(32) + tokens(16, 5 + n) for n in range(4)]
    decoded = own.decode(prompts, 32, steps=3)
    assert decoded.seconds > 0
    assert decoded.tokens == 1
    stats = own.engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    assert stats.totals.cancelled == 4
    own.engine.check_invariants()


def test_decoding_ends_its_requests_when_it_is_interrupted(own):
    def interrupted():
        with own.decoding([tokens(48)], 32, 2) as step:
            assert step() == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert own.engine.stats().running == 0


def test_cases_that_do_not_fit_are_left_out():
    small, large = Case(DECODE, 16, 48, batch=2), Case(DECODE, 16, 48, batch=9)
    beyond = Case(WARM, 16, 600)
    needed = blocks_needed([small], BLOCK, 4)
    left_out = fitting([small, large, beyond], blocks=needed, block_size=BLOCK, context=300, steps=4)
    assert set(left_out) == {large, beyond}
    assert "KV memory" in left_out[large]
    assert "617 tokens of context" in left_out[beyond]


def test_blocks_needed_are_enough_and_not_many_more(tiny_folder):
    case = Case(DECODE, 16, 48, batch=3)
    needed = blocks_needed([case], BLOCK, 4)
    engine = small_engine(tiny_folder)
    size = engine.runner.kv_cache.bytes_per_block * needed
    own = OwnEngine(small_engine(tiny_folder, kv_cache_bytes=size))
    own.decode([tokens(48, n) + tokens(16, n + 9) for n in range(3)], 48, steps=4)
    assert own.engine.stats().evicted_blocks == 0
    assert own.engine.stats().preemptions == 0


def test_storage_follows_the_weights_that_a_case_is_computed_with(tiny_folder):
    plain = small_engine(tiny_folder)
    assert storage_of(plain, Case(DECODE, 16, 48)) == Storage(("float32",), 4, 4)
    plain.runner.lean, plain.runner.lean_rows = plain.runner.model, 8
    lean, full = Storage(("float32", "int8"), 4, 66 / 64), Storage(("float32",), 4, 4)
    assert storage_of(plain, Case(DECODE, 16, 48, batch=8)) == lean
    assert storage_of(plain, Case(DECODE, 16, 48, batch=9)) == full
    assert storage_of(plain, Case(WARM, 8, 48)) == lean
    assert storage_of(plain, Case(PREFILL, 8)) == full, "what is published is never computed with 8-bit weights alone"


# --- turns


class Fake:
    """A contestant that takes as long as it is told, and notes its turns."""

    version, detail = "1", "fake"

    def __init__(self, name, seconds, turns, fails=None):
        self.name, self._seconds, self._turns, self._fails = name, seconds, turns, fails or {}

    def first_token(self, prompt, cached):
        return self._take(len(prompt) - cached)

    def decode(self, prompts, cached, steps):
        return self._take(len(prompts))

    def _take(self, size):
        self._turns.append((self.name, size))
        if size in self._fails:
            raise self._fails[size]
        return self._seconds * size

    def close(self):
        self._turns.append((self.name, "closed"))


class FakeOwn(OwnEngine):
    def __init__(self, turns):
        self._fake = Fake("preread", 1e-3, turns)

    def first_token(self, prompt, cached):
        return self._fake.first_token(prompt, cached)

    def decode(self, prompts, cached, steps):
        return Decoded(self._fake.decode(prompts, cached, steps), 1.0)


CASES = (Case(PREFILL, 8), Case(WARM, 4, 8), Case(DECODE, 2, 6, 3), *(Case(SHARED, 2, 6, 5, s) for s in (True, False)))


def measure(turns, *peers, repeats=4, advance=lambda: None):
    runner = CaseRunner(FakeOwn(turns), peers, Prompts(range(50), 0), steps=2, seed=1)
    return runner.measure(CASES, repeats=repeats, advance=advance)


def test_contestants_take_turns_in_a_random_order():
    turns = []
    measured, interrupted = measure(turns, Fake("slow", 3e-3, turns))
    assert not interrupted
    assert all(len(found.own) == len(found.peers["slow"]) == 4 for found in measured.values())
    assert len(turns) == 2 * 5 * len(CASES), "one round is not kept"
    pairs = [tuple(name for name, _ in turns[i : i + 2]) for i in range(0, len(turns), 2)]
    assert set(pairs) == {("preread", "slow"), ("slow", "preread")}
    assert [turns[i][1] for i in range(0, len(turns), 2)] == [8, 4, 3, 5, 5] * 5


def test_a_peer_is_left_out_of_what_it_cannot_do():
    turns = []
    fails = {3: UnsupportedCaseError("one sequence"), 4: PeerError("gone")}
    measured, _ = measure(turns, Fake("weak", 3e-3, turns, fails))
    assert measured[CASES[2]].reasons == {"weak": "one sequence"}
    assert measured[CASES[1]].reasons == {"weak": "gone"}
    assert turns.count(("weak", 3)) == 1
    assert len(measured[CASES[0]].peers["weak"]) == 4
    large = Case(DECODE, 16, 8000, 8)
    runner = CaseRunner(FakeOwn(turns), [Fake("any", 1, turns)], Prompts(range(50), 0), steps=1, seed=0)
    found, _ = runner.measure([large], repeats=1, advance=lambda: None)
    assert "take it minutes" in found[large].reasons["any"]


def test_interruption_keeps_what_is_complete():
    turns, count = [], 0

    def advance():
        nonlocal count
        count += 1
        if count == 8:
            raise KeyboardInterrupt

    measured, interrupted = measure(turns, advance=advance)
    assert interrupted
    assert [len(found.own) for found in measured.values()] == [1, 1, 0, 0, 0]
    count = 5
    with pytest.raises(KeyboardInterrupt):
        measure(turns, advance=advance)


def test_results(smol):
    machine = a_machine(a_rate(100.0, rows=8))
    found = Measured(own=[0.2, 0.1, 0.4], tokens_per_step=[1.0] * 3, peers={"x": [0.4, 0.4, 0.4]}, reasons={"y": "no"})
    result = result_of(Case(PREFILL, 8), found, smol, Storage(("float32",), 4, 4), machine, seed=0)
    assert result.samples_ms == [200, 100, 400]
    assert result.time_ms.median == 200
    assert result.tokens_per_second == 8 / 0.2
    assert result.over_floor == pytest.approx(200 / result.floor.ms)
    assert result.over_linear == pytest.approx(200 / result.floor.linear_ms)
    assert result.peers["x"].ratio is not None
    assert result.peers["x"].ratio.value == 2, "the median of the repeats' ratios 2, 4 and 1"
    assert result.peers["y"].reason == "no"
    step = result_of(Case(DECODE, 16, 240, 4), Measured([0.01], [1.5]), smol, Storage(("x",), 2, 1), machine, seed=0)
    assert (step.new, step.cached, step.tokens_per_step) == (1, 256, 1.5)
    assert step.tokens_per_second == pytest.approx(4 * 1.5 / 0.01)


def test_sharing_is_a_ratio_of_the_same_repeats():
    sharing, alone = Case(SHARED, 16, 2048, 16, shared=True), Case(SHARED, 16, 2048, 16)
    found = sharing_of({sharing: Measured([1.0, 3.0, 2.0]), alone: Measured([4.0, 4.0, 4.0])}, seed=0)
    assert found is not None
    assert found.value == 0.5
    assert sharing_of({sharing: Measured([1.0])}, seed=0) is None


# --- beside a decode step


def test_overhead_is_what_the_kernels_do_not_take(own):
    clock = iter(range(1000))
    counted = measure_overhead(own, tokens(48), 32, steps=3, busy=lambda: 1e-6 * next(clock))
    assert counted.outside_ms == pytest.approx(counted.step_ms - 1e-3)
    assert counted.kernel_ms == pytest.approx(1e-3)
    unknown = measure_overhead(own, tokens(48), 32, steps=3, busy=None)
    assert unknown.kernel_ms is unknown.outside_ms is None
    assert unknown.context == 48


def test_search_beside_decoding(own, monkeypatch):
    monkeypatch.setattr(engine_beside, "VECTORS", 50)
    figure = measure_search(own, tokens(48), 32, steps=2, seed=0)
    assert figure.vectors == 50
    assert min(figure.search_ms, figure.step_ms, figure.step_beside_ms) > 0
    assert figure.slowdown == pytest.approx((figure.step_beside_ms - figure.step_ms) / figure.search_ms)
    assert own.engine.stats().running == 0


# --- the whole


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = make_chat_model(tmp_path_factory.mktemp("models") / "tiny")
    config = RagConfig(
        data_dir=folder / "the-users-own", models_dir=folder / "none", model=str(folder), embedder=str(folder),
        engine={"dtype": "float32", "backend": "torch", "max_num_batched_tokens": 64},
    )  # fmt: skip
    bench = EngineBenchConfig(
        only=("prefill", "warm", "decode", "shared", "overhead", "search"), repeats=2, tokens=2, kv_gib=0.004
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_machine, "ROWS", (1, 16))
        patch.setattr(engine_machine, "BUFFERS", (1 << 20,))
        patch.setattr(engine_machine, "SAMPLE_OPERATIONS", 1e4)
        patch.setattr(engine_beside, "VECTORS", 50)
        patch.setattr(bench_engine, "BESIDE_CONTEXT", 64)
        patch.setattr(bench_engine, "BESIDE_STEPS", 2)
        for name, value in {
            "PREFILL": (40, 100), "WARM": ((16, 64),), "SHARED": 64, "SHARING": 3, "TAIL": 16,
        }.items():  # fmt: skip
            patch.setattr(engine_cases, name, value)
        patch.setattr(
            bench_engine, "make_cases", lambda groups, **_: make_cases(groups, batches=(1, 3, 400), contexts=(48, 9000))
        )
        made = run(config, bench, lambda event: None)
    assert not config.data_dir.exists(), "the user's own data directory was used"
    return made


def test_every_case_is_measured_or_said_not_to_be(report):
    assert [case.name for case in report.cases] == [
        "prefill 40", "prefill 100", "warm 16 after 64", "decode 1 x 48", "decode 3 x 48",
        "decode 3 x 80, sharing 64", "decode 3 x 80, not sharing 64",
    ]  # fmt: skip
    assert all(len(case.samples_ms) == case.time_ms.n == 2 for case in report.cases)
    assert all(case.tokens_per_step == 1 for case in report.cases)
    left_out = {part.name: part.reason for part in report.skipped}
    assert "context" in left_out["decode 1 x 9000"]
    assert "KV memory" in left_out["decode 400 x 48"]
    assert report.sharing is not None
    assert report.overhead is not None
    assert report.overhead.outside_ms is None
    assert report.search is not None
    assert report.server is None
    assert report.problems == []
    assert report.setting.dtype == "float32"
    assert report.setting.decode_weights == "float32"


def test_without_cases_the_machine_is_not_measured(report):
    printed = render(report.model_copy(update={"machine": None, "cases": []}))
    assert "GFLOP/s" not in printed
    assert "FAISS over" in printed


def test_report_survives_json_and_is_shown(report):
    assert EngineReport.model_validate_json(report.model_dump_json()) == report
    printed = render(report)
    for case in report.cases:
        assert case.name in printed
    assert "not measured: decode 400 x 48" in printed
    assert "outside kernels: not measured" in printed
    assert "FAISS over 50 x 384" in printed
    assert "INTERRUPTED" not in printed
    assert "INTERRUPTED" in render(report.model_copy(update={"interrupted": True}))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"repeats": 0}, "repeats"), ({"only": ("prefil",)}, "'prefil'"), ({"peers": ("ollama",)}, "'ollama'"),
        ({"kv_gib": 0.0}, "kv-gib"), ({"gguf": Path("/nowhere.gguf")}, "no file"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work(settings, named):
    with pytest.raises(InvalidRequestError, match=named):
        EngineBenchConfig(**settings)


@pytest.mark.parametrize(
    ("changes", "code"), [({}, 0), ({"problems": ["it leaks"]}, 1), ({"interrupted": True}, 130)], ids=str
)
def test_command(report, monkeypatch, tmp_path, changes, code):
    made = report.model_copy(update=changes)
    asked = []
    monkeypatch.setattr(bench_engine, "run", lambda config, bench, progress: asked.append(bench) or made)
    path = tmp_path / "new" / "report.json"
    arguments = [
        "bench", "engine", "--only", "warm, serve", "--skip-serve", "--peer", "openvino", "--peer", "http://x/v1",
        "--peer-python", "/a", "--peer-python", "vllm=/b", "--dtype", "float16", "--weights", "int8",
        "--repeats", "7", "--output", str(path), "--json",
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code
    assert asked == [
        EngineBenchConfig(
            only=("warm",),
            peers=("openvino", "http://x/v1"),
            peer_pythons=(("", Path("/a")), ("vllm", Path("/b"))),
            dtype="float16",
            weights="int8",
            repeats=7,
        )
    ]
    assert EngineReport.model_validate_json(path.read_text()) == made
    assert EngineReport.model_validate_json(result.stdout) == made
    assert "x floor" in result.stderr


# --- the server's start


def test_a_server_that_does_not_start_is_told(tmp_path):
    config = RagConfig(models_dir=tmp_path, model="no-such-model", embedder="no-such-embedder")
    with pytest.raises(ServerError, match=r"ended with code .*no-such-model"):
        measure_start(config, repeats=1)


@pytest.mark.slow
@pytest.mark.model
def test_the_server_is_timed_until_it_is_ready(tmp_path):
    config = RagConfig(data_dir=tmp_path / "the-users-own")
    started = measure_start(config, repeats=1)
    assert len(started.seconds) == 1
    assert 0.1 < started.median < 180
    assert not config.data_dir.exists()
