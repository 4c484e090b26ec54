"""An engine that gives too few tokens, and those soon: what a benchmark must not take for speed."""

from collections.abc import Iterator
from time import sleep
from typing import Any

__all__ = ["Short", "load"]

TOKEN = 1
SECONDS = 0.02  # before the first token


class Short:
    """Answers every request with half of the tokens that were asked for, computing nothing."""

    version = "1"
    detail = "gives half of the tokens, on purpose"

    def answer(self, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Answer a request; at least one token is given, so that there is a first one to time."""
        sleep(SECONDS)
        for left in range(max(1, job["tokens"] // 2), 0, -1):
            yield {"tokens": [TOKEN], "count": 1, "done": left == 1}

    def forget(self) -> None:
        """Do nothing; nothing is kept."""


def load(_settings: dict[str, Any]) -> Short:
    """Make it."""
    return Short()
