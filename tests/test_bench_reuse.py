"""The reuse benchmark: what it times is what it says, its figures are right, and it can fail."""

import json

import pytest
from rag_helpers import make_chat_model
from typer.testing import CliRunner

from engine.prompt import Prompt, Segment, SegmentKind
from rag.bench import reuse
from rag.bench.engine_own import CacheMismatchError
from rag.bench.reuse import ReuseBenchConfig, run
from rag.bench.reuse_engine import QUESTION, TEMPLATE, ReuseEngine
from rag.bench.reuse_report import Endurance, ReuseCase, ReuseReport, ReuseResult
from rag.bench.reuse_table import render
from rag.cli.main import app
from rag.config import RagConfig
from rag.errors import InvalidRequestError


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_chat_model(folder, max_position_embeddings=2048)
    return RagConfig(
        data_dir=folder / "the-users-own", models_dir=folder, model=str(folder), engine={"dtype": "float32"}
    )


SMALL = {"passages": (1, 3), "lengths": (32, 1024), "repairs": (0, 16, 32), "batches": 12, "repeats": 2}


@pytest.fixture(scope="module")
def measure(config, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("work")

    def run_with(progress=lambda event: None, **settings):
        return run(config, ReuseBenchConfig(**{"work_dir": work_dir, **SMALL, **settings}), progress)

    return run_with


@pytest.fixture(scope="module")
def report(measure):
    return measure()


def test_every_shape_that_fits_is_measured_with_every_repair_shorter_than_its_passages(report):
    assert [(one.case.passages, one.case.length, one.case.repair) for one in report.cases] == [
        (1, 32, 0), (1, 32, 16), (3, 32, 0), (3, 32, 16),
        (1, 1024, 0), (1, 1024, 16), (1, 1024, 32),
    ]  # fmt: skip
    assert [one.name for one in report.skipped] == ["3 passages of 1024 tokens", "14 passages of 1024 tokens"]
    three = report.cases[3]
    assert (three.prompt_tokens, three.new_tokens) == (TEMPLATE + 96 + QUESTION, 32 + QUESTION)
    assert all(len(samples) == 2 for one in report.cases for samples in one.samples_ms.values())


def test_new_orders_leave_the_tree_as_it_was(report):
    endurance = report.endurance
    assert endurance.case == ReuseCase(passages=14, length=32, repair=16)
    assert endurance.cached_blocks_before == endurance.cached_blocks_after > 0
    assert endurance.evicted_blocks == 0
    assert len(endurance.chunk_ms) == len(endurance.full_ms) == 12


def test_disk_and_ingestion(report, config):
    assert report.disk.tokens == 1600
    assert report.disk.bytes == 1600 * 4 * 2 * 2 * 2 * 8  # float32, layers, keys and values, heads, dimension
    assert report.precompute.share.value > 0
    assert not config.data_dir.exists(), "the user's own data directory was used"


def test_report_survives_json_and_the_table_shows_it(report):
    assert ReuseReport.model_validate_json(report.model_dump_json()) == report
    printed = render(report)
    for text in ("3 x 32", "endurance  12 new orders of 14 x 32", "ingestion", "disk", "skipped"):
        assert text in printed
    assert "INTERRUPTED" not in printed


def test_parts_alone(measure):
    report = measure(only=("precompute",))
    assert report.precompute is not None
    assert (report.cases, report.endurance, report.disk) == ([], None, None)
    assert "first token, ms" not in render(report)


def interrupt_after(count, stage):
    def progress(event):
        if event.stage == stage and event.done == count:
            raise KeyboardInterrupt

    return progress


def test_interruption_keeps_complete_shapes(measure):
    report = measure(interrupt_after(4, "cases"), lengths=(32,))
    assert report.interrupted
    assert {one.case.passages for one in report.cases} == {1}
    assert report.endurance is None
    assert "INTERRUPTED" in render(report)
    with pytest.raises(KeyboardInterrupt):
        measure(interrupt_after(1, "cases"))


@pytest.fixture(scope="module")
def own(config, tmp_path_factory):
    bench = ReuseBenchConfig(work_dir=tmp_path_factory.mktemp("kept"), **SMALL)
    with reuse._engine(config, bench) as engine:
        yield ReuseEngine(engine, seed=0)


def test_what_was_not_read_before_is_noticed(own):
    passages = own.passages(48, 3)
    own.read(passages[:2])
    assert own.chunk_ms(own.question([passages[1], passages[0]]), 16) > 0
    with pytest.raises(CacheMismatchError, match="computed"):
        own.chunk_ms(own.question(passages), 16)


def test_what_is_cached_after_all_is_noticed(own):
    prompt = own.question(own.passages(48, 1))
    assert own.full_ms(prompt) > 0
    text = Segment(prompt.tokens, SegmentKind.TEXT)
    own.engine.generate([Prompt([text])], namespace="bench-reuse/fresh")
    with pytest.raises(CacheMismatchError, match="tokens were cached"):
        own.full_ms(prompt)


def test_one_piece_computes_as_many_tokens(own):
    case = ReuseCase(passages=4, length=48, repair=16)
    blocks = own.engine.cache.num_cached_blocks
    totals = own.engine.totals
    before = totals.prompt_tokens - totals.cached_tokens
    own.contiguous_ms(case, prompt_tokens=TEMPLATE + 4 * 48 + QUESTION)
    long = own.engine.max_model_len // 16 * 16 - 16  # read once
    assert totals.prompt_tokens - totals.cached_tokens - before == long + 3 * 16 + QUESTION
    assert own.engine.cache.num_cached_blocks == blocks + long // 16
    before = totals.prompt_tokens - totals.cached_tokens
    own.contiguous_ms(case, prompt_tokens=TEMPLATE + 4 * 48 + QUESTION)
    assert totals.prompt_tokens - totals.cached_tokens - before == 3 * 16 + QUESTION


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"only": ("x",)}, "only is 'x'.*endurance"),
        ({"passages": ()}, "passages is nothing"),
        ({"lengths": (0, 5)}, "lengths is 0"),
        ({"repairs": (-16,)}, "repairs is -16"),
        ({"repeats": 0}, "repeats is 0"),
        ({"repairs": (8,)}, "repair is 8; it must be whole blocks of 16"),
    ],
)
def test_settings_that_cannot_work(measure, settings, named):
    with pytest.raises(InvalidRequestError, match=named):
        measure(**settings)


def test_figures_of_hand_made_samples():
    case = ReuseCase(passages=6, length=256, repair=16)
    samples = {"chunk": [10.0, 20.0, 10.0], "full": [200.0, 200.0, 300.0], "contiguous": [10.0, 10.0, 8.0]}
    found = ReuseResult.of(case, 1598, 110, samples, 0)
    assert (found.chunk_ms.median, found.full_ms.median, found.contiguous_ms.median) == (10, 200, 10)
    assert found.full_over_chunk.value == 20
    assert found.chunk_over_contiguous.value == 1.25
    endurance = Endurance(
        case=case, chunk_ms=[1.0], full_ms=[2.0], first=10.0, last=9.5, cached_blocks_before=1, cached_blocks_after=1,
        evicted_blocks=0,
    )  # fmt: skip
    assert endurance.drift == pytest.approx(-0.05)


@pytest.mark.parametrize(("changes", "code"), [({}, 0), ({"interrupted": True}, 130)], ids=str)
def test_command(report, monkeypatch, tmp_path, changes, code):
    made = report.model_copy(update=changes)
    asked = []
    monkeypatch.setattr(reuse, "run", lambda config, bench, progress: asked.append(bench) or made)
    path = tmp_path / "report.json"
    options = ["--only", "cases,disk", "--passages", "2,6", "--lengths", "64", "--repairs", "16", "--batches", "9"]
    result = CliRunner().invoke(app, ["bench", "reuse", *options, "--output", str(path), "--json"])
    assert result.exit_code == code
    wanted = ReuseBenchConfig(only=("cases", "disk"), passages=(2, 6), lengths=(64,), repairs=(16,), batches=9)
    assert asked == [wanted]
    assert json.loads(result.stdout) == json.loads(made.model_dump_json())
    assert ReuseReport.model_validate_json(path.read_text()) == made


def test_command_refuses_what_is_no_number():
    result = CliRunner().invoke(app, ["bench", "reuse", "--lengths", "64,long"])
    assert result.exit_code == 2
    assert "lengths is '64,long'" in result.stderr
