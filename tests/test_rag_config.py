"""Settings: composed, checked, and refused by name."""

from pathlib import Path

import pytest

from engine.config import EngineConfig
from rag.config import load_config
from rag.errors import ConfigurationError
from retriever.config import RetrieverConfig


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.upper().startswith("PREREAD_"):
            monkeypatch.delenv(name)


def test_defaults_are_those_of_the_parts() -> None:
    config = load_config()
    assert config.engine.build() == EngineConfig(max_share_waiting=256), "an engine of its own has one principal"
    assert config.retriever.build() == RetrieverConfig()
    assert (config.model, config.embedder, config.top_k) == ("smollm2-135m", "minilm", 4)


def test_what_is_passed_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREREAD_TOP_K", "7")
    monkeypatch.setenv("PREREAD_MODEL", "other")
    monkeypatch.setenv("PREREAD_ENGINE__BLOCK_SIZE", "32")
    monkeypatch.setenv("PREREAD_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("PREREAD_EMBEDDER", "")
    config = load_config(model="given", top_k=None)
    assert (config.model, config.top_k, config.data_dir) == ("given", 7, tmp_path)
    assert config.engine.build() == EngineConfig(block_size=32, max_share_waiting=256)
    assert config.embedder == "minilm"


def test_paths_are_expanded() -> None:
    assert load_config(data_dir="~/docs").data_dir == Path.home() / "docs"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("PREREAD_TOPK", "3", "PREREAD_TOPK names no setting; did you mean PREREAD_TOP_K"),
        ("PREREAD_TOP_K", "many", r"setting top_k \(PREREAD_TOP_K\) is 'many'"),
        ("PREREAD_TOP_K", "0", "setting top_k"),
        ("PREREAD_ENGINE__BLOCK_SIZE", "0", r"engine.block_size \(PREREAD_ENGINE__BLOCK_SIZE\) is '0'"),
        ("PREREAD_ENGINE__EVICTION", "random", "eviction policy 'random'"),
        ("PREREAD_ENGINE", "{}", "PREREAD_ENGINE names no setting"),
        ("PREREAD_RETRIEVER__PASSAGE_TOKENS", "3", "passage_tokens is 3"),
        ("PREREAD_PROMPT__AFTER", "no place", "prompt.after"),
    ],
)
def test_a_setting_that_cannot_work_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=message):
        load_config()


def test_an_ambiguous_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREREAD_TOP_K", "3")
    monkeypatch.setenv("preread_top_k", "4")
    with pytest.raises(ConfigurationError, match="both set PREREAD_TOP_K"):
        load_config()


def test_an_unknown_argument_is_named() -> None:
    with pytest.raises(ConfigurationError, match="flavour"):
        load_config(flavour="sweet")
