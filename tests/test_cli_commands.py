"""The commands, one after the other, on a tiny model: output, JSON, exit codes."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rag_helpers import HARBOUR, LIGHTHOUSE, Ran, make_chat_model, run_cli

from rag.components import Components
from rag.schemas import Answer, IngestReport, SearchResult
from retriever.hash_embedder import HashEmbedder

Rag = Callable[..., Ran]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def rag(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Rag:
    monkeypatch.setattr(Components, "_make_embedder", lambda _self: HashEmbedder())
    monkeypatch.setenv("PREREAD_ENGINE__DTYPE", "float32")
    monkeypatch.setenv("PREREAD_ENGINE__KV_CACHE_BYTES", str(16 * 2**20))
    monkeypatch.setenv("PREREAD_ANSWER__MAX_TOKENS", "8")
    paths = (
        "--data-dir",
        tmp_path / "data",
        "--models-dir",
        tmp_path / "models",
        "--model",
        model,
        "--embedder",
        model,
    )
    return lambda *arguments: run_cli(capsys, [*paths, *arguments])


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "lighthouse.md").write_text(f"# Lighthouse\n\n{LIGHTHOUSE}\n")
    (folder / "harbour.txt").write_text(HARBOUR)
    return folder


def test_ingest_adds_updates_leaves_and_prunes(rag: Rag, docs: Path) -> None:
    report = IngestReport.model_validate_json(rag("ingest", docs, "--json").out)
    assert (report.collection, report.added, report.passages) == ("default", 2, 2)
    assert "2 unchanged" in rag("ingest", docs).out
    (docs / "harbour.txt").write_text(HARBOUR + " It smells of tar.")
    (docs / "lighthouse.md").unlink()
    assert "1 updated" in rag("ingest", docs).out
    assert rag("collections", "show", "default").out.count("2") >= 1
    pruned = IngestReport.model_validate_json(rag("ingest", docs, "--prune", "--json").out)
    assert (pruned.unchanged, pruned.removed) == (1, 1)


def test_settings_of_a_new_collection_are_kept_and_others_are_told(
    rag: Rag, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = rag("ingest", docs, "--passage-tokens", "64", "--index", "HNSW8")
    assert (made.code, made.err) == (0, "")
    info = json.loads(rag("collections", "show", "default", "--json").out)
    assert (info["passage_tokens"], info["index_factory"]) == (64, "HNSW8")
    assert rag("ingest", docs).err == ""
    monkeypatch.setenv("PREREAD_RETRIEVER__PASSAGE_TOKENS", "32")
    ran = rag("ingest", docs, "--index", "HNSW8")
    assert (ran.code, ran.err.count("notice:")) == (0, 1)
    assert "notice: PREREAD_RETRIEVER__PASSAGE_TOKENS asks for 32" in ran.err
    assert "made with passage_tokens 64" in ran.err
    assert rag("ingest", docs, "--passage-tokens", "3").code == 2


def test_an_ingestion_of_which_nothing_comes_leaves_no_collection(rag: Rag, docs: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    assert rag("ingest", empty, "--prune").code == 1
    assert json.loads(rag("collections", "--json").out) == []
    rag("ingest", docs)
    for document in json.loads(rag("documents", "list", "--json").out):
        rag("documents", "delete", document["id"])
    assert rag("ingest", empty).code == 1
    assert [info["name"] for info in json.loads(rag("collections", "--json").out)] == ["default"]


def test_prune_leaves_what_was_not_named(rag: Rag, docs: Path, tmp_path: Path) -> None:
    other = tmp_path / "docs2" / "market.txt"
    other.parent.mkdir()
    other.write_text("The market sells wool.")
    rag("ingest", docs, other)
    (docs / "harbour.txt").unlink()
    assert json.loads(rag("ingest", docs, "--prune", "--json").out)["removed"] == 1
    uris = [document["uri"] for document in json.loads(rag("documents", "list", "--json").out)]
    assert uris == [str(docs / "lighthouse.md"), str(other)]


def test_prune_with_a_file_leaves_files_whose_names_begin_like_it(rag: Rag, tmp_path: Path) -> None:
    for name in ("a.txt", "a.txt.old"):
        (tmp_path / name).write_text(f"The text of {name} tells of pumps and valves.")
    rag("ingest", tmp_path / "a.txt", tmp_path / "a.txt.old")
    assert json.loads(rag("ingest", tmp_path / "a.txt", "--prune", "--json").out)["removed"] == 0


def test_a_missing_path_prunes_nothing(rag: Rag, docs: Path, tmp_path: Path) -> None:
    rag("ingest", docs, docs / "harbour.txt")
    (docs / "harbour.txt").unlink()
    ran = rag("ingest", docs, tmp_path / "gone", "--prune")
    assert (ran.code, "nothing is pruned" in ran.err) == (3, True)
    assert len(json.loads(rag("documents", "list", "--json").out)) == 2


def test_ask_shows_answer_sources_and_what_the_cache_saved(rag: Rag, docs: Path) -> None:
    rag("ingest", docs)
    ran = rag("ask", "By whom is the lamp lit every evening?", "-k", "1")
    assert (ran.code, ran.err) == (0, "")
    assert "From the sources: “Its lamp is lit every evening by Mara Venn.” [1]" in ran.out
    assert f"[1] Lighthouse\n      {docs / 'lighthouse.md'} · characters" in ran.out
    assert "prompt tokens, 0 from cache · passages: " in ran.out.splitlines()[-1]


def test_a_document_cannot_steer_the_terminal(rag: Rag, tmp_path: Path) -> None:
    path = tmp_path / "evil\x1b]0;name\x07.txt"
    path.write_text(f"\x1b[2J\x9b2J{LIGHTHOUSE}")
    ingested = rag("ingest", path)
    document = json.loads(rag("documents", "list", "--json").out)[0]
    assert "\x1b" in document["uri"]  # JSON has what is there, escaped
    shown = [rag("search", "lamp"), rag("ask", "Who lights the lamp?"), rag("documents", "list")]
    shown += [ingested, rag("documents", "show", document["id"]), rag("documents", "delete", document["id"])]
    assert all(ran.code == 0 for ran in shown)
    assert LIGHTHOUSE in shown[0].out
    steering = [ran for ran in shown if {"\x1b", "\x07", "\x9b"} & {*ran.out, *ran.err}]
    assert steering == []


def test_json_is_all_there_is_on_stdout(rag: Rag, docs: Path) -> None:
    rag("ingest", docs)
    answer = Answer.model_validate_json(rag("ask", "Who lights the lamp?", "--json").out)
    assert len(answer.sources) == 2
    result = SearchResult.model_validate_json(rag("search", "Who lights the lamp?", "--json", "-k", "1").out)
    assert result.results[0] == answer.sources[0]
    assert isinstance(json.loads(rag("ask", "Why?", "--json").out)["sources"][0]["passage_id"], str)


def test_search_shows_passages_and_never_makes_an_engine(rag: Rag, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rag("ingest", docs)
    monkeypatch.setattr(Components, "_make_worker", lambda _self: pytest.fail("the language model was loaded"))
    ran = rag("search", "When does the harbour freeze?", "-k", "1")
    assert (ran.code, ran.err) == (0, "")
    assert "freezes in January" in ran.out


def test_documents_and_collections_can_be_seen_and_deleted(rag: Rag, docs: Path) -> None:
    rag("ingest", docs, "-c", "town")
    [document, _] = json.loads(rag("documents", "list", "-c", "town", "--json").out)
    shown = rag("documents", "show", document["id"], "-c", "town").out
    assert document["uri"] in shown
    assert "freezes in January" in shown
    assert "1 passages" in rag("documents", "delete", document["id"], "-c", "town").out
    assert len(json.loads(rag("documents", "list", "-c", "town", "--json").out)) == 1
    assert "town" in rag("collections", "list").out
    assert rag("collections").out == rag("collections", "list").out
    assert rag("collections", "--json", "list").code == 2
    deleted = rag("collections", "delete", "town", "--yes", "--json")
    assert (deleted.code, json.loads(deleted.out)["name"]) == (0, "town")
    assert json.loads(rag("collections", "--json").out) == []


def test_a_collection_is_not_deleted_without_consent(rag: Rag, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    rag("ingest", docs)
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert rag("collections", "delete", "default").code == 1
    assert json.loads(rag("collections", "show", "default", "--json").out)["documents"] == 2


def test_models_are_listed_with_those_that_can_be_pulled(rag: Rag, model: Path) -> None:
    assert "not pulled: rag model pull minilm" in rag("model", "list").out
    pulled = rag("model", "pull", model)
    assert (pulled.code, "language model (LlamaForCausalLM)" in pulled.out) == (0, True)
    [info] = json.loads(rag("model", "list", "--json").out)
    assert (info["name"], info["path"]) == ("tiny", str(model))


def test_doctor_finds_everything_works(rag: Rag) -> None:
    ran = rag("doctor", "--json")
    report = json.loads(ran.out)
    assert (ran.code, report["works"]) == (0, True)
    names = {check["name"] for check in report["checks"]}
    assert names >= {"kernel backend reference", "index", "language model", "data directory", "answer", "cache"}


def test_doctor_looks_into_every_collection(rag: Rag, docs: Path, tmp_path: Path) -> None:
    rag("ingest", docs, "-c", "town")
    rag("ingest", docs / "harbour.txt", "-c", "port")

    def found() -> dict[str, tuple[bool, str]]:
        checks = json.loads(rag("doctor", "--quick", "--json").out)["checks"]
        return {check["name"]: (check["works"], check["detail"]) for check in checks}

    detail = "2 documents, 2 passages, index Flat: 2 vectors, 0 dead, trained; index and store agree"
    assert found()["collection town"] == (True, detail)
    with sqlite3.connect(tmp_path / "data" / "library" / "library.sqlite3") as database:
        database.execute("UPDATE passages SET text = 'another text' WHERE text LIKE '%lamp%'")
    database.close()
    assert found()["collection town"][0] is False
    assert found()["collection port"][0] is True


def test_doctor_tells_what_is_missing(rag: Rag) -> None:
    ran = rag("doctor", "--embedder", "minilm")
    assert ran.code == 1
    assert "rag model pull minilm" in ran.out
    assert "embedder" in ran.err


def test_global_options_may_stand_anywhere(rag: Rag, tmp_path: Path) -> None:
    assert rag("collections", "list", f"--data-dir={tmp_path / 'elsewhere'}").code == 0


def test_the_version_is_shown(rag: Rag) -> None:
    assert rag("--version").out.startswith("preread ")


def test_ctrl_c_ends_with_130_and_loses_nothing(tmp_path: Path, model: Path) -> None:
    root = Path(__file__).parents[1]
    code = (
        "from rag.components import Components\n"
        "from retriever.hash_embedder import HashEmbedder\n"
        "Components._make_embedder = lambda self: HashEmbedder()\n"
        "import time\n"
        "from engine.engine import Engine\n"
        "step = Engine.step\n"  # slow enough to be interrupted in the middle of an answer
        "Engine.step = lambda self: (time.sleep(0.1), step(self))\n"
        "from rag.cli.main import main\n"
        "main()\n"
    )
    paths = ["--data-dir", tmp_path / "data", "--model", model, "--embedder", model]
    (tmp_path / "text.txt").write_text(LIGHTHOUSE)

    def start(*arguments: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, [*arguments, *paths])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=root,
            env={**os.environ, "PREREAD_ANSWER__STOP_REPETITION": "false", "PREREAD_ENGINE__DTYPE": "float32"},
        )

    ingest = start("ingest", tmp_path / "text.txt")
    assert ingest.communicate()[1] == ""
    asking = start("ask", "Who lights the lamp?", "--max-tokens", "3000", "--temperature", "1", "--seed", "4")
    assert asking.stdout is not None
    assert asking.stdout.read(1)
    asking.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, errors = asking.communicate(timeout=30)
    assert (asking.returncode, time.monotonic() - started < 20) == (130, True)
    assert "Traceback" not in errors
    search = start("search", "lamp", "--json")
    out, errors = search.communicate()
    assert (search.returncode, errors) == (0, "")
    assert json.loads(out)["results"][0]["text"] == LIGHTHOUSE
