"""Where canonical KV lives besides the device, as the prefix cache sees it; and how often passages were asked for.

Knows token ids and block ids: neither files nor tensors.
"""

from collections.abc import Hashable, Sequence
from typing import Protocol

__all__ = ["RetrievalCounts", "Tier"]

Tokens = tuple[int, ...]


class Tier(Protocol):
    """Canonical KV outside the pool: that of a passage below a template, or of a template alone (passage `()`)."""

    def has(self, namespace: str, template: Tokens, passage: Tokens) -> bool:
        """Tell whether a load would probably succeed."""

    def load(self, namespace: str, template: Tokens, passage: Tokens, blocks: Sequence[int]) -> bool:
        """Fill these blocks; False is a miss, and their content is then undefined."""

    def save(self, namespace: str, template: Tokens, passage: Tokens, blocks: Sequence[int]) -> bool:
        """Take a copy of these blocks now, durable some time later; False when it declines."""

    def keeps(self, namespace: str, template: Tokens, passage: Tokens) -> bool:
        """Tell whether what was saved has been written; False while it waits, and where it was declined after all."""

    def prefetch(self, namespace: str, template: Tokens, passages: Sequence[Tokens]) -> None:
        """Begin to read ahead what is likely to be loaded soon."""


class RetrievalCounts:
    """How often things were retrieved lately; all counts are halved now and then, so that old fame fades.

    Args:
        capacity: how many things are remembered at most.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._counts: dict[Hashable, int] = {}

    def note(self, key: Hashable) -> int:
        """Count one more retrieval and return how many there were."""
        while len(self._counts) >= self._capacity and key not in self._counts:
            self._counts = {known: count // 2 for known, count in self._counts.items() if count > 1}
        count = self._counts[key] = self._counts.get(key, 0) + 1
        return count
