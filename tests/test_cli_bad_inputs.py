"""Bad inputs: one clear paragraph that names the value and the remedy, the right exit code, and nothing is lost."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rag_helpers import LIGHTHOUSE, Ran, make_chat_model, run_cli
from retriever_helpers import make_pdf

from rag.components import Components
from retriever.hash_embedder import HashEmbedder

Rag = Callable[..., Ran]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def rag(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Rag:
    monkeypatch.setattr(Components, "_make_embedder", lambda _self: HashEmbedder())
    monkeypatch.setenv("PREREAD_ENGINE__DTYPE", "float32")
    monkeypatch.setenv("PREREAD_ANSWER__MAX_TOKENS", "4")
    monkeypatch.setenv("PREREAD_MODEL", str(model))
    monkeypatch.setenv("PREREAD_EMBEDDER", str(model))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.txt").write_text(LIGHTHOUSE)
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "binary.dat").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "locked.pdf").write_bytes(make_pdf(["A secret."], password="secret"))
    paths = ("--data-dir", tmp_path / "data", "--models-dir", tmp_path / "models")
    return lambda *arguments: run_cli(capsys, [*arguments, *paths])


LONG = "why " * 3000
CASES = {
    "missing file": (("ingest", "nowhere.txt"), {}, 2, ("nowhere.txt does not exist", "check the path")),
    "missing among good": (("ingest", "nowhere.txt", "good.txt"), {}, 3, ("nowhere.txt does not exist",)),
    "empty file": (("ingest", "empty.txt"), {}, 1, ("empty.txt is empty",)),
    "empty among good": (("ingest", "empty.txt", "good.txt"), {}, 3, ("empty.txt is empty",)),
    "binary file": (("ingest", "binary.dat", "good.txt"), {}, 3, ("binary.dat", "binary")),
    "encrypted PDF": (("ingest", "locked.pdf", "good.txt"), {}, 3, ("locked.pdf", "password")),
    "nothing to ingest": (("ingest",), {}, 2, ("name files or folders", "--corpus")),
    "unknown corpus": (("ingest", "--corpus", "poems"), {}, 1, ("'poems'", "python-topics")),
    "unknown collection": (("ask", "Why?", "-c", "nope"), {}, 1, ("'nope'", "default")),
    "bad collection name": (("ingest", "good.txt", "-c", "a/b"), {}, 2, ("'a/b'", "letters")),
    "empty question": (("ask", "  "), {}, 2, ("question is",)),
    "empty search": (("search", ""), {}, 2, ("query is ''",)),
    "prompt too long": (("ask", LONG), {}, 1, ("question takes", "shorter question")),
    "bad number": (("ask", "Why?", "-k", "many"), {}, 2, ("valid integer", "-k")),
    "bad range": (("ask", "Why?", "--top-p", "7"), {}, 2, ("top_p is 7",)),
    "bad setting": (("ask", "Why?"), {"PREREAD_TOP_K": "lots"}, 2, ("PREREAD_TOP_K", "'lots'")),
    "unknown setting": (("ask", "Why?"), {"PREREAD_TOPK": "3"}, 2, ("PREREAD_TOPK", "PREREAD_TOP_K")),
    "bad backend": (("ask", "Why?"), {"PREREAD_ENGINE__BACKEND": "abacus"}, 2, ("'abacus'", "torch")),
    "unknown option": (("ask", "Why?", "--flavour", "sweet"), {}, 2, ("--flavour",)),
    "unknown command": (("sing",), {}, 2, ("sing",)),
    "unknown model": (("ask", "Why?", "--model", "gpt-9"), {}, 1, ("'gpt-9'", "rag model pull")),
    "unknown model to pull": (("model", "pull", "gpt-9"), {}, 1, ("'gpt-9'", "smollm2-135m")),
    "unknown document": (("documents", "show", "ffff"), {}, 1, ("ffff",)),
    "data dir is a file": (("search", "x", "--data-dir", "good.txt"), {}, 1, ("good.txt", "--data-dir")),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_input_is_told_and_nothing_is_lost(rag: Rag, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, environment, code, words = CASES[case]
    assert rag("ingest", "good.txt").code == 0
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        data_dir = arguments[arguments.index("--data-dir") :] if "--data-dir" in arguments else ()
        ran = run_cli(capsys, arguments) if data_dir else rag(*arguments)
    assert ran.code == code, ran.err
    assert all(word in ran.message for word in words), ran.err
    assert "Traceback" not in ran.err
    assert len(ran.message) < 900
    again = rag("ask", "Who lights the lamp?")
    assert (again.code, "[1] good" in again.out) == (0, True), again.err


def test_a_bad_input_leaves_stdout_empty_for_json(rag: Rag) -> None:
    rag("ingest", "good.txt")
    assert rag("ask", "Why?", "-c", "nope", "--json").out == ""


def test_a_skipped_update_keeps_the_old_version(rag: Rag, tmp_path: Path) -> None:
    rag("ingest", "good.txt")
    (tmp_path / "good.txt").write_bytes(bytes(range(256)) * 40)
    assert rag("ingest", "good.txt").code == 1
    assert "Mara Venn" in rag("search", "Who lights the lamp?").out
