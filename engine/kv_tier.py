"""The disk below the pool of KV blocks: an `engine.tier.Tier` over a KV store.

Knows blocks, keys and a store: neither requests nor how the store keeps what it is given.
"""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.kv_identity import KVIdentity
from engine.kv_protocol import KVStore
from kernels.kv_cache import KVCache

__all__ = ["DiskTier"]

logger = logging.getLogger(__name__)

MAX_PENDING_BYTES = 256 << 20

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Pending:
    tokens: Tokens
    content: torch.Tensor  # uint8 [blocks, bytes_per_block]


class DiskTier:
    """Copies runs of blocks to a store and back.

    What is saved is copied at once and written by a thread that lives while something waits, so that the engine never
    waits for the disk; when too much waits to be written, saves are declined. Loads fill the blocks where they lie.

    Args:
        store: outlives the tier.
        kv_cache: whose blocks are meant.
        identity: of the model that computes them.

    Attributes:
        num_declined: saves that were declined: too much was waiting, or there was no thread to write it.
    """

    def __init__(self, store: KVStore, kv_cache: KVCache, identity: KVIdentity) -> None:
        self.num_declined = 0
        self._store = store
        self._kv_cache = kv_cache
        self._identity = identity
        self._pending: dict[bytes, _Pending] = {}
        self._changed = threading.Condition()
        self._writing = False
        self._closed = False

    def has(self, namespace: str, template: Tokens, passage: Tokens) -> bool:
        """See `Tier.has`."""
        return self.holds(self._identity.key(namespace, template, passage))

    def holds(self, key: bytes) -> bool:
        """Tell whether the KV of a key is stored or about to be; any thread may ask."""
        return key in self._pending or key in self._store

    def load(self, namespace: str, template: Tokens, passage: Tokens, blocks: Sequence[int]) -> bool:
        """See `Tier.load`."""
        key, tokens = self._identity.key(namespace, template, passage), passage or template
        pending = self._pending.get(key)
        if pending is not None:
            self._kv_cache.write_blocks(blocks, pending.content)
            return True
        if self._kv_cache.data.device.type == "cpu":
            return self._store.get(key, tokens, [view.numpy().data for view in self._kv_cache.block_views(blocks)])
        content = torch.empty(len(blocks), self._kv_cache.bytes_per_block, dtype=torch.uint8)
        if not self._store.get(key, tokens, [content.view(-1).numpy().data]):
            return False
        self._kv_cache.write_blocks(blocks, content)
        return True

    def save(self, namespace: str, template: Tokens, passage: Tokens, blocks: Sequence[int]) -> bool:
        """See `Tier.save`."""
        key, tokens = self._identity.key(namespace, template, passage), passage or template
        if self.holds(key):
            return True
        with self._changed:
            waiting = sum(pending.content.nbytes for pending in self._pending.values())
            if self._closed or waiting + len(blocks) * self._kv_cache.bytes_per_block > MAX_PENDING_BYTES:
                self.num_declined += 1
                return False
        content = self._kv_cache.read_blocks(blocks, len(tokens))
        with self._changed:
            self._pending[key] = _Pending(tokens, content)
            if not self._writing:
                return self._start_writing(key)
        return True

    def keeps(self, namespace: str, template: Tokens, passage: Tokens) -> bool:
        """See `Tier.keeps`."""
        return self._identity.key(namespace, template, passage) in self._store

    def prefetch(self, namespace: str, template: Tokens, passages: Sequence[Tokens]) -> None:
        """See `Tier.prefetch`."""
        self._store.prefetch([self._identity.key(namespace, template, passage) for passage in passages])

    def flush(self) -> None:
        """Return when everything saved before is durable, or has been declined by the store.

        Raises:
            OSError: the disk fails.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._pending)
        self._store.flush()

    def close(self) -> None:
        """Write what waits, and decline from then on; the store stays open."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._pending)

    def _start_writing(self, key: bytes) -> bool:
        """Start the thread that writes; where the system has no thread left, take back what was to be written."""
        try:
            threading.Thread(target=self._write_pending, name="kv-writer", daemon=True).start()
        except RuntimeError as error:
            logger.warning("KV is not stored: %s", error)
            del self._pending[key]
            self.num_declined += 1
            return False
        self._writing = True
        return True

    def _write_pending(self) -> None:
        """Write what waits, the oldest first, until nothing waits any more."""
        while True:
            with self._changed:
                if not self._pending:
                    self._writing = False
                    return
                key, pending = next(iter(self._pending.items()))
            try:
                payload = pending.content.view(-1).numpy().data
                self._store.put(key, pending.tokens, payload, self._identity.kv_dtype)
            except Exception:  # whatever a store raises, the engine computes on
                logger.exception("KV cannot be stored")
            with self._changed:
                del self._pending[key]
                self._changed.notify_all()
