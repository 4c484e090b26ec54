"""What users say of a document beside its text, and conditions on it.

Metadata is a flat JSON object: a name has a text, a number, true or false, or a list of them. A condition is JSON too:

    {"year": {"gte": 2020, "lt": 2024}, "tag": {"in": ["sea", "ice"]}, "draft": false}

Every name in it must fit. A bare value means `eq`; the operators are `eq`, `ne`, `in`, `nin`, `gt`, `gte`, `lt`, `lte`
and `exists`. A list fits where one of its items does; `ne` and `nin` are the opposites of `eq` and `in`, and so fit
what a document does not have. Numbers compare with numbers and texts with texts (dates as ISO 8601 do so in order of
time); a value of another kind does not fit. `and` and `or` take lists of conditions, `not` takes one.
"""

import json
import math
import re
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retriever.errors import FilterError, MetadataError

__all__ = [
    "MAX_METADATA_BYTES",
    "Filter",
    "Metadata",
    "Scalar",
    "check_metadata",
    "parse_filter",
    "refuse_huge",
]

Scalar = str | int | float | bool
Metadata = Mapping[str, Scalar | Sequence[Scalar]]

MAX_METADATA_BYTES = 16 * 2**10
MAX_CONDITIONS = 64
MAX_DEPTH = 8
MAX_LIST = 1024
MAX_PARTS = 2**13  # those that say nothing included, which leave no SQL
MAX_VALUES = 2**14  # SQLite binds twice as many
MAX_READ = MAX_VALUES + MAX_PARTS
LARGEST_INTEGER = 2**63  # what SQLite holds

UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # lone surrogates, and NUL, which SQLite's JSON functions cut at
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
CONNECTIVES = ("and", "or", "not")
ORDERS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
TEST = "EXISTS ("
OPERATORS = ("eq", "ne", "in", "nin", *ORDERS, "exists")


def check_metadata(metadata: Mapping[str, Any]) -> str:
    """Return metadata as canonical JSON.

    Raises:
        MetadataError: a name or a value that cannot be kept; the message says which.
    """
    for name, value in metadata.items():
        if not NAME.fullmatch(name) or name in CONNECTIVES:
            raise MetadataError(
                f"{name!r} cannot name metadata; use at most 64 letters, digits, '_', '.', '-', beginning with a "
                "letter or '_', and none of: and, or, not"
            )
        items = value if isinstance(value, (list, tuple)) else [value]
        if not all(_is_scalar(item) for item in items):
            raise MetadataError(
                f"metadata {name!r} is {_short(value)}; give a text, a number of 64 bits, true, false, or a list"
            )
    text = json.dumps(metadata, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_METADATA_BYTES:
        raise MetadataError(f"the metadata has {size} bytes; shorten it to {MAX_METADATA_BYTES}")
    return text


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition as SQL over a column that holds metadata.

    Attributes:
        sql: an expression in which `{column}` stands for the column.
        values: its parameters, in order.
    """

    sql: str
    values: tuple[Scalar, ...]

    def over(self, column: str) -> str:
        """Return the expression for a column, which is no outside text."""
        return self.sql.replace("{column}", column)


ALWAYS, NEVER = Filter("1", ()), Filter("0", ())


def parse_filter(condition: Mapping[str, Any]) -> Filter:
    """Turn a condition into SQL.

    Raises:
        FilterError: it is none; the message says where.
    """
    refuse_huge(condition)
    return _all_of(condition, 0)


def refuse_huge(condition: object) -> None:
    """Count the parts and the values of a condition, in whatever form, without reading them.

    Raises:
        FilterError: it has more than any that is accepted; reading it would take its time.
    """
    waiting: list[object] = [condition]
    read = parts = 0
    while waiting:
        outer = waiting.pop()
        inner = outer.values() if isinstance(outer, Mapping) else outer
        assert isinstance(inner, Collection), "only what has parts waits"
        read += len(inner)
        nested = [part for part in inner if isinstance(part, (dict, list, tuple))] if read <= MAX_READ else []
        parts += len(nested)
        if read > MAX_READ or parts > MAX_PARTS:
            raise FilterError(
                f"the condition has more than {MAX_PARTS} parts, or compares with more than {MAX_VALUES} values; ask "
                "for fewer"
            )
        waiting += nested


def _all_of(condition: object, depth: int) -> Filter:
    if not isinstance(condition, Mapping):
        raise FilterError(f"{_short(condition)} is no condition; give an object such as {{'year': {{'gte': 2020}}}}")
    if depth > MAX_DEPTH:
        raise FilterError(f"the condition is nested deeper than {MAX_DEPTH}; flatten it")
    return _join("AND", (_one(name, wanted, depth) for name, wanted in condition.items()))


def _one(name: object, wanted: object, depth: int) -> Filter:
    if name == "not":
        return _negated(_all_of(wanted, depth + 1))
    if name in ("and", "or"):
        if not isinstance(wanted, (list, tuple)) or not wanted:
            raise FilterError(f"{name!r} needs a list of conditions, not {_short(wanted)}")
        return _join(str(name).upper(), (_all_of(part, depth + 1) for part in wanted))
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise FilterError(f"{_short(name)} cannot name metadata; use the names that the documents have")
    if not isinstance(wanted, Mapping):
        wanted = {"eq": wanted}
    if not wanted:
        raise FilterError(f"{name!r} has no operator; use one of: {', '.join(OPERATORS)}")
    return _join("AND", (_test(name, operator, value) for operator, value in wanted.items()))


def _join(word: str, parts: Iterable[Filter]) -> Filter:
    """Join conditions while they are read, at most so many; those that are always or never true leave no SQL."""
    neutral, decisive = (ALWAYS, NEVER) if word == "AND" else (NEVER, ALWAYS)
    kept: list[Filter] = []
    is_decided, tests, values = False, 0, 0
    for part in parts:
        if part == decisive:
            is_decided = True
        elif part != neutral:
            kept.append(part)
            tests += part.sql.count(TEST)
            values += len(part.values)
        if tests > MAX_CONDITIONS:
            raise FilterError(f"the condition has more than {MAX_CONDITIONS} parts; ask for fewer")
        if values > MAX_VALUES:
            raise FilterError(f"the condition compares with more than {MAX_VALUES} values; ask for fewer")
    if is_decided or not kept:
        return decisive if is_decided else neutral
    sql = f" {word} ".join(f"({part.sql})" for part in kept)
    return Filter(sql, tuple(value for part in kept for value in part.values))


def _test(name: str, operator: object, value: object) -> Filter:
    """One operator on one name: some value of the document fits, or for the negations none does."""
    if operator in ("ne", "nin"):
        return _negated(_test(name, "eq" if operator == "ne" else "in", value))
    if operator == "exists":
        if not isinstance(value, bool):
            raise FilterError(f"'exists' of {name!r} is {_short(value)}; use true or false")
        some = _some(name, "1", ())
        return some if value else _negated(some)
    if operator == "in":
        if not isinstance(value, (list, tuple)) or not 0 < len(value) <= MAX_LIST:
            raise FilterError(f"'in' of {name!r} needs a list of 1 to {MAX_LIST} values, not {_short(value)}")
        return _is_among(name, value)
    if operator == "eq":
        return _is_among(name, [value])
    if operator not in ORDERS:
        raise FilterError(f"{_short(operator)} of {name!r} is no operator; use one of: {', '.join(OPERATORS)}")
    if isinstance(value, bool) or not _is_scalar(value):
        raise FilterError(f"{operator!r} of {name!r} is {_short(value)}; compare with a number or a text")
    assert isinstance(value, (str, int, float)), f"not a scalar: {value!r}"
    return _some(name, f"j.type IN ({_kinds(value)}) AND j.value {ORDERS[str(operator)]} ?", (value,))


def _is_among(name: str, wanted: Sequence[object]) -> Filter:
    """Whether some value of a name is one of those wanted, of the same kind."""
    by_kind: dict[str, list[Scalar]] = {}
    for value in wanted:
        if not _is_scalar(value):
            raise FilterError(f"{name!r} is compared with {_short(value)}; use a text, a number, true or false")
        assert isinstance(value, (str, int, float)), f"not a scalar: {value!r}"
        by_kind.setdefault(_kinds(value), []).append(value)
    tests = [f"j.type IN ({kinds}) AND j.value IN ({', '.join('?' * len(own))})" for kinds, own in by_kind.items()]
    return _some(name, " OR ".join(tests), tuple(value for own in by_kind.values() for value in own))


def _kinds(value: Scalar) -> str:
    """Return the types by which `json_each` tells values of one kind; true is 1 and false 0 there."""
    if isinstance(value, bool):
        return "'true', 'false'"
    return "'text'" if isinstance(value, str) else "'integer', 'real'"


def _some(name: str, test: str, values: tuple[Scalar, ...]) -> Filter:
    """Whether one of the values of a name passes a test; a value that is no list counts as a list of one."""
    return Filter(f"{TEST}SELECT 1 FROM json_each({{column}}, '$.\"{name}\"') j WHERE {test})", values)  # noqa: S608 - a checked name


def _negated(inner: Filter) -> Filter:
    if inner in (ALWAYS, NEVER):
        return NEVER if inner == ALWAYS else ALWAYS
    return Filter(f"NOT ({inner.sql})", inner.values)


def _is_scalar(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return -LARGEST_INTEGER <= value < LARGEST_INTEGER
    return isinstance(value, str) and not UNSTORABLE.search(value)


def _short(value: object) -> str:
    text = reprlib.repr(value)  # unlike `repr`, it goes neither deep nor through all of a long list
    return text if len(text) <= 80 else f"{text[:77]}..."
