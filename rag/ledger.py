"""Who has used how many tokens: kept in memory for quotas, written to the library in batches.

Adding to it takes a few microseconds and never waits for the disk. What was added is written down by `flush`, which the
server calls about once a second and when it stops: a crash loses what was added since, and nothing that was written.
The sums are exact, whatever the number of threads.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from time import time

from retriever.errors import StoreError
from retriever.store import Store

__all__ = ["Account", "Ledger", "LedgerRow", "Tokens"]

logger = logging.getLogger(__name__)

HOUR_SECONDS = 3600
RECENT_HOURS = 49  # kept in memory, for quotas: two days and the hour that has begun

ADD = """
INSERT INTO ledger (hour, key_id, collection, pipeline, model, answers, prompt_tokens, cached_tokens, output_tokens)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (hour, key_id, collection, pipeline, model) DO UPDATE SET answers = answers + excluded.answers,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens, cached_tokens = cached_tokens + excluded.cached_tokens,
    output_tokens = output_tokens + excluded.output_tokens
"""
RECENT = "SELECT key_id, hour, sum(prompt_tokens + output_tokens) FROM ledger WHERE hour >= ? GROUP BY key_id, hour"
SINCE = "SELECT coalesce(sum(prompt_tokens + output_tokens), 0) FROM ledger WHERE key_id = ? AND hour >= ?"
ROWS = """
SELECT hour, key_id, collection, pipeline, model, answers, prompt_tokens, cached_tokens, output_tokens
FROM ledger WHERE hour >= ? AND hour < ? ORDER BY hour, key_id, collection, pipeline, model
"""


@dataclass(frozen=True, slots=True)
class Account:
    """What tokens are counted for.

    Attributes:
        key_id: of an API key; empty where there is none.
        collection: its name; empty where none was asked.
        pipeline: what the answer came from: `rag`, or another short name.
        model: what computed it; the price book has it by this name.
    """

    key_id: str
    collection: str
    pipeline: str
    model: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """What was used; the cached tokens are among those of the prompt."""

    answers: int = 0
    prompt: int = 0
    cached: int = 0
    output: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(
            self.answers + other.answers,
            self.prompt + other.prompt,
            self.cached + other.cached,
            self.output + other.output,
        )


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """What an account has used in one hour, counted since 1970 in UTC."""

    hour: int
    account: Account
    tokens: Tokens


class Ledger:
    """Counts tokens; every method may be called from any thread.

    Args:
        store: keeps them.
        clock: seconds since 1970.
    """

    def __init__(self, store: Store, *, clock: Callable[[], float] = time) -> None:
        self._store = store
        self._clock = clock
        self._lock = Lock()
        self._flushing = Lock()
        self._pending: dict[tuple[int, Account], Tokens] = {}
        self._recent: dict[str, dict[int, int]] = {}  # tokens by key and hour, written or not
        self._hour = self._now()
        with store.read() as reader:
            found = reader.connection.execute(RECENT, (self._hour - RECENT_HOURS,)).fetchall()
        for key_id, hour, tokens in found:
            self._recent.setdefault(key_id, {})[hour] = tokens

    def add(self, account: Account, tokens: Tokens) -> None:
        """Count tokens for the hour that it is; returns at once."""
        hour = self._now()
        with self._lock:
            slot = (hour, account)
            self._pending[slot] = self._pending.get(slot, Tokens()) + tokens
            hours = self._recent.setdefault(account.key_id, {})
            hours[hour] = hours.get(hour, 0) + tokens.prompt + tokens.output
            if hour != self._hour:
                self._hour = hour
                self._forget_before(hour - RECENT_HOURS)

    def tokens_since(self, key_id: str, since: datetime) -> int:
        """Return how many prompt and output tokens a key has used since the beginning of an hour.

        What `add` has counted is in it at once. Within the last two days nothing is read from the disk.
        """
        first = int(since.timestamp()) // HOUR_SECONDS
        if first >= self._now() - RECENT_HOURS:
            with self._lock:
                return sum(tokens for hour, tokens in self._recent.get(key_id, {}).items() if hour >= first)
        self.flush()
        with self._store.read() as reader:
            used: int = reader.connection.execute(SINCE, (key_id, first)).fetchone()[0]
            return used

    def rows(self, since: datetime, until: datetime) -> list[LedgerRow]:
        """Return what was used from the hour of `since` on and before that of `until`, by hour and account."""
        self.flush()
        hours = (int(since.timestamp()) // HOUR_SECONDS, int(until.timestamp()) // HOUR_SECONDS)
        with self._store.read() as reader:
            found = reader.connection.execute(ROWS, hours).fetchall()
        return [LedgerRow(row[0], Account(*row[1:5]), Tokens(*row[5:])) for row in found]

    def flush(self) -> None:
        """Write down what was added; what the disk does not take is kept for the next time."""
        with self._flushing:
            with self._lock:
                pending, self._pending = self._pending, {}
            if not pending:
                return
            try:
                with self._store.write() as writer:
                    writer.connection.executemany(ADD, [_values(*item) for item in pending.items()])
            except StoreError as error:
                logger.warning("used tokens are not written down yet, and it is tried again: %s", error)
                self._put_back(pending)

    def _put_back(self, pending: Mapping[tuple[int, Account], Tokens]) -> None:
        with self._lock:
            for slot, tokens in pending.items():
                self._pending[slot] = self._pending.get(slot, Tokens()) + tokens

    def _forget_before(self, hour: int) -> None:
        for key_id, hours in list(self._recent.items()):
            kept = {at: tokens for at, tokens in hours.items() if at >= hour}
            if kept:
                self._recent[key_id] = kept
            else:
                del self._recent[key_id]

    def _now(self) -> int:
        return int(self._clock()) // HOUR_SECONDS


def _values(slot: tuple[int, Account], tokens: Tokens) -> tuple[object, ...]:
    hour, account = slot
    names = (account.key_id, account.collection, account.pipeline, account.model)
    return (hour, *names, tokens.answers, tokens.prompt, tokens.cached, tokens.output)
