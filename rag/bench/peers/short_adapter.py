"""An engine that gives too few tokens, and those at once: what a benchmark must not take for speed."""

from collections.abc import Iterator
from typing import Any

__all__ = ["Short", "load"]

TOKEN = 1


class Short:
    """Answers every request with half of the tokens that were asked for, computing nothing."""

    version = "1"
    detail = "gives half of the tokens, on purpose"

    def answer(self, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Answer a request; at least one token is given, so that there is a first one to time."""
        for left in range(max(1, job["tokens"] // 2), 0, -1):
            yield {"tokens": [TOKEN], "count": 1, "done": left == 1}

    def forget(self) -> None:
        """Do nothing; nothing is kept."""


def load(_settings: dict[str, Any]) -> Short:
    """Make it."""
    return Short()
