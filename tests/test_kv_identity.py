"""Stored KV is found only under all that it depends on, and weights are read once."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import kv_identity
from engine.errors import ModelFileError
from engine.kv_identity import KVIdentity
from engine.models.config import ModelConfig

hash_file = kv_identity._hash_file
BASE = KVIdentity(weights="ab", model="{}", compute_mode="float16", kv_dtype="float16", block_size=16)
TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=6)
FIELDS = st.tuples(st.text(max_size=4), TOKENS, TOKENS)


def identify(folder: Path) -> KVIdentity:
    config = ModelConfig.from_folder(folder)
    return KVIdentity.of(folder, config, dtype="float32", kv_dtype="float32", block_size=16)


@given(FIELDS, FIELDS)
def test_keys_differ_exactly_when_their_fields_do(one, other):
    assert (BASE.key(*one) == BASE.key(*other)) == (one == other)
    assert len(BASE.key(*one)) == 32


def test_tokens_cannot_move_between_template_and_passage():
    assert BASE.key("", (1, 2), (3,)) != BASE.key("", (1,), (2, 3))
    assert BASE.key("", (), (1, 2)) != BASE.key("", (1, 2), ())


@pytest.mark.parametrize(
    "change",
    [{"weights": "ac"}, {"model": "[]"}, {"compute_mode": "int8"}, {"kv_dtype": "int8"}, {"block_size": 32}],
    ids=lambda change: next(iter(change)),
)
def test_every_fact_changes_the_digest(change):
    assert replace(BASE, **change).digest != BASE.digest
    assert replace(BASE, **change).key("c", (1,), (2,)) != BASE.key("c", (1,), (2,))


@pytest.mark.parametrize("version", ["FORMAT_VERSION", "LAYOUT_VERSION", "NUMERICS_REVISION"])
def test_every_version_changes_the_digest(version, monkeypatch):
    monkeypatch.setattr(kv_identity, version, 99)
    assert replace(BASE).digest != BASE.digest


def test_configuration_with_rope_and_window_counts(tiny_folder):
    config = ModelConfig.from_folder(tiny_folder)
    settings = {"dtype": "float32", "kv_dtype": "float32", "block_size": 16}
    plain = KVIdentity.of(tiny_folder, config, **settings)
    windows = replace(config, layer_windows=(9,) * config.num_layers)
    rope = replace(config, rope={**config.rope, "rope_theta": 77.0})
    assert len({KVIdentity.of(tiny_folder, c, **settings).digest for c in (config, windows, rope)}) == 3
    assert json.loads(plain.model)["rope"] == asdict(config)["rope"]


def test_the_same_weights_elsewhere_are_the_same(tiny_folder, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tiny_folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert identify(copy) == identify(tiny_folder)


def copy_weights(tiny_folder: Path, folder: Path) -> Path:
    (folder / "config.json").write_bytes((tiny_folder / "config.json").read_bytes())
    weights = folder / "model.safetensors"
    weights.write_bytes((tiny_folder / "model.safetensors").read_bytes())
    return weights


def test_weights_are_read_once_and_again_when_they_change(tiny_folder, tmp_path, monkeypatch):
    weights = copy_weights(tiny_folder, tmp_path)
    read = []
    monkeypatch.setattr(kv_identity, "_hash_file", lambda path: read.append(path) or hash_file(path))
    first = identify(tmp_path)
    assert (identify(tmp_path), len(read)) == (first, 1)

    status = weights.stat()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))  # the same size and time of writing
    assert identify(tmp_path).digest != first.digest
    assert len(read) == 2


@pytest.mark.parametrize("content", ["", "[]", '{"files": 3}', '{"weights": "00"}', "\0"])
def test_a_damaged_memory_costs_a_reading(content, tiny_folder, tmp_path):
    copy_weights(tiny_folder, tmp_path)
    expected = identify(tmp_path)
    kv_identity._memory(tmp_path.resolve()).write_text(content)
    assert identify(tmp_path) == expected


def test_memory_that_cannot_be_kept_is_no_error(tiny_folder, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setattr(kv_identity.profile, "default_profiles_dir", lambda: tmp_path / "file" / "below")
    assert identify(tiny_folder) == identify(tiny_folder)
    assert "cannot be kept" in caplog.text


def test_folder_without_weights_is_a_named_error(tiny_folder, tmp_path):
    copy_weights(tiny_folder, tmp_path).unlink()
    with pytest.raises(ModelFileError, match="no safetensors files"):
        identify(tmp_path)
