"""Packed weights are kept in a file that processes share; whatever is wrong with it, the weights are the same."""

import logging
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from tiny_models import make_engine_folder

from engine.errors import ModelFileError
from engine.models import packed_weights
from engine.models.decoder import Decoder
from engine.models.packed_weights import load_weights, pack_weights
from kernels.cpu_library import load_library, unavailable_reason
from kernels.cpu_linear import FORMATS
from kernels.cpu_weights import WeightSet

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason="weights are packed for the C++ kernels")

FAMILIES = ("llama-untied-biases", "qwen3-norms")

CHILD = """
import sys
from pathlib import Path
from engine.models import packed_weights
from engine.models.decoder import Decoder
from kernels.cpu import CpuBackend
packed_weights.SMALLEST_SHARED = 0
packed_weights.default_weights_dir = lambda: Path(sys.argv[2])
backend, folder, loads = CpuBackend(), Path(sys.argv[1]), []
print("ready", flush=True)
sys.stdin.readline()
def source():
    loads.append(1)
    return Decoder.from_folder(folder, dtype=None, backend=backend)
weights = packed_weights.load_weights(folder, "int8", backend.library, source)
address = weights.linears["head"].panels.data_ptr()
for line in Path("/proc/self/maps").read_text().splitlines():
    span, flags, _, _, inode, *_ = line.split()
    low, high = (int(end, 16) for end in span.split("-"))
    if low <= address < high:
        print(len(loads), inode, flags, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Path:
    """Where files are kept, of tiny models too."""
    folder = tmp_path / "kept"
    monkeypatch.setattr(packed_weights, "SMALLEST_SHARED", 0)
    monkeypatch.setattr(packed_weights, "default_weights_dir", lambda: folder)
    return folder


class Source:
    """Loads a model folder and counts how often."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.loads = folder, 0

    def __call__(self) -> Decoder:
        from kernels.cpu import CpuBackend

        self.loads += 1
        return Decoder.from_folder(self.folder, dtype=None, backend=CpuBackend())


@pytest.fixture
def source(tiny_folder) -> Source:
    return Source(tiny_folder)


def load(source: Source, weight_format: str = "int8") -> WeightSet:
    return load_weights(source.folder, weight_format, load_library(), source)


def files(kept: Path) -> list[Path]:
    return sorted(kept.glob("*.weights"))


def assert_same(found: WeightSet, wanted: WeightSet) -> None:
    assert list(found.linears) == list(wanted.linears)
    assert list(found.vectors) == list(wanted.vectors)
    for name, linear in wanted.linears.items():
        other = found.linears[name]
        for field in ("format", "out_features", "in_features", "gated"):
            assert getattr(other, field) == getattr(linear, field)
        for field in ("panels", "scales", "bias"):
            mine, theirs = getattr(linear, field), getattr(other, field)
            assert (mine is None) == (theirs is None)
            assert mine is None or (torch.equal(mine, theirs) and mine.dtype == theirs.dtype)
            assert theirs is None or theirs.data_ptr() % 64 == 0
        x = torch.randn(3, linear.in_features)
        assert torch.equal(linear(x), other(x))
    assert all(torch.equal(found.vectors[name], vector) for name, vector in wanted.vectors.items())


@pytest.mark.parametrize("weight_format", FORMATS)
def test_mapped_weights_are_the_private_ones(kept, tmp_path, weight_format):
    for family in FAMILIES:
        folder = tmp_path / family
        folder.mkdir()
        make_engine_folder(folder, family)
        source = Source(folder)
        wanted = pack_weights(source(), weight_format, load_library())
        assert_same(load(source, weight_format), wanted)
        assert_same(load(source, weight_format), wanted)
        assert source.loads == 2, "packed again although the file is there"
    assert not list(kept.glob("*.partial"))


def test_what_is_damaged_or_foreign_is_packed_anew(kept, source):
    wanted = load(source)
    (path,) = files(kept)
    good = path.read_bytes()
    length = good.index(b"}}, ") + 1  # some place in the header
    wrong = (
        b"",
        good[:20],
        good[:-1],
        good + b"x",
        b"X" + good[1:],
        good[:16] + b"\xff" * 8 + good[24:],
        good[:length] + b"9" + good[length + 1 :],
    )
    for count, content in enumerate(wrong, start=2):
        other = path.with_name("other")  # in place, what is mapped would change
        other.write_bytes(content)
        other.replace(path)
        assert_same(load(source), wanted)
        assert source.loads == count
        assert path.read_bytes() == good


def test_another_model_at_the_same_place_is_packed_anew(kept, source, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(source.folder, folder)
    source.folder = folder
    for weight_format in ("int8", "float16"):
        load(source, weight_format)
    older = files(kept)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    load(source)
    assert source.loads == 3
    assert len(older) == 2
    assert len(files(kept)) == 1
    assert not set(files(kept)) & set(older)


@pytest.mark.parametrize("trouble", ["full", "no folder"])
def test_without_a_file_weights_are_private(kept, source, monkeypatch, caplog, trouble):
    if trouble == "full":
        usage = namedtuple("usage", "free")(2**30)  # noqa: PYI024 - like the one of shutil
        monkeypatch.setattr("kernels.cpu_weights.shutil.disk_usage", lambda path: usage)
    else:
        kept.write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        found = load(source)
    assert [record.name for record in caplog.records] == ["engine.models.packed_weights"]
    assert "this process has its own" in caplog.text
    assert_same(found, pack_weights(source(), "int8", load_library()))
    assert not kept.is_dir() or not [path for path in kept.iterdir() if path.name != "lock"]


def test_a_model_whose_weights_are_gone_is_told_as_such(kept, source, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(source.folder, folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "nothing")
    source.folder = folder
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        load(source)


def test_small_models_get_no_file(kept, source, monkeypatch):
    monkeypatch.setattr(packed_weights, "SMALLEST_SHARED", 1 << 30)
    load(source)
    assert not kept.exists()


def test_an_interrupted_start_leaves_no_file(kept, source, monkeypatch):
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("kernels.cpu_weights.os.fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load(source)
    assert [path.name for path in kept.iterdir()] == ["lock"]
    assert_same(load(source), pack_weights(source(), "int8", load_library()))


def test_what_a_killed_process_left_is_removed(kept, source):
    load(source)
    (path,) = files(kept)
    path.rename(path.with_suffix(".1.partial"))
    load(source)
    assert {item.name for item in kept.iterdir()} == {"lock", path.name}


def test_processes_that_start_together_pack_once_and_share(kept, source):
    command = [sys.executable, "-c", CHILD, str(source.folder), str(kept)]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        assert [child.stdout.readline() for child in children] == ["ready\n"] * 2
        for child in children:
            child.stdin.write("go\n")
            child.stdin.flush()
        told = [child.stdout.readline().split() for child in children]
    finally:
        for child in children:
            child.communicate("done\n", timeout=30)
    (path,) = files(kept)
    assert sorted(loads for loads, _, _ in told) == ["0", "1"]
    assert {(int(inode), flags) for _, inode, flags in told} == {(path.stat().st_ino, "r--s")}
