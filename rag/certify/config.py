"""What to test."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.corpora import CORPUS_NAMES
from rag.errors import InvalidRequestError

__all__ = ["CertifyConfig"]

FEWEST_SETS = 16  # fewer cannot tell the difference that the test is about


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifyConfig:
    """One run of the test.

    Attributes:
        corpus: a built-in one, or None.
        collection: the user's own, where there is no corpus.
        questions: file with a question a line, for a collection; None makes them from its passages.
        sets: questions that choose the repair; as many fresh ones confirm it.
        ks: passages a question.
        repairs: tokens, in the order in which they are tried.
        max_tokens: length of an answer at most.
        orders: random orders a set.
        seed: of questions, orders and intervals.
        answers: also let every way answer freely, and score the answers.
        template: False makes the KV for reuse without the template, to see it refused.
        work_dir: where collections of corpora and figures are kept; None is a folder in the user's cache.

    Raises:
        InvalidRequestError: a value that cannot work.
    """

    corpus: str | None = None
    collection: str = "default"
    questions: Path | None = None
    sets: int = 64
    ks: tuple[int, ...] = (2, 5, 10)
    repairs: tuple[int, ...] = (0, 16, 32, 64)
    max_tokens: int = 64
    orders: int = 4
    seed: int = 0
    answers: bool = False
    template: bool = True
    work_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.corpus is not None and self.corpus not in CORPUS_NAMES:
            raise InvalidRequestError(f"corpus is {self.corpus!r}; choose one of: {', '.join(CORPUS_NAMES)}")
        if self.corpus is not None and self.questions is not None:
            raise InvalidRequestError("questions are read from a file for a collection; a corpus has its own")
        if self.sets < FEWEST_SETS:
            raise InvalidRequestError(f"sets is {self.sets}; fewer than {FEWEST_SETS} show nothing")
        for name in ("max_tokens", "orders"):
            if getattr(self, name) < 1:
                raise InvalidRequestError(f"{name} is {getattr(self, name)}; it must be at least 1")
        _check_rising("k", self.ks, 2)
        _check_rising("repairs", self.repairs, 0)


def _check_rising(name: str, values: Sequence[int], least: int) -> None:
    if not values or min(values) < least or sorted(set(values)) != list(values):
        text = ",".join(map(str, values)) or "empty"
        raise InvalidRequestError(f"{name} is {text}; it must be rising numbers from {least} on, with commas between")
