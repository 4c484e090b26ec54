"""An embedder without a model, for tests and dry runs. It finds shared words, not meaning."""

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from retriever.document import digest
from retriever.embedder import Vectors

__all__ = ["HashEmbedder"]


class HashEmbedder:
    """A deterministic embedder without a model, for tests and dry runs.

    Each word (and each pair of neighbours) adds one signed unit at a place given by its hash; the sum is normalised.
    Source: Weinberger et al., "Feature hashing for large scale multitask learning", 2009.

    Args:
        dimension: length of a vector.
        window_words: longer texts are embedded in windows of this many words.
    """

    def __init__(self, dimension: int = 64, window_words: int = 128) -> None:
        self.dimension = dimension
        self.window_words = window_words

    @property
    def name(self) -> str:
        """Return a name for people."""
        return f"hash-{self.dimension}"

    @property
    def fingerprint(self) -> str:
        """Return what vectors depend on."""
        return f"hash-v1/{self.dimension}/window-{self.window_words}/normalised"

    def embed_documents(self, texts: Sequence[str], headers: Sequence[str] | None = None) -> list[Vectors]:
        """Return unit vectors [windows, dimension] of each text; its header goes before every window."""
        return [
            np.stack([self._vector(_words(header) + part) for part in self._windows(text)])
            for text, header in zip(texts, headers or [""] * len(texts), strict=True)
        ]

    def embed_query(self, text: str) -> Vectors:
        """Return the unit vector [dimension] of a question."""
        return self._vector(_words(text))

    def num_tokens(self, texts: Sequence[str]) -> int:
        """Count the words of texts."""
        return sum(len(_words(text)) for text in texts)

    def _windows(self, text: str) -> list[list[str]]:
        words = _words(text)
        return [words[start : start + self.window_words] for start in range(0, max(1, len(words)), self.window_words)]

    def _vector(self, words: list[str]) -> Vectors:
        vector = np.zeros(self.dimension, np.float32)
        pairs = [f"{left} {right}" for left, right in pairwise(words)]
        for feature in words + pairs:
            hashed = int.from_bytes(digest(feature.encode("utf-8", "replace"))[:8], "little")
            vector[(hashed >> 1) % self.dimension] += 1.0 if hashed & 1 else -1.0
        if not vector.any():
            vector[0] = 1.0  # a text without words, or one whose signs cancel, still has a place
        unit: Vectors = vector / np.linalg.norm(vector)
        return unit


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
