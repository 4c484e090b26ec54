"""The overlap benchmark: every switch is measured as often as asked, from the state that it names."""

import json
from pathlib import Path

import pytest
from rag_helpers import make_chat_model, run_cli

from data.corpora import Corpus, load_corpus
from rag.bench import overlap
from rag.bench.overlap import OverlapBenchConfig, OverlapReport, render, run
from rag.components import Components
from rag.config import RagConfig
from retriever.hash_embedder import HashEmbedder

DOCUMENTS = 6


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RagConfig:
    whole = load_corpus("python-topics")
    documents = sorted(whole.documents, key=lambda document: len(document.text))[10 : 10 + DOCUMENTS]
    small = Corpus(whole.name, whole.source, whole.licence, tuple(documents))
    monkeypatch.setattr(overlap, "load_corpus", lambda _name: small)
    monkeypatch.setattr(Components, "_make_embedder", lambda _self: HashEmbedder())
    model = str(make_chat_model(tmp_path / "model"))
    engine = {"dtype": "float32", "kv_cache_bytes": 64 << 20}
    return RagConfig(data_dir=tmp_path / "mine", model=model, embedder=model, engine=engine)


def test_every_switch_is_measured(config: RagConfig, tmp_path: Path) -> None:
    told: set[str] = set()
    bench = OverlapBenchConfig(questions=4, k=2, work_dir=tmp_path / "work")
    report = run(config, bench, lambda event: told.add(event.stage), embedder=HashEmbedder())
    assert [switch.name for switch in report.switches] == ["answer.prefetch", "answer.speculate", "embedding"]
    for switch in report.switches:
        assert switch.without_ms.n == switch.with_ms.n == 4
        assert switch.ratio.low <= switch.ratio.value <= switch.ratio.high
    assert told == {"ingest", "read ahead", "measure"}
    assert not config.data_dir.exists(), "the user's own data is left alone"
    lines = render(report).splitlines()
    assert len(lines) == 4
    assert "4 questions of 2 passages" in lines[0]


def test_questions_begin_from_the_state_that_is_named(
    config: RagConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hits: list[tuple[int, int]] = []
    final_answer = overlap.final_answer

    def note(events):
        answer = final_answer(events)
        hits.append((answer.cache.hit_tokens.device, answer.cache.hit_tokens.disk))
        return answer

    monkeypatch.setattr(overlap, "final_answer", note)
    bench = OverlapBenchConfig(questions=3, k=1, work_dir=tmp_path / "work")
    run(config, bench, lambda event: None, embedder=HashEmbedder())
    prefetch, speculation = hits[:6], hits[6:]
    assert all(device == 0 and disk > 0 for device, disk in prefetch), "from disk, every time"
    assert all(disk == 0 for _, disk in speculation), "there is no store"
    assert len(speculation) == 6


def test_the_command_prints_a_report(
    config: RagConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREREAD_ENGINE__DTYPE", "float32")
    monkeypatch.setenv("PREREAD_ENGINE__KV_CACHE_BYTES", str(64 << 20))
    models = ["--model", config.model, "--embedder", config.embedder]
    paths = ["--work-dir", tmp_path / "work", "--output", tmp_path / "report.json"]
    ran = run_cli(capsys, ["bench", "overlap", "--questions", "1", "-k", "1", "--json", *paths, *models])
    assert ran.code == 0, ran.err
    report = OverlapReport.model_validate_json(ran.out)
    assert report == OverlapReport.model_validate(json.loads((tmp_path / "report.json").read_text()))
