"""Blocks go to the store and come back as they were; the engine waits for neither, and nothing else goes with them."""

import os
import queue
import random
import threading

import pytest
import torch
from kv_helpers import MIB, raw_bytes

from engine import kv_tier
from engine.kv_identity import KVIdentity
from engine.kv_store import ExtentStore
from engine.kv_tier import DiskTier
from kernels.errors import ShapeError
from kernels.kv_cache import KVCache

BLOCK = 16
TEMPLATE = tuple(range(20))
PASSAGE = tuple(range(100, 140))  # two blocks and a half
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make_cache(dtype: torch.dtype = torch.float32) -> KVCache:
    cache = KVCache.allocate(12, BLOCK, num_layers=3, num_kv_heads=2, head_dim=4, dtype=dtype)
    cache.data.copy_(torch.randn(cache.data.shape, generator=torch.Generator().manual_seed(7)))
    return cache


def make_identity(**changes) -> KVIdentity:
    facts = {"weights": "ab", "model": "{}", "compute_mode": "float32", "kv_dtype": "float32", "block_size": BLOCK}
    return KVIdentity(**{**facts, **changes})


@pytest.fixture
def store(tmp_path):
    store = ExtentStore(tmp_path, capacity_bytes=4 * MIB)
    yield store
    store.close()


@pytest.fixture
def tier(store):
    tier = DiskTier(store, make_cache(), make_identity())
    yield tier
    tier.close()


class SlowStore:
    """Waits in `put` until it is let go on."""

    def __init__(self, store: ExtentStore) -> None:
        self.go_on = threading.Event()
        self._store = store

    def __contains__(self, key: object) -> bool:
        return key in self._store

    def __getattr__(self, name: str):
        return getattr(self._store, name)

    def put(self, *arguments) -> bool:
        assert self.go_on.wait(30)
        return self._store.put(*arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks_come_back_elsewhere_bit_for_bit(store, dtype):
    cache = make_cache(dtype)
    before = cache.data.clone()
    tier = DiskTier(store, cache, make_identity())
    assert not tier.has("c", TEMPLATE, PASSAGE)
    assert tier.save("c", TEMPLATE, PASSAGE, [5, 2, 9])
    cache.data[[5, 2, 9]] = 0  # a copy was taken at once
    tier.flush()
    assert tier.has("c", TEMPLATE, PASSAGE)
    assert tier.load("c", TEMPLATE, PASSAGE, [0, 11, 3])
    assert torch.equal(cache.data[[0, 11]], before[[5, 2]])
    assert torch.equal(cache.data[3, :, :, :, :8], before[9, :, :, :, :8])
    others = [1, 4, 6, 7, 8, 10]
    assert torch.equal(cache.data[others], before[others])
    tier.close()


def test_slots_behind_the_last_token_do_not_reach_the_disk(tier, store, tmp_path):
    """They may hold what another request computed."""
    cache = tier._kv_cache
    secret = cache.data[9, :, :, :, 8:].contiguous()
    own = cache.data[9, :, :, :, :8].contiguous()
    tier.save("c", TEMPLATE, PASSAGE, [5, 2, 9])
    tier.flush()
    raw = raw_bytes(tmp_path)
    assert own[1, 1, 1].numpy().tobytes() in raw
    for layer in secret:
        for head in layer.flatten(0, 1):
            assert head[0].numpy().tobytes() not in raw
    assert tier.load("c", TEMPLATE, PASSAGE, [0, 1, 3])
    assert not cache.data[3, :, :, :, 8:].any()


@pytest.mark.parametrize(
    "changes", [{"weights": "ac"}, {"kv_dtype": "int8"}, {"compute_mode": "int8"}, {"model": "[]"}], ids=str
)
def test_another_model_finds_nothing(tier, store, changes):
    tier.save("c", TEMPLATE, PASSAGE, [5, 2, 9])
    tier.flush()
    other = DiskTier(store, make_cache(), make_identity(**changes))
    assert not other.has("c", TEMPLATE, PASSAGE)
    assert not other.load("c", TEMPLATE, PASSAGE, [0, 1, 3])
    other.close()


def test_namespace_template_and_passage_keep_apart(tier):
    assert tier.save("c", TEMPLATE, PASSAGE, [5, 2, 9])
    assert tier.save("c", TEMPLATE, (), [0, 1])
    tier.flush()
    assert tier.has("c", TEMPLATE, ())
    for case in [("d", TEMPLATE, PASSAGE), ("c", TEMPLATE[1:], PASSAGE), ("c", TEMPLATE, PASSAGE[1:])]:
        assert not tier.has(*case)
        assert not tier.load(*case, [3, 4, 6])


def test_a_bad_record_is_a_miss_and_can_be_saved_again(tier, store, tmp_path, caplog):
    tier.save("c", TEMPLATE, PASSAGE, [5, 2, 9])
    tier.flush()
    [extent] = tmp_path.iterdir()
    content = bytearray(extent.read_bytes())
    content[-5] ^= 4
    extent.write_bytes(content)
    assert tier.has("c", TEMPLATE, PASSAGE)
    assert not tier.load("c", TEMPLATE, PASSAGE, [0, 1, 3])
    assert "checksum" in caplog.text
    assert store.stats().bad_records == 1
    assert not tier.has("c", TEMPLATE, PASSAGE)
    assert tier.save("c", TEMPLATE, PASSAGE, [5, 2, 9])
    tier.flush()
    assert tier.load("c", TEMPLATE, PASSAGE, [0, 1, 3])


def test_what_waits_to_be_written_is_there_already(store):
    slow = SlowStore(store)
    cache = make_cache()
    before = cache.data.clone()
    tier = DiskTier(slow, cache, make_identity())
    assert tier.save("c", TEMPLATE, PASSAGE, [5, 2, 9])
    assert tier.has("c", TEMPLATE, PASSAGE)
    assert tier.save("c", TEMPLATE, PASSAGE, [5, 2, 9])
    assert tier.load("c", TEMPLATE, PASSAGE, [0, 11, 3])
    assert torch.equal(cache.data[[0, 11]], before[[5, 2]])
    assert len(store.keys()) == 0
    slow.go_on.set()
    tier.flush()
    assert len(store.keys()) == 1
    assert store.stats().written == 1
    tier.close()


def test_saves_are_declined_rather_than_waited_for(store, monkeypatch):
    slow = SlowStore(store)
    cache = make_cache()
    tier = DiskTier(slow, cache, make_identity())
    monkeypatch.setattr(kv_tier, "MAX_PENDING_BYTES", 5 * cache.bytes_per_block)
    passages = [(n, *PASSAGE) for n in range(4)]
    assert [tier.save("c", TEMPLATE, passage, [1, 2, 3]) for passage in passages] == [True, False, False, False]
    assert tier.num_declined == 3
    assert tier.save("c", TEMPLATE, (), [0, 1])
    slow.go_on.set()
    tier.flush()
    assert tier.save("c", TEMPLATE, passages[1], [1, 2, 3])
    tier.close()
    assert len(store.keys()) == 3


def test_what_is_known_is_not_copied_again(tier, monkeypatch):
    tier.save("c", TEMPLATE, PASSAGE, [1, 2, 3])
    tier.flush()
    monkeypatch.setattr(KVCache, "read_blocks", None)
    assert tier.save("c", TEMPLATE, PASSAGE, [4, 5, 6])


def test_flush_makes_the_store_durable_after_the_last_write(tier, store, monkeypatch):
    found = []
    monkeypatch.setattr(store, "flush", lambda: found.append(len(store.keys())))
    tier.save("c", TEMPLATE, PASSAGE, [1, 2, 3])
    tier.save("c", TEMPLATE, (), [4, 5])
    tier.flush()
    assert found == [2]


def test_a_store_that_raises_does_not_stop_the_writing(store, monkeypatch, caplog):
    tier = DiskTier(store, make_cache(), make_identity())
    with monkeypatch.context() as patch:
        patch.setattr(store, "put", lambda *_: 1 / 0)
        assert tier.save("c", TEMPLATE, PASSAGE, [1, 2, 3])
        tier.flush()
    assert "ZeroDivisionError" in caplog.text
    assert not tier.has("c", TEMPLATE, PASSAGE)
    assert tier.save("c", TEMPLATE, PASSAGE, [1, 2, 3])
    tier.flush()
    assert tier.has("c", TEMPLATE, PASSAGE)
    tier.close()


def test_close_writes_what_waits_and_declines_the_rest(store):
    tier = DiskTier(store, make_cache(), make_identity())
    assert tier.save("c", TEMPLATE, PASSAGE, [1, 2, 3])
    tier.close()
    assert len(store.keys()) == 1
    assert not tier.save("c", TEMPLATE, (), [0, 1])
    assert tier.load("c", TEMPLATE, PASSAGE, [4, 5, 6])


def test_prefetch_asks_for_what_is_stored(tier, store, monkeypatch):
    tier.save("c", TEMPLATE, PASSAGE, [1, 2, 3])
    tier.flush()
    asked = queue.SimpleQueue()
    monkeypatch.setattr("os.posix_fadvise", lambda fd, *arguments: asked.put(arguments))
    tier.prefetch("c", TEMPLATE, [PASSAGE[1:], PASSAGE])
    record = store._index.records()[0]
    assert asked.get(timeout=30) == (record.offset, record.header.nbytes, os.POSIX_FADV_WILLNEED)
    tier.prefetch("c", TEMPLATE, [PASSAGE[1:]])
    store.close()
    assert asked.empty()


@pytest.mark.parametrize("num_tokens", [1, 15, 16, 17, 31, 32])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_read_blocks_and_write_blocks_are_inverse_up_to_the_last_token(dtype, num_tokens):
    cache, other = make_cache(dtype), make_cache(dtype)
    blocks = random.Random(num_tokens).sample(range(12), -(-num_tokens // BLOCK))
    targets = blocks[::-1]
    before = other.data.clone()
    content = cache.read_blocks(blocks, num_tokens)
    assert content.shape == (len(blocks), cache.bytes_per_block)
    other.write_blocks(targets, content)
    for i, (block, target) in enumerate(zip(blocks, targets, strict=True)):
        filled = min(BLOCK, num_tokens - i * BLOCK)
        assert torch.equal(other.data[target, ..., :filled, :], cache.data[block, ..., :filled, :])
        assert not other.data[target, ..., filled:, :].any()
    untouched = [block for block in range(12) if block not in targets]
    assert torch.equal(other.data[untouched], before[untouched])
    views = torch.stack(cache.block_views(blocks))
    assert torch.equal(views[:-1], content[:-1])


def test_blocks_must_fit_their_tokens_and_content_its_blocks():
    cache = make_cache()
    for blocks, num_tokens in [([1], 17), ([1, 2], 16), ([], 0)]:
        with pytest.raises(ShapeError, match="tokens are not"):
            cache.read_blocks(blocks, num_tokens)
    content = cache.read_blocks([1, 2], 32)
    for blocks, wrong in [([1], content), ([1, 2], content[:, 1:]), ([1, 2], content.view(torch.int8))]:
        with pytest.raises(ShapeError, match="is not the content"):
            cache.write_blocks(blocks, wrong)


class DeviceCache:
    """A cache as on a GPU: its blocks are not in memory that a file can be read into."""

    def __init__(self, cache: KVCache) -> None:
        self.data = torch.empty(0, device="meta")
        self.bytes_per_block = cache.bytes_per_block
        self.read_blocks, self.write_blocks = cache.read_blocks, cache.write_blocks


def test_loads_through_a_copy_where_blocks_are_not_in_memory(store):
    cache = make_cache()
    tier = DiskTier(store, DeviceCache(cache), make_identity())
    assert tier.save("c", TEMPLATE, PASSAGE, [5, 2, 9])
    tier.flush()
    assert tier.load("c", TEMPLATE, PASSAGE, [0, 1, 3])
    assert torch.equal(cache.read_blocks([0, 1, 3], len(PASSAGE)), cache.read_blocks([5, 2, 9], len(PASSAGE)))
    assert not tier.load("c", TEMPLATE, PASSAGE[1:], [0, 1, 3])
    tier.close()


def test_what_is_saved_is_kept_once_it_is_written(tier, store):
    tier._store = slow = SlowStore(store)
    assert tier.save("c", TEMPLATE, PASSAGE, [5, 2, 9])
    assert tier.has("c", TEMPLATE, PASSAGE)
    assert not tier.keeps("c", TEMPLATE, PASSAGE)
    slow.go_on.set()
    tier.flush()
    assert tier.keeps("c", TEMPLATE, PASSAGE)


def test_without_a_thread_to_write_saves_are_declined_until_there_is_one(tier, monkeypatch, caplog):
    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    assert not tier.save("c", TEMPLATE, PASSAGE, [5, 2, 9])
    assert tier.num_declined == 1
    assert "new thread" in caplog.text
    monkeypatch.undo()
    tier.flush()
    assert tier.save("c", TEMPLATE, PASSAGE, [5, 2, 9])
    tier.flush()
    assert tier.keeps("c", TEMPLATE, PASSAGE)
