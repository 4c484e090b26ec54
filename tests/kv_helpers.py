"""Records whose content follows from their number, and stores to keep them in."""

import random
from functools import cache
from pathlib import Path

from engine.kv_identity import KVIdentity
from engine.kv_store import ExtentStore

IDENTITY = KVIdentity(weights="ab", model="{}", compute_mode="float32", kv_dtype="float32", block_size=16)
MIB = 1 << 20


@cache
def key_of(number: int) -> bytes:
    return IDENTITY.key("c", (), tokens_of(number))


@cache
def tokens_of(number: int) -> tuple[int, ...]:
    return tuple(random.Random(number).randrange(2**32) for _ in range(1 + number % 9))


@cache
def payload_of(number: int) -> bytes:
    """Between 1 and 20,000 bytes that no other record has."""
    generator = random.Random(-number - 1)
    return generator.randbytes(generator.randrange(1, 20_000))


def put(store: ExtentStore, number: int) -> bool:
    return store.put(key_of(number), tokens_of(number), memoryview(payload_of(number)), "float16")


def get(store: ExtentStore, number: int) -> bytes | None:
    """Load into two buffers that hold something else before."""
    size = len(payload_of(number))
    buffer = bytearray(b"\xee" * size)
    view = memoryview(buffer)
    hit = store.get(key_of(number), tokens_of(number), [view[: size // 3], view[size // 3 :]])
    return bytes(buffer) if hit else None


def holds(store: ExtentStore, number: int) -> bool:
    """Whether a record is there, which it must then be as it was put."""
    found = get(store, number)
    assert found in (None, payload_of(number)), f"record {number} is not what was put"
    return found is not None


def extents(folder: Path) -> list[Path]:
    return sorted(folder.glob("extent-*.kv"))


def raw_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))
