"""The ledger: exact sums under concurrency, across restarts, and what a crash may cost."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from rag.errors import ConfigurationError
from rag.ledger import RECENT_HOURS, Account, Ledger, LedgerRow, Tokens
from rag.prices import PriceBook
from retriever.errors import StoreError
from retriever.store import Store

DOCS = Account("key-1", "docs", "rag", "small")
OTHER = Account("key-2", "", "chat", "small")
EPOCH = datetime.fromtimestamp(0, UTC)
FOREVER = datetime(2100, 1, 1, tzinfo=UTC)
HOUR = 3600


@pytest.fixture
def store(tmp_path: Path):
    store = Store(tmp_path / "library.sqlite3")
    yield store
    store.close()


def at(hours: float) -> Callable[[], float]:
    return lambda: hours * HOUR


def when(hours: float) -> datetime:
    return datetime.fromtimestamp(hours * HOUR, UTC)


def total(rows: list[LedgerRow], account: Account) -> Tokens:
    return sum((row.tokens for row in rows if row.account == account), Tokens())


def test_every_token_is_counted_once_whatever_the_threads(store: Store) -> None:
    ledger = Ledger(store)

    def use(number: int) -> None:
        for i in range(200):
            ledger.add(DOCS if i % 2 else OTHER, Tokens(1, number + 1, number, 1))
            if i % 50 == number:
                ledger.flush()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(8)))
    rows = ledger.rows(EPOCH, FOREVER)
    expected = Tokens(800, 100 * 36, 100 * 28, 800)
    assert total(rows, DOCS) == total(rows, OTHER) == expected
    assert ledger.tokens_since("key-1", EPOCH) == 100 * 36 + 800
    assert Ledger(store).rows(EPOCH, FOREVER) == rows, "another process reads the same"


def test_quotas_see_what_is_not_written_yet_and_what_was_before_a_restart(store: Store) -> None:
    before = Ledger(store, clock=at(99.5))
    before.add(DOCS, Tokens(1, 100, 60, 10))
    assert before.tokens_since("key-1", when(99)) == 110
    assert before.tokens_since("key-1", when(100)) == 0
    before.flush()
    after = Ledger(store, clock=at(100.5))
    after.add(DOCS, Tokens(1, 5, 0, 2))
    assert after.tokens_since("key-1", when(99)) == 117
    assert after.tokens_since("key-1", when(100)) == 7
    assert after.tokens_since("key-2", EPOCH) == 0


def test_old_hours_leave_the_memory_and_are_still_found(store: Store) -> None:
    now = [0.0]
    ledger = Ledger(store, clock=lambda: now[0] * HOUR)
    ledger.add(DOCS, Tokens(1, 10, 0, 1))
    now[0] = RECENT_HOURS + 5
    ledger.add(OTHER, Tokens(1, 1, 0, 0))
    assert ledger.tokens_since("key-1", when(0)) == 11
    assert ledger.tokens_since("key-1", when(6)) == 0
    rows = ledger.rows(EPOCH, FOREVER)
    assert [(row.hour, row.account.key_id) for row in rows] == [(0, "key-1"), (RECENT_HOURS + 5, "key-2")]
    assert ledger.rows(when(0), when(1)) == rows[:1]


def test_what_the_disk_refuses_is_written_later(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(store)
    ledger.add(DOCS, Tokens(1, 10, 4, 2))

    def refuse() -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as full:
        full.setattr(store, "write", refuse)
        ledger.flush()
    ledger.add(DOCS, Tokens(1, 1, 0, 1))
    assert ledger.tokens_since("key-1", EPOCH) == 14
    assert total(ledger.rows(EPOCH, FOREVER), DOCS) == Tokens(2, 11, 4, 3)


CRASH = """
import os, sys
from pathlib import Path
from rag.ledger import Account, Ledger, Tokens
from retriever.store import Store

ledger = Ledger(Store(Path(sys.argv[1])))
for number in range(1000):
    ledger.add(Account("key-1", "docs", "rag", "small"), Tokens(1, 10, 5, 2))
    if number % 100 == 89:
        ledger.flush()
os._exit(9)
"""


def test_a_crash_loses_only_what_was_not_flushed(tmp_path: Path) -> None:
    file = tmp_path / "library.sqlite3"
    ran = subprocess.run([sys.executable, "-c", CRASH, file], env=os.environ, check=False)
    assert ran.returncode == 9
    store = Store(file)
    assert total(Ledger(store).rows(EPOCH, FOREVER), DOCS) == Tokens(990, 9900, 4950, 1980)
    store.close()


BOOK = """
currency = "EUR"
[models.small]
prompt = 0.1
cached = 0.01
output = 0.4
"""


def test_prices_tell_what_the_cache_saved(tmp_path: Path) -> None:
    (tmp_path / "prices.toml").write_text(BOOK)
    book = PriceBook.load(tmp_path / "prices.toml")
    cost = book.cost("small", Tokens(3, 1_000_000, 600_000, 500_000))
    assert cost is not None
    assert cost.total == Decimal("0.4") * Decimal("0.1") + Decimal("0.6") * Decimal("0.01") + Decimal("0.2")
    assert cost.uncached == Decimal("0.3")
    assert cost.saved == Decimal("0.054")
    assert book.cost("other", Tokens(1, 1)) is None
    (tmp_path / "prices.toml").write_text(BOOK.replace("models.small", 'models."*"'))
    assert PriceBook.load(tmp_path / "prices.toml").cost("other", Tokens(1, 1)) is not None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("currency =", "it is no TOML"),
        (BOOK.replace("0.4", "-1"), "models.small.output"),
        (BOOK.replace("cached", "cache"), "models.small.cache"),
        (BOOK.replace("currency", "curency"), "curency"),
    ],
)
def test_a_wrong_price_book_is_told_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "prices.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=told):
        PriceBook.load(tmp_path / "prices.toml")
    with pytest.raises(ConfigurationError, match="No such file"):
        PriceBook.load(tmp_path / "none.toml")
