"""Checks of settings that several benchmarks have."""

from collections.abc import Iterable

from data.corpora import CORPUS_NAMES
from rag.errors import InvalidRequestError

__all__ = ["check_at_least_one", "check_corpus"]


def check_at_least_one(bench: object, names: Iterable[str]) -> None:
    """Check numbers of a benchmark's settings.

    Raises:
        InvalidRequestError: one of these attributes is below 1.
    """
    for name in names:
        if (value := getattr(bench, name)) < 1:
            raise InvalidRequestError(f"{name} is {value}; it must be at least 1")


def check_corpus(corpus: str) -> None:
    """Check the name of a corpus.

    Raises:
        InvalidRequestError: there is none of this name.
    """
    if corpus not in CORPUS_NAMES:
        raise InvalidRequestError(f"corpus is {corpus!r}; choose one of: {', '.join(CORPUS_NAMES)}")
