"""The service benchmark: what it sees of a real server, and what it makes of it."""

import json
import os
from pathlib import Path

import pytest
from rag_helpers import make_chat_model, run_cli

from data.corpora import Corpus, load_corpus
from rag.bench import service
from rag.bench.service import ServiceBenchConfig, run
from rag.bench.service_client import serving
from rag.bench.service_report import Condition, Inspection, ServiceReport, SoakFigure, render
from rag.bench.service_soak import soak_conditions
from rag.bench.statistics import summarise
from rag.components import Components
from rag.config import RagConfig
from rag.errors import ConfigurationError, ServerError
from retriever.hash_embedder import HashEmbedder

CHILD = "service_bench_child"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RagConfig:
    whole = load_corpus("python-topics")
    documents = sorted(whole.documents, key=lambda document: len(document.text))[10:16]
    small = Corpus(whole.name, whole.source, whole.licence, tuple(documents))
    monkeypatch.setattr(service, "load_corpus", lambda _name: small)
    monkeypatch.setattr(Components, "_make_embedder", lambda _self: HashEmbedder())
    monkeypatch.setattr(service, "CHILD", CHILD)
    folder = Path(__file__).parent
    path = os.pathsep.join([str(folder.parent), str(folder), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model = str(make_chat_model(tmp_path / "model"))
    engine = {"dtype": "float32", "kv_cache_bytes": 16 << 20, "max_num_seqs": 3}
    return RagConfig(data_dir=tmp_path / "mine", model=model, embedder=model, engine=engine)


@pytest.mark.slow
def test_every_part_is_measured_on_a_server_of_its_own(
    config: RagConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: set[str] = set()
    bench = ServiceBenchConfig(
        k=2, max_tokens=8, questions=2, flood=4, clients=6, seconds=3.0, work_dir=tmp_path / "work"
    )
    report = run(config, bench, lambda event: told.add(event.stage), module=CHILD)
    assert told == {"ingest", "overhead", "fairness", "soak"}
    assert not config.data_dir.exists(), "the user's own data is left alone"
    assert report.overhead is not None
    assert report.overhead.overhead_ms.n == 6
    assert all(http > engine > 0 for http, engine in report.overhead.samples_ms)
    fairness = report.fairness
    assert fairness is not None
    assert {name: len(values) for name, values in fairness.samples_ms.items()} == dict.fromkeys(
        ("idle cold", "idle warm", "flooded cold", "flooded warm"), 2
    )
    assert 1 < fairness.most_running <= 3
    soak = report.soak
    assert soak is not None
    assert (soak.lost, soak.stuck, soak.unexpected) == ([], 0, [])
    assert sum(soak.requests.values()) == sum(soak.statuses.values())
    assert soak.statuses["200"] > 0
    assert soak.health_ms.n > 0
    told_of = {one.name: one for one in report.conditions}
    assert len(told_of) == 10
    for name in ("lost documents", "stuck requests", "leaked blocks", "broken invariants"):
        assert told_of[f"soak, {name}"].value == 0
    lines = render(report)
    assert "6 clients for" in lines
    assert "beside 4 requests of another key" in lines


def test_the_command_fails_where_a_condition_does(
    config: RagConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(service, "OVERHEAD_LIMIT_MS", 1e-6)
    monkeypatch.setattr("rag.cli.bench_output.config_of", lambda _context: config)
    output = tmp_path / "report.json"
    command = ["bench", "service", "--only", "overhead", "--questions", "1", "-k", "2", "--max-tokens", "4"]
    ran = run_cli(capsys, [*command, "--work-dir", tmp_path / "work", "--output", output, "--json"])
    assert ran.code == 1, ran.err
    report = ServiceReport.model_validate(json.loads(ran.out))
    assert report == ServiceReport.model_validate_json(output.read_text())
    assert report.problems == ["overhead of HTTP"]
    assert "FAILS: overhead of HTTP" in ran.err


def test_a_server_that_does_not_start_is_told_of(config: RagConfig) -> None:
    with (
        pytest.raises(ServerError, match="ended with code"),
        serving(config.model_copy(update={"model": "no-such-model"}), module=CHILD),
    ):
        pass


def test_a_part_that_does_not_exist() -> None:
    with pytest.raises(ConfigurationError, match="speed"):
        ServiceBenchConfig(only=("speed",))
    assert ServiceBenchConfig().has("soak")
    assert not ServiceBenchConfig(only=("overhead",)).has("soak")


@pytest.mark.parametrize(
    ("change", "look", "name"),
    [
        ({"lost": ["soak:3"]}, {}, "lost documents"),
        ({"stuck": 1}, {}, "stuck requests"),
        ({}, {"waiting": 1}, "stuck requests"),
        ({"unexpected": ["answers: status 500"]}, {}, "unexpected statuses"),
        ({}, {"leaked_blocks": 2}, "leaked blocks"),
        ({}, {"broken": "block 3 is free and held"}, "broken invariants block 3 is free and held"),
        ({"growth": 0.5}, {}, "growth of memory"),
        ({"health_p99_ms": 300.0}, {}, "p99 of the health routes"),
    ],
)
def test_what_has_to_hold_after_a_soak(change: dict, look: dict, name: str) -> None:
    good = SoakFigure(
        clients=1, seconds=1, requests={}, statuses={}, health_ms=summarise([1.0]), health_p99_ms=1.0,
        lost=[], stuck=0, unexpected=[], memory_mib=[1.0], growth=0.0,
    )  # fmt: skip
    sound = Inspection(broken="", running=0, waiting=0, leaked_blocks=0, step_seconds=[])
    assert all(one.holds for one in soak_conditions(good, sound))
    found = soak_conditions(good.model_copy(update=change), sound.model_copy(update=look))
    assert [one.name for one in found if not one.holds] == [f"soak, {name}"]


def test_a_condition_holds_up_to_its_limit() -> None:
    assert Condition(name="a", value=5, limit=5, unit="").holds
    assert not Condition(name="a", value=5.1, limit=5, unit="").holds
