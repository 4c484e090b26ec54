"""The trace benchmark: its simulation finds what the engine finds, its figures are right, and it can fail."""

import json
import random

import pytest
from rag_helpers import make_chat_model
from typer.testing import CliRunner

from engine.config import EngineConfig
from engine.eviction import policy_named
from engine.models.config import ModelConfig
from engine.prompt import Prompt, Reuse, Segment, SegmentKind
from rag.bench import trace, trace_replay
from rag.bench.trace import TraceBenchConfig, run
from rag.bench.trace_report import Answer, Figures, Percentiles, TraceReport
from rag.bench.trace_simulation import SimulatedEngine, SimulatedTier
from rag.bench.trace_table import render
from rag.cli.main import app
from rag.config import RagConfig
from rag.errors import InvalidRequestError

REQUESTS = 14
LENGTHS = {
    "1_sys_prompt.jsonl": ("sys_prompt_id", {1: 60, 2: 30, 3: 20}),
    "2_passages.jsonl": ("passage_id", {number: 20 + 7 * (number % 11) for number in range(100, 130)}),
    "3_history.jsonl": ("history_id", {20: 11}),
    "4_user_input.jsonl": ("user_input_id", {30: 9}),
    "5_web_search.jsonl": ("web_search_id", {40: 14}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ragpulse")
    for name, (field, lengths) in LENGTHS.items():
        lines = [json.dumps({field: number, "token_length": length}) for number, length in lengths.items()]
        (folder / name).write_text("\n".join(lines))
    rng = random.Random(3)
    with (folder / "0_trace.jsonl").open("w") as file:
        for number in range(REQUESTS):
            passages = rng.choices(range(100, 130), weights=[1 / (1 + n) for n in range(30)], k=rng.choice([0, 5, 5]))
            ids = {"sys_prompt": [1, 2, 3], "passages_ids": passages, "history": [20] * (number % 2)}
            ids |= {"web_search": [40] * (number % 3 == 0), "user_input": [30]}
            record = {"timestamp": str(number), "input_length": 900, "output_length": 9, "session_id": "s"}
            file.write(json.dumps({**record, "hash_ids": ids}) + "\n")
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_chat_model(folder)
    return RagConfig(
        data_dir=folder / "the-users-own", models_dir=folder, model=str(folder), engine={"dtype": "float32"}
    )


@pytest.fixture(autouse=True)
def short_text(monkeypatch):
    text = random.Random(0).choices(range(97, 123), k=5000)
    monkeypatch.setattr(trace, "read_documentation", lambda tokenizer: text)


@pytest.fixture
def measure(folder, config, tmp_path):
    def run_with(progress=lambda event: None, **settings):
        return run(config, TraceBenchConfig(**{"trace": folder, "work_dir": tmp_path / "work", **settings}), progress)

    return run_with


VARIANTS = {
    "reuse": ("exact", "chunk"),
    "order": ("score", "cache"),
    "policy": ("lru", "pgdsf"),
    "device_tokens": ("unbounded", "1500"),
}


@pytest.fixture(scope="module")
def simulated(folder, config):
    with pytest.MonkeyPatch.context() as patch:
        text = random.Random(0).choices(range(97, 123), k=5000)
        patch.setattr(trace, "read_documentation", lambda tokenizer: text)
        return run(config, TraceBenchConfig(trace=folder, simulate=True, **VARIANTS), lambda event: None)


def figures(report, **wanted):
    found = [r.figures for r in report.runs if all(getattr(r.variant, k) == v for k, v in wanted.items())]
    assert found
    return found


def test_chunk_reuse_over_a_filled_store_computes_repairs_alone(simulated):
    for found in figures(simulated, reuse="chunk"):
        assert found.passage_hit_rate_beyond_repair == 1
        assert found.passage_hit_rate < 1
    assert {"canonical", "shifted"} <= set(figures(simulated, reuse="chunk", device=None)[0].outcomes)


def test_exact_reuse_finds_more_in_the_order_of_the_cache(simulated):
    by_score, by_cache = (
        figures(simulated, reuse="exact", device=None, order=o)[0].passage_hit_rate for o in ("score", "cache")
    )
    assert 0 < by_score < by_cache < 1


def test_a_small_pool_evicts_and_reads_from_the_disk_again(simulated):
    for reuse in ("exact", "chunk"):
        (large,) = {r.evicted_blocks for r in simulated.runs if r.variant.reuse == reuse and r.variant.device is None}
        small = [r for r in simulated.runs if r.variant.reuse == reuse and r.variant.device == 1500]
        assert large == 0
        assert all(r.evicted_blocks > 0 and r.device_blocks == 1500 // 16 for r in small)
    (unbounded, *_), (bounded, *_) = (figures(simulated, reuse="chunk", device=n) for n in (None, 1500))
    assert bounded.hit_tokens["disk"] > unbounded.hit_tokens["disk"]


def test_every_variant_is_there_once_and_the_first_is_on_top(simulated):
    assert len({r.variant.model_dump_json() for r in simulated.runs}) == 16 == len(simulated.runs)
    assert simulated.requests == REQUESTS == simulated.runs[0].figures.requests
    assert simulated.passage_hit_rate == simulated.runs[0].figures.passage_hit_rate
    assert simulated.ttft_ms is None
    assert simulated.setting.simulated
    assert TraceReport.model_validate_json(simulated.model_dump_json()) == simulated


def test_the_table_has_a_line_for_each_variant(simulated):
    printed = render(simulated)
    assert printed.count("pgdsf") == 8
    assert f"{simulated.passage_hit_rate:.1%}" in printed
    assert "TTFT" not in printed
    assert "FAILED" not in printed


@pytest.mark.parametrize("store", [True, False])
def test_the_engine_finds_what_the_simulation_finds(measure, store, tmp_path, config):
    settings = {"reuse": ("chunk", "exact"), "order": ("cache",), "device_tokens": ("1500",), "store": store}
    report = measure(**settings)
    assert report.problems == []
    assert report.setting.dtype == "float32"
    for r in report.runs:
        assert 0 < r.figures.ttft_ms.p50 <= r.figures.ttft_ms.p90 <= r.figures.ttft_ms.p99
    assert (report.setting.fill_seconds is not None) is store
    chunk = report.runs[0].figures
    assert (chunk.passage_hit_rate_beyond_repair == 1) is store
    assert (chunk.hit_tokens["disk"] > 0) is store
    assert "TTFT" in render(report)
    assert not store or list((tmp_path / "work").iterdir()) == [], "the store is gone"
    assert not config.data_dir.exists(), "the user's own data directory was used"


def test_an_engine_that_finds_something_else_is_a_problem(measure, monkeypatch):
    class Forgetful(SimulatedTier):
        def has(self, namespace, template, passage):
            return super().has(namespace, template, passage) and sum(passage) % 2 == 0

    monkeypatch.setattr(trace_replay, "SimulatedTier", Forgetful)
    report = measure(limit=6)
    assert "6 requests found other passages cached" in report.problems[0]
    assert "FAILED SELF-CHECK" in render(report)


def interrupt_after(count, stage):
    def progress(event):
        if event.stage == stage and event.done == count:
            raise KeyboardInterrupt

    return progress


def test_interruption_keeps_what_is_complete(measure):
    report = measure(interrupt_after(5, "simulate"), simulate=True, policy=("lru", "lfu"))
    assert report.interrupted
    assert [r.figures.requests for r in report.runs] == [5]
    assert "INTERRUPTED" in render(report)
    report = measure(interrupt_after(3, "measure"), limit=5)
    assert [r.figures.requests for r in report.runs] == [3]
    assert report.problems == []


def test_first_and_limit_choose_consecutive_requests(measure, simulated):
    report = measure(simulate=True, reuse=("exact",), first=4, limit=3)
    lengths = [answer.passages for answer in simulated.runs[0].answers]
    assert [answer.passages for answer in report.runs[0].answers] == lengths[4:7]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"reuse": ("auto",)}, "reuse is 'auto'.*exact, chunk"),
        ({"order": ("up",)}, "order is 'up'"),
        ({"policy": ("fifo",)}, "policy is 'fifo'.*lru, lfu, pgdsf"),
        ({"device_tokens": ("ten",)}, "device-tokens is 'ten'"),
        ({"device_tokens": ("0",)}, "device-tokens is '0'"),
        ({"device_tokens": ("10%%",)}, "device-tokens is '10%%'"),
        ({"device_tokens": ("160",)}, "160 tokens are 10 blocks, and a prompt of the trace needs"),
        ({"limit": 0}, "limit is 0"),
        ({"first": -1}, "first is -1"),
        ({"first": 99}, "first is 99; the trace has 14"),
        ({"repair": 8}, "repair is 8; it must be whole blocks of 16"),
    ],
)
def test_settings_that_cannot_work(measure, settings, named):
    with pytest.raises(InvalidRequestError, match=named):
        measure(simulate=True, **settings)


def test_sizes_of_the_pool(folder):
    variants = TraceBenchConfig(trace=folder, device_tokens=("unbounded", "10%", "2.5%", "700")).variants(5001)
    assert [variant.device for variant in variants] == [None, 501, 126, 700]


def test_figures_of_hand_made_answers():
    answers = [
        Answer(passages=[100, 50], hits=[100, 34], disk=34, outcomes=["canonical", "shifted"], ttft_ms=10),
        Answer(passages=[40, 10], hits=[32, 0], disk=0, outcomes=["computed", "computed"], ttft_ms=30),
        Answer(passages=[], hits=[], disk=0, outcomes=[], ttft_ms=20),
    ]
    found = Figures.of(answers, repair=16)
    assert (found.requests, found.passages, found.passage_tokens) == (3, 4, 200)
    assert found.hit_tokens == {"device": 132, "disk": 34}
    assert found.passage_hit_rate == 166 / 200
    assert found.passage_hit_rate_beyond_repair == (84 + 34 + 16) / (84 + 34 + 24)
    assert found.outcomes == {"canonical": 1, "computed": 2, "shifted": 1}
    assert found.ttft_ms == Percentiles(p50=20, p90=28, p99=29.8)


def test_a_simulated_engine_keeps_the_invariants(config):
    model = ModelConfig.from_folder(config.models_dir)
    tier = SimulatedTier()
    engine = SimulatedEngine(model, EngineConfig(), 40, policy_named("pgdsf"), tier)
    rng = random.Random(5)
    template = Segment(tuple(range(20)), SegmentKind.TEMPLATE)
    passages = [Segment((n,) * (10 + n), SegmentKind.PASSAGE) for n in range(1, 30)]
    for number in range(80):
        chosen = rng.sample(passages, 4)
        prompt = Prompt([template, *chosen, Segment((99, number), SegmentKind.TAIL)])
        reuse = rng.choice([Reuse.EXACT, Reuse.CHUNK])
        answer = engine.answer(prompt, reuse=reuse, repair=16, namespace="", groups=rng.choice([(), (4,), (1, 3)]))
        assert sorted(answer.passages) == sorted(len(one.tokens) for one in chosen)
        engine.cache.check_invariants()
    assert engine.cache.num_evicted_blocks > 0


@pytest.mark.parametrize(
    ("changes", "code"), [({}, 0), ({"problems": ["it differs"]}, 1), ({"interrupted": True}, 130)], ids=str
)
def test_command(simulated, monkeypatch, tmp_path, changes, code):
    made = simulated.model_copy(update=changes)
    asked = []
    monkeypatch.setattr(trace, "run", lambda config, bench, progress: asked.append(bench) or made)
    path = tmp_path / "report.json"
    options = [
        "--reuse",
        "exact,chunk",
        "--order",
        "cache",
        "--policy",
        "lfu",
        "--device-tokens",
        "10%",
        "--limit",
        "7",
    ]
    arguments = ["bench", "trace", "--trace", str(tmp_path), *options, "--simulate", "--output", str(path), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code
    wanted = TraceBenchConfig(
        trace=tmp_path, reuse=("exact", "chunk"), order=("cache",), policy=("lfu",), device_tokens=("10%",), limit=7,
        simulate=True,
    )  # fmt: skip
    assert asked == [wanted]
    assert TraceReport.model_validate_json(path.read_text()) == made
    shown = json.loads(result.stdout)
    assert {"passage_hit_rate", "passage_hit_rate_beyond_repair", "ttft_ms", "requests"} <= set(shown)
