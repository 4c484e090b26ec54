"""Damage, foreign files, other versions and full disks cost a miss, a log line and a count; never a wrong answer."""

import os
import random
import resource
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_helpers import MIB, extents, get, holds, key_of, payload_of, put, raw_bytes

from engine import kv_extent, kv_record, kv_store
from engine.kv_store import ExtentStore

NUMBERS = range(12)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda fd: None)


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    """A store of a few extents, closed."""
    folder = tmp_path_factory.mktemp("filled")
    store = ExtentStore(folder, capacity_bytes=MIB)
    assert all(put(store, n) for n in NUMBERS)
    store.close()
    return folder


@pytest.fixture
def folder(filled, tmp_path) -> Path:
    return shutil.copytree(filled, tmp_path / "kv")


def place_of(folder: Path, number: int) -> tuple[Path, int, int]:
    """The file of a record, its offset, and its bytes."""
    store = ExtentStore(folder, capacity_bytes=MIB)
    record = store._index.get(key_of(number))
    place = record.extent.path, record.offset, record.header.nbytes
    store.close()
    return place


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def flip(path: Path, offset: int, bit: int) -> None:
    overwrite(path, offset, bytes([path.read_bytes()[offset] ^ (1 << bit)]))


def check(folder: Path, lost: set[int]) -> None:
    """All but the lost are as they were, and what was lost can be stored again, for good."""
    store = ExtentStore(folder, capacity_bytes=MIB)
    assert {n for n in NUMBERS if not holds(store, n)} == lost
    stats = store.stats()
    assert (stats.bad_records + stats.damages > 0) == bool(lost)
    assert all(put(store, n) for n in lost)
    store.close()
    store = ExtentStore(folder, capacity_bytes=MIB)
    assert all(holds(store, n) for n in NUMBERS)
    assert (store.stats().bad_records, store.stats().damages) == (0, 0)
    store.close()


def failing_after(times: int, function, error: OSError):
    """Return a function that works so many times, and then no more."""
    left = times

    def called(*arguments):
        nonlocal left
        left -= 1
        if left < 0:
            raise error
        return function(*arguments)

    return called


def test_a_flipped_bit_anywhere_in_a_record_costs_that_record_only(filled, tmp_path, caplog):
    number = min(NUMBERS, key=lambda n: len(payload_of(n)))
    path, offset, nbytes = place_of(filled, number)
    payload_offset = nbytes - len(payload_of(number))
    for place in [*range(payload_offset), *range(payload_offset, nbytes, nbytes // 20), nbytes - 1]:
        folder = shutil.copytree(filled, tmp_path / str(place))
        flip(folder / path.name, offset + place, place % 8)
        caplog.clear()
        check(folder, {number})
        assert str(folder / path.name) in caplog.text


def test_a_flipped_bit_under_an_open_store(folder, caplog):
    store = ExtentStore(folder, capacity_bytes=MIB)
    for number in NUMBERS:
        record = store._index.get(key_of(number))
        flip(record.extent.path, record.offset + random.Random(number).randrange(record.header.nbytes), 3)
        assert get(store, number) is None
        assert key_of(number) not in store
        assert "is bad" in caplog.text
        assert put(store, number)
        assert holds(store, number)
    assert store.stats().bad_records == len(NUMBERS)
    store.close()


@pytest.mark.parametrize("opened", [False, True], ids=["closed", "open"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.7, 0.999])
def test_extents_that_are_cut_short(folder, part, opened):
    """Under an open store, too, where a mapping would have ended the process."""
    store = ExtentStore(folder, capacity_bytes=MIB) if opened else None
    path = extents(folder)[1]
    end = int(path.stat().st_size * part)
    lost = {n for n in NUMBERS if (place := place_of(folder, n))[0] == path and place[1] + place[2] > end}
    os.truncate(path, end)
    if store is not None:
        assert {n for n in NUMBERS if not holds(store, n)} == lost
        assert store.stats().bad_records == len(lost)
        assert all(put(store, n) for n in lost)
        assert all(holds(store, n) for n in NUMBERS)
        store.close()
        lost = set()
    check_opens(folder, lost)


def check_opens(folder: Path, lost: set[int]) -> None:
    store = ExtentStore(folder, capacity_bytes=MIB)
    assert {n for n in NUMBERS if not holds(store, n)} == lost
    assert all(put(store, n) for n in lost)
    assert all(holds(store, n) for n in NUMBERS)
    store.close()


@pytest.mark.parametrize("torn", ["garbage", "record"])
def test_a_torn_tail_is_cut_off(folder, torn):
    path = extents(folder)[-1]
    size = path.stat().st_size
    start = -(-size // kv_record.ALIGNMENT) * kv_record.ALIGNMENT
    overwrite(path, start, b"garbage" * 1000 if torn == "garbage" else path.read_bytes()[:73])
    check_opens(folder, set())
    assert path.stat().st_size == size


def test_extents_that_vanish(folder):
    path = extents(folder)[0]
    lost = {n for n in NUMBERS if place_of(folder, n)[0] == path}
    path.unlink()
    assert lost
    check_opens(folder, lost)


@pytest.mark.parametrize("content", [b"", b"\0" * 10_000, b"\xff" * 10_000, kv_record.MAGIC * 2000, b"x"])
def test_an_extent_of_garbage_is_removed(folder, content):
    path = extents(folder)[0]
    lost = {n for n in NUMBERS if place_of(folder, n)[0] == path}
    path.write_bytes(content)
    store = ExtentStore(folder, capacity_bytes=MIB)
    assert not path.exists()
    assert store.stats().damages == bool(content.strip(b"\0"))
    assert {n for n in NUMBERS if not holds(store, n)} == lost
    store.close()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_random_damage(filled, tmp_path_factory, seed):
    """Whatever is overwritten, moved or cut: what is answered is right, and the store can be written on."""
    generator = random.Random(seed)
    folder = shutil.copytree(filled, tmp_path_factory.mktemp("damage") / "kv")
    for _ in range(generator.randrange(1, 5)):
        path = generator.choice(extents(folder))
        content = path.read_bytes()
        start = generator.randrange(len(content) + 1) // generator.choice([1, 4096]) * 4096 % (len(content) + 1)
        piece = content[start : start + generator.choice([1, 100, 4096, 20_000])]
        kind = generator.choice(["noise", "copy", "cut", "insert"])
        if kind == "cut":
            os.truncate(path, start)
        elif kind == "insert":
            path.write_bytes(content[:start] + bytes(generator.choice([1, 4096])) + content[start:])
        else:
            source = generator.randrange(0, len(content) + 1, 4096)
            noise = generator.randbytes(len(piece))
            overwrite(path, start, noise if kind == "noise" else content[source : source + len(piece)])
    for mended in (False, True):
        store = ExtentStore(folder, capacity_bytes=MIB)
        lost = {n for n in NUMBERS if not holds(store, n)}
        assert not (lost and mended)
        assert all(put(store, n) for n in lost)
        assert all(holds(store, n) for n in NUMBERS)
        store.close()


@pytest.mark.parametrize("version", ["FORMAT_VERSION", "LAYOUT_VERSION"])
def test_records_of_another_version_make_room(folder, version, monkeypatch, caplog):
    assert len(extents(folder)) > 1
    monkeypatch.setattr(kv_record, version, getattr(kv_record, version) + 1)
    store = ExtentStore(folder, capacity_bytes=MIB)
    assert (store.keys(), extents(folder)) == ([], [])
    assert len(caplog.records) == 1, "told once, not for each record"
    assert store.stats().damages > 0
    assert "another version" in caplog.text
    assert put(store, 1)
    assert holds(store, 1)
    store.close()


def test_a_store_of_another_model_answers_nothing(folder):
    """Its keys are others; its records go when room is needed."""
    store = ExtentStore(folder, capacity_bytes=MIB)
    assert not any(holds(store, n) for n in range(100, 110))
    assert store.stats().misses == 10
    n = 100
    while store.stats().evicted < len(NUMBERS):
        n += 1
        assert put(store, n)
        assert n < 1000
    store.close()


def test_foreign_files_are_left_alone(folder, caplog):
    names = ["notes.txt", "extent-1.kv", "extent-00000001.kv.bak", "extent-0000000a.kv"]
    for name in names:
        (folder / name).write_text("mine")
    (folder / "folder").mkdir()
    check(folder, set())
    assert all((folder / name).read_text() == "mine" for name in names)
    assert all(name in caplog.text for name in [*names, "folder"])


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_an_extent_that_is_no_file_is_reported_and_stays(folder, kind, tmp_path, caplog):
    (tmp_path / "elsewhere").write_text("mine")
    path = folder / "extent-00000099.kv"
    path.mkdir() if kind == "folder" else path.symlink_to(tmp_path / "elsewhere")
    store = ExtentStore(folder, capacity_bytes=MIB)
    assert all(holds(store, n) for n in NUMBERS)
    assert all(put(store, n) for n in range(100, 120))
    assert store.stats().damages == 1
    assert str(path) in caplog.text
    assert (tmp_path / "elsewhere").read_text() == "mine"
    store.close()


def test_a_disk_that_is_full_declines_and_recovers(folder, monkeypatch, caplog):
    store = ExtentStore(folder, capacity_bytes=MIB)
    now = 1000.0
    monkeypatch.setattr(kv_store, "monotonic", lambda: now)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = max(path.stat().st_size for path in extents(folder))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        stored = [n for n in range(100, 150) if put(store, n)]
        assert len(stored) < 50
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot be stored" in caplog.text
    assert caplog.text.count("cannot be stored") == 1
    assert store.stats().declined == 50 - len(stored)
    assert all(holds(store, n) for n in [*NUMBERS, *stored])
    assert not put(store, 200)
    now += kv_store.RETRY_SECONDS
    assert put(store, 200)
    store.close()
    store = ExtentStore(folder, capacity_bytes=MIB)
    assert store.stats().damages == 0
    assert all(holds(store, n) for n in [*NUMBERS, *stored, 200])
    store.close()


def test_a_read_that_fails_is_a_miss(folder, monkeypatch, caplog):
    store = ExtentStore(folder, capacity_bytes=MIB)

    def fail(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", fail)
        assert get(store, 1) is None
    assert "Input/output error" in caplog.text
    assert (store.stats().bad_records, store.stats().misses) == (1, 1)
    assert put(store, 1)
    assert holds(store, 1)
    store.close()


def test_an_erasure_that_fails_is_told_and_can_be_tried_again(folder, monkeypatch):
    store = ExtentStore(folder, capacity_bytes=MIB)

    def fail(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(kv_extent, "_punch_hole", fail)
        for erase in (lambda: store.delete(key_of(1)), lambda: store.purge([key_of(1)])):
            with pytest.raises(OSError, match="Input/output"):
                erase()
            assert key_of(1) in store
    assert store.delete(key_of(1)) == 1
    store.close()


def test_an_erasure_that_fails_in_the_middle_erases_nothing_twice(folder, monkeypatch):
    store = ExtentStore(folder, capacity_bytes=MIB)
    with monkeypatch.context() as patch:
        patch.setattr(
            kv_extent, "_punch_hole", failing_after(2, kv_extent._punch_hole, OSError(5, "Input/output error"))
        )
        with pytest.raises(OSError, match="Input/output"):
            store.delete(*map(key_of, range(5)))
    assert store.stats().deleted == 2
    present = {n for n in NUMBERS if holds(store, n)}
    assert len(present) == len(NUMBERS) - 2
    assert store.stats().bad_records == 0
    assert store.delete(*map(key_of, range(5))) == 3
    assert store.delete(*map(key_of, NUMBERS)) == len(NUMBERS) - 5
    assert (store.stats().nbytes, extents(folder)) == (0, [])
    store.close()


def test_an_empty_extent_that_cannot_be_removed_stays_empty(folder, monkeypatch, caplog):
    store = ExtentStore(folder, capacity_bytes=MIB)

    def fail(*_, **__):
        raise OSError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fail)
        assert store.delete(*map(key_of, NUMBERS)) == len(NUMBERS)
    assert "cannot be removed" in caplog.text
    assert raw_bytes(folder).strip(b"\0") == b""
    assert put(store, 1)
    assert holds(store, 1)
    store.close()
    store = ExtentStore(folder, capacity_bytes=MIB)
    assert len(extents(folder)) == 1
    assert holds(store, 1)
    store.close()


@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_compaction_on_a_full_disk_changes_nothing(folder, monkeypatch, caplog, writes):
    store = ExtentStore(folder, capacity_bytes=MIB)
    path = extents(folder)[0]
    gone = [n for n in NUMBERS if store._index.get(key_of(n)).extent.path == path][2:]
    store.delete(*map(key_of, gone))
    before = raw_bytes(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing_after(writes, os.pwrite, OSError(28, "No space left on device")))
        assert store.compact() == 0
    assert "cannot be moved" in caplog.text
    assert raw_bytes(folder).rstrip(b"\0") == before.rstrip(b"\0")
    assert store.compact() == 2
    assert {n for n in NUMBERS if holds(store, n)} == {*NUMBERS} - {*gone}
    store.close()


def test_a_purge_takes_damage_with_it(folder):
    """Nobody can say what it was."""
    store = ExtentStore(folder, capacity_bytes=MIB)
    record = store._index.get(key_of(2))
    flip(record.extent.path, record.offset + 30, 1)
    assert store.purge([key_of(1)]).absent
    assert payload_of(2)[:100] not in raw_bytes(folder)
    assert {n for n in NUMBERS if not holds(store, n)} == {1, 2}
    assert store.stats().bad_records == 1
    store.close()
