"""The ledger as a report: grouped, with what it cost and what the cache saved."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from io import StringIO
from typing import Any

from rag.errors import InvalidRequestError
from rag.ledger import Account, Ledger, LedgerRow, Tokens
from rag.prices import Cost, PriceBook
from rag.schemas.usage import COLUMNS, UsageColumn, UsageReport, UsageRequest, UsageRow, UsageTotal

__all__ = ["as_csv", "usage_report"]

DEFAULT_DAYS = 30
PLACES = 6  # of money: a question may cost a millionth

NOTHING = Tokens()

Group = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Sum:
    """What a group has used, and what of it has a price."""

    tokens: Tokens = NOTHING
    cost: Cost | None = None
    unpriced: int = 0

    def __add__(self, other: "_Sum") -> "_Sum":
        costs = [cost for cost in (self.cost, other.cost) if cost is not None]
        cost = sum(costs, Cost()) if costs else None
        return _Sum(self.tokens + other.tokens, cost, self.unpriced + other.unpriced)

    @property
    def fields(self) -> dict[str, Any]:
        return {
            "answers": self.tokens.answers,
            "prompt_tokens": self.tokens.prompt,
            "cached_tokens": self.tokens.cached,
            "output_tokens": self.tokens.output,
            "cost": None if self.cost is None else round(float(self.cost.total), PLACES),
            "saved": None if self.cost is None else round(float(self.cost.saved), PLACES),
            "unpriced_tokens": self.unpriced,
        }


def usage_report(
    ledger: Ledger, request: UsageRequest, *, prices: PriceBook | None, key_names: Mapping[str, str]
) -> UsageReport:
    """Sum what was used in a request's days, by what it asks to be told apart.

    Prices are those of today's book: the ledger keeps tokens, not money.

    Raises:
        InvalidRequestError: the last day is before the first.
    """
    until = request.until or datetime.now(UTC).date()
    since = request.since or until - timedelta(days=DEFAULT_DAYS)
    if until < since:
        raise InvalidRequestError(f"`until` ({until}) is before `since` ({since}); give the first day as `since`")
    groups: dict[Group, _Sum] = {}
    total = _Sum(cost=Cost() if prices else None)
    for row in ledger.rows(_midnight(since), _midnight(until + timedelta(days=1))):
        if request.key not in (None, row.account.key_id) or request.collection not in (None, row.account.collection):
            continue
        used = _priced(row, prices)
        total += used
        group = _group(row, request.by)
        groups[group] = groups.get(group, _Sum()) + used
    rows = [_row(group, used, key_names) for group, used in groups.items()]
    rows.sort(key=lambda row: (row.day or date.min, -row.prompt_tokens - row.output_tokens))
    return UsageReport(
        since=since,
        until=until,
        currency=prices.currency if prices else None,
        rows=rows,
        total=UsageTotal(**total.fields),
    )


def as_csv(report: UsageReport) -> str:
    """Write a report's rows as CSV, with a line of names first."""
    text = StringIO()
    names = [name for name in UsageRow.model_fields if name not in UsageTotal.model_fields]
    writer = csv.DictWriter(text, [*names, *UsageTotal.model_fields])
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.model_dump(mode="json").items()} for row in report.rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """Keep a name that a user chose from being a formula where the file is opened as a table."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _priced(row: LedgerRow, prices: PriceBook | None) -> _Sum:
    cost = prices.cost(row.account.model, row.tokens) if prices else None
    return _Sum(row.tokens, cost, row.tokens.prompt + row.tokens.output if cost is None else 0)


def _group(row: LedgerRow, by: Sequence[UsageColumn]) -> Group:
    """Return the values of `COLUMNS` for a row; what is not told apart is None."""
    account: Account = row.account
    day = datetime.fromtimestamp(row.hour * 3600, UTC).date()
    values = (day, account.key_id, account.collection, account.pipeline, account.model)
    return tuple(value if name in by else None for name, value in zip(COLUMNS, values, strict=True))


def _row(group: Group, used: _Sum, key_names: Mapping[str, str]) -> UsageRow:
    day, key_id, collection, pipeline, model = group
    return UsageRow(
        day=day,
        key_id=key_id,
        key_name=key_names.get(key_id),
        collection=collection,
        pipeline=pipeline,
        model=model,
        **used.fields,
    )


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
