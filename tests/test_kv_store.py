"""The KV store keeps what it is given, within its budget, under concurrency, and forgets what is purged."""

import os
import stat
import threading
from pathlib import Path

import pytest
from kv_helpers import MIB, extents, get, holds, key_of, payload_of, put, raw_bytes, tokens_of

from engine import kv_extent, kv_store
from engine.errors import ConfigError
from engine.kv_record import RecordHeader
from engine.kv_store import ExtentStore


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """What reaches the disk, and when, is another file's subject."""
    monkeypatch.setattr("os.fsync", lambda fd: None)


@pytest.fixture
def store(tmp_path):
    store = ExtentStore(tmp_path, capacity_bytes=MIB)
    yield store
    store.close()


@pytest.fixture(params=["holes", "zeros"])
def fills(request, monkeypatch):
    """File systems that make holes of erased bytes, and those that cannot."""
    if request.param == "zeros":
        monkeypatch.setattr(kv_extent, "_punch_hole", lambda fd, start, end: False)
    return request.param


def test_what_is_put_is_found_also_after_opening_again(store, tmp_path):
    numbers = range(30)
    assert all(put(store, n) for n in numbers)
    assert all(holds(store, n) for n in numbers)
    assert len(extents(tmp_path)) > 2
    store.close()
    assert get(store, 1) is None
    with_others = ExtentStore(tmp_path, capacity_bytes=MIB)
    assert sorted(with_others.keys()) == sorted(map(key_of, numbers))
    assert all(holds(with_others, n) for n in numbers)
    assert with_others.stats().damages == 0
    with_others.close()


def test_a_second_put_changes_nothing(store):
    assert put(store, 1)
    before = store.stats().nbytes
    assert put(store, 1)
    assert store.stats().nbytes == before
    assert store.stats().written == 1


def test_counters(store):
    put(store, 1)
    assert holds(store, 1)
    assert not holds(store, 2)
    assert store.delete(key_of(1), key_of(2)) == 1
    stats = store.stats()
    assert (stats.records, stats.nbytes) == (0, 0)
    assert (stats.written, stats.hits, stats.misses, stats.deleted) == (1, 1, 1, 1)


def test_deleted_records_leave_neither_bytes_nor_space(store, tmp_path, fills):
    for n in range(30):
        put(store, n)
    assert store.delete(*map(key_of, range(0, 30, 2))) == 15
    raw = raw_bytes(tmp_path)
    for n in range(30):
        assert (key_of(n) in raw) == (payload_of(n) in raw) == holds(store, n) == bool(n % 2)
    store.flush()
    used = sum(path.stat().st_blocks * 512 for path in extents(tmp_path))
    if fills == "holes":
        assert used <= store.stats().nbytes
    assert store.delete(*map(key_of, range(30))) == 15
    assert (extents(tmp_path), store.stats().nbytes) == ([], 0)


def test_compaction_gathers_records_and_keeps_their_content(store, tmp_path, fills):
    for n in range(60):
        put(store, n)
    kept = range(0, 60, 6)
    store.delete(*(key_of(n) for n in range(60) if n not in kept))
    files = len(extents(tmp_path))
    moved = store.compact()
    assert 0 < moved <= len(kept)
    assert len(extents(tmp_path)) < files
    assert all(holds(store, n) for n in kept)
    assert store.compact() == 0
    store.close()
    again = ExtentStore(tmp_path, capacity_bytes=MIB)
    assert sorted(again.keys()) == sorted(map(key_of, kept))
    assert all(holds(again, n) for n in kept)
    again.close()


@pytest.mark.parametrize("how", ["loaded", "read ahead"])
def test_capacity_is_kept_and_what_is_used_stays(tmp_path, fills, how):
    store = ExtentStore(tmp_path, capacity_bytes=MIB)
    popular = range(5)
    keys = [key_of(p) for p in popular]
    for n in range(400):
        assert put(store, n)
        assert store.stats().nbytes <= MIB
        if n >= 5:
            assert all(key in store for key in keys), n
            store.prefetch(keys) if how == "read ahead" else [holds(store, p) for p in popular]
    stats = store.stats()
    assert stats.evicted > 250
    assert stats.nbytes > MIB // 2
    assert not holds(store, 10)
    assert holds(store, 399)
    store.close()


def test_former_popularity_fades(store):
    payload = bytes(40_000)
    lasted = []
    for uses in (0, 6):
        put(store, uses)
        for _ in range(uses):
            holds(store, uses)
        n = 0
        while key_of(uses) in store:
            n += 1
            assert n < 1000, "once popular, for ever kept"
            store.put(key_of(1000 * (uses + 1) + n), range(9), memoryview(payload), "float16")
        lasted.append(n)
    assert lasted[1] > 3 * lasted[0], "popularity was worth nothing"


def test_a_smaller_budget_holds_from_the_start(tmp_path):
    store = ExtentStore(tmp_path, capacity_bytes=MIB)
    for n in range(60):
        put(store, n)
    store.close()
    store = ExtentStore(tmp_path, capacity_bytes=MIB // 4)
    assert MIB // 8 < store.stats().nbytes <= MIB // 4
    assert holds(store, 59)
    store.close()


def test_what_never_fits_displaces_nothing(store):
    put(store, 1)
    assert not store.put(key_of(2), (1, 2), memoryview(bytes(MIB)), "float16")
    assert holds(store, 1)
    assert (store.stats().evicted, store.stats().declined) == (0, 1)


def test_files_stay_few_while_records_come_and_go(tmp_path):
    store = ExtentStore(tmp_path, capacity_bytes=MIB)
    for n in range(600):
        put(store, n)
        if n >= 3 and n % 50:
            store.delete(key_of(n - 3))
        assert len(extents(tmp_path)) <= 16
    assert store.stats().moved > 0
    assert all(holds(store, n) for n in range(47, 597, 50))
    store.close()


@pytest.mark.parametrize("capacity", [1, MIB, 8 << 30, 1 << 40])
def test_extents_are_never_more_than_files_may_be_open(capacity):
    assert capacity / kv_store._extent_bytes(capacity) <= 256
    assert kv_store._extent_bytes(8 << 30) == 64 * MIB


def test_purge_erases_record_and_key(store, tmp_path, fills):
    for n in range(20):
        put(store, n)
    store.delete(key_of(3))
    report = store.purge([key_of(n) for n in (3, 4, 5, 99)])
    assert (report.erased, report.absent, report.unreadable) == (2, True, ())
    assert report.scanned_bytes > 0
    raw = raw_bytes(tmp_path)
    for n in (3, 4, 5):
        assert key_of(n) not in raw
        assert payload_of(n)[:16] not in raw
    assert all(holds(store, n) for n in range(20) if n not in (3, 4, 5))


@pytest.fixture
def accesses(store, monkeypatch) -> list[str]:
    """What is done to the disk, in order; writes of zeros are told from others."""
    happened: list[str] = []

    def note(owner, attribute: str, name) -> None:
        access = getattr(owner, attribute)

        def noted(*arguments):
            happened.append(name(*arguments))
            return access(*arguments)

        monkeypatch.setattr(owner, attribute, noted)

    note(os, "pwrite", lambda fd, content, offset: "write" if bytes(content).strip(b"\0") else "zeros")
    note(os, "fsync", lambda fd: "sync folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "sync")
    note(kv_extent, "_punch_hole", lambda fd, start, end: "hole")
    return happened


def test_a_delete_is_on_the_disk_when_it_returns(store, accesses):
    put(store, 1)
    put(store, 2)
    assert accesses == ["write"] * 4
    accesses.clear()
    store.delete(key_of(1))
    assert accesses == ["hole", "sync", "sync folder"]


def test_a_purge_has_overwritten_before_it_gives_space_back(store, accesses):
    put(store, 1)
    put(store, 2)
    accesses.clear()
    store.purge([key_of(1)])
    assert accesses == ["zeros", "sync", "hole", "sync", "sync folder"]


def test_a_flush_makes_durable_what_was_put(store, accesses):
    put(store, 1)
    accesses.clear()
    store.flush()
    assert accesses == ["sync", "sync folder"]


@pytest.mark.parametrize("how", ["evicted", "moved"])
def test_a_record_that_leaves_its_place_leaves_no_copy_in_free_space(store, monkeypatch, how):
    """A later purge of its key finds only where it is then. Zeros have to be on the disk before the space is freed."""
    for n in range(30):
        put(store, n)
    freed, dirty = list[bytes](), set[int]()
    punch, pwrite = kv_extent._punch_hole, os.pwrite

    def write(fd, content, offset):
        dirty.add(fd)
        return pwrite(fd, content, offset)

    def free(fd, start, end):
        assert fd not in dirty, "the hole takes zeros with it that have not been written yet"
        freed.append(os.pread(fd, end - start, start))
        return punch(fd, start, end)

    if how == "moved":
        store.delete(*(key_of(n) for n in range(30) if n % 4))
    monkeypatch.setattr(os, "pwrite", write)
    monkeypatch.setattr(os, "fsync", dirty.discard)
    monkeypatch.setattr(kv_extent, "_punch_hole", free)
    if how == "moved":
        assert store.compact() > 0
    else:
        for n in range(30, 200):
            put(store, n)
        assert store.stats().evicted > 0
    assert freed
    assert not any(content.strip(b"\0") for content in freed)


def test_an_extent_that_cannot_be_overwritten_does_not_keep_others_from_it(store, monkeypatch, caplog):
    for n in range(30):
        put(store, n)
    records = [store._index.get(key_of(n)) for n in range(30)]
    first, last = records[0].extent, records[-1].extent
    overwrite, seen = kv_extent.Extent.overwrite, set[kv_extent.Extent]()

    def failing(extent, start, end):
        seen.add(extent)
        if extent in (first, last):
            raise OSError("a bad sector")
        overwrite(extent, start, end)

    monkeypatch.setattr(kv_extent.Extent, "overwrite", failing)
    store._folder.discard(records)
    assert seen == {record.extent for record in records}
    assert caplog.text.count("cannot be overwritten: a bad sector") == 2


def test_purge_finds_copies_that_the_index_does_not_know(store, tmp_path):
    """A header came to light again, or a record lies twice."""
    put(store, 1)
    put(store, 2)
    [extent] = extents(tmp_path)
    record = extent.read_bytes()[: store._index.get(key_of(1)).header.nbytes]
    with extent.open("r+b") as file:
        file.seek(0, 2)
        file.seek(-(-file.tell() // 4096) * 4096)
        file.write(record)
    assert store.purge([key_of(1)]).absent
    assert key_of(1) not in raw_bytes(tmp_path)
    assert holds(store, 2)


def test_purge_says_when_it_cannot_look(tmp_path):
    (tmp_path / "extent-00000007.kv").mkdir()
    store = ExtentStore(tmp_path, capacity_bytes=MIB)
    put(store, 1)
    report = store.purge([key_of(1)])
    assert not report.absent
    assert report.unreadable == (str(tmp_path / "extent-00000007.kv"),)
    store.close()


def test_purge_that_does_not_erase_is_found_out(store, monkeypatch):
    put(store, 1)
    put(store, 2)
    monkeypatch.setattr(kv_extent.Extent, "clear", lambda self, start, end: None)
    monkeypatch.setattr(kv_extent.Extent, "overwrite", lambda self, start, end: None)
    assert not store.purge([key_of(1)]).absent


def test_readers_and_writers_at_once_see_whole_records_or_none(store):
    """Records move, vanish and come back under the readers; none of that is mistaken for damage."""
    stop = threading.Event()
    failures: list[str] = []
    seen = [0, 0]

    def read(seed: int) -> None:
        n = seed
        while not stop.is_set():
            n = (n * 7 + 3) % 40
            found = get(store, n)
            seen[found is not None] += 1
            if found not in (None, payload_of(n)):
                failures.append(f"record {n} is not what was put")

    readers = [threading.Thread(target=read, args=(seed,)) for seed in (1, 2)]
    for reader in readers:
        reader.start()
    for round_ in range(12):
        for n in range(40):
            put(store, n)
        store.delete(*(key_of(n) for n in range(40) if (n + round_) % 3))
        store.compact()
        store.purge([key_of(round_)])
    stop.set()
    for reader in readers:
        reader.join()
    assert not failures
    assert min(seen) > 0
    assert store.stats().bad_records == 0
    assert store.stats().moved > 0


def test_delete_after_close_is_refused(store):
    """The caller must not believe that the record is gone."""
    put(store, 1)
    store.close()
    with pytest.raises(OSError, match="closed"):
        store.delete(key_of(1))
    assert not put(store, 2)


def test_prefetch_of_known_and_unknown_keys(store):
    put(store, 1)
    store.prefetch([key_of(1), key_of(2)])
    assert holds(store, 1)


def test_what_waits_to_be_read_ahead_is_limited(store, monkeypatch):
    for n in range(kv_store.MAX_PREFETCHING + 20):
        put(store, n)
    go_on, begun = threading.Event(), []
    monkeypatch.setattr(kv_extent.Extent, "prefetch", lambda _, record: begun.append(record) or go_on.wait(30))
    keys = store.keys()
    assert len(keys) > kv_store.MAX_PREFETCHING
    store.prefetch(keys)
    store.prefetch(keys)
    go_on.set()
    store._prefetching.shutdown()
    assert len(begun) == kv_store.MAX_PREFETCHING
    assert store._num_prefetching == 0


def test_an_extent_that_cannot_be_erased_does_not_keep_others_from_being_compacted(store, monkeypatch):
    for n in range(60):
        put(store, n)
    store.delete(*(key_of(n) for n in range(60) if n % 4))
    first, *others = store._folder.sparse()
    assert len(others) > 1
    erase = kv_extent.Extent.erase

    def failing(extent, record):
        if extent is first:
            raise OSError("a bad sector")
        erase(extent, record)

    monkeypatch.setattr(kv_extent.Extent, "erase", failing)
    assert store.compact() > 0
    assert store._folder.sparse() == [first]
    assert all(holds(store, n) == (n % 4 == 0) for n in range(60))


@pytest.mark.parametrize("capacity", [0, -1])
def test_capacity_must_be_positive(tmp_path, capacity):
    with pytest.raises(ConfigError, match="holds nothing"):
        ExtentStore(tmp_path, capacity_bytes=capacity)


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be used as a KV store"):
        ExtentStore(Path(tmp_path / "file" / "kv"), capacity_bytes=MIB)


def test_others_cannot_read_it(store, tmp_path):
    put(store, 1)
    assert all(path.stat().st_mode & 0o077 == 0 for path in extents(tmp_path))


def test_tokens_are_part_of_a_record(store):
    assert store.put(key_of(1), (1, 2, 3), memoryview(b"kv"), "int8")
    assert not store.get(key_of(1), (1, 2, 4), [memoryview(bytearray(2))])
    assert store.stats().bad_records == 1
    assert tokens_of(1) != tokens_of(2)


def test_a_record_says_what_numbers_it_holds(store, tmp_path):
    """Whoever finds an extent can tell what is in it, without the model that computed it."""
    assert store.put(key_of(1), (1, 2, 3), memoryview(b"kv"), "bfloat16")
    store.flush()
    (extent,) = extents(tmp_path)
    header = RecordHeader.parse(extent.read_bytes())
    assert (header.dtype, header.num_tokens, header.payload_bytes, header.key) == ("bfloat16", 3, 2, key_of(1))
    with pytest.raises(AssertionError, match="no room"):
        store.put(key_of(2), (1,), memoryview(b"kv"), "float8_e4m3fn")
