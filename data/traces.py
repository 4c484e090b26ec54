"""Traffic as ids and lengths, without text: its file, and a reader of what others recorded.

RAGPulse (arXiv 2511.12979, MIT): one week of retrieval-augmented questions.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import TraceError

__all__ = ["FORMAT", "Trace", "TracePart", "TraceRequest", "read_ragpulse"]

FORMAT = "preread-trace-1"
REQUESTS_FILE = "0_trace.jsonl"


class _Table(NamedTuple):
    """Where the token lengths of one kind of part are."""

    file: str
    id_field: str
    request_field: str  # inside hash_ids


TABLES = {
    "system_prompt": _Table("1_sys_prompt.jsonl", "sys_prompt_id", "sys_prompt"),
    "passages": _Table("2_passages.jsonl", "passage_id", "passages_ids"),
    "history": _Table("3_history.jsonl", "history_id", "history"),
    "user_input": _Table("4_user_input.jsonl", "user_input_id", "user_input"),
    "web_search": _Table("5_web_search.jsonl", "web_search_id", "web_search"),
}


INCOMPLETE = "{} is missing: give the folder of a RAGPulse trace, with all six files"


class TracePart(NamedTuple):
    """A piece of a recorded prompt: equal ids mean equal text.

    Attributes:
        id: unique over all kinds of pieces.
        num_tokens: its length.
    """

    id: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One recorded request.

    Attributes:
        timestamp: seconds since the trace began.
        session_id: requests of one conversation share it.
        input_length: prompt tokens as recorded; a little more than the sum of the parts.
        output_length: generated tokens.
        system_prompt: its pieces; the last ones are volatile.
        passages: in retrieval order.
        history: earlier turns.
        web_search: web results.
        user_input: the question.
    """

    timestamp: float
    session_id: str
    input_length: int
    output_length: int
    system_prompt: tuple[TracePart, ...]
    passages: tuple[TracePart, ...]
    history: tuple[TracePart, ...]
    web_search: tuple[TracePart, ...]
    user_input: tuple[TracePart, ...]


REQUEST_FIELDS = tuple(field.name for field in fields(TraceRequest))


@dataclass(frozen=True, slots=True)
class Trace:
    """Recorded or drawn traffic, by ascending time.

    Attributes:
        name: of the trace.
        requests: at least one.
        settings: that it was drawn with, and its seed; whatever JSON holds.
    """

    name: str
    requests: tuple[TraceRequest, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write JSON lines, name and settings first and then one request a line, in one step."""
        head = {"format": FORMAT, "name": self.name, "settings": dict(self.settings)}
        records = ({name: getattr(one, name) for name in REQUEST_FIELDS} for one in self.requests)
        partial = path.with_name(f"{path.name}.part")
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(line, ensure_ascii=False)}\n" for line in (head, *records))
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Trace":
        """Read what `save` wrote.

        Raises:
            TraceError: the file is missing; or a line is malformed, goes back in time, or gives an id another length
                than a line above it. The message has its number.
        """
        lines = _records(path, f"{path} is missing: save a trace there first")
        where, head = next(lines, (f"{path}:1", {}))
        name, settings = head.get("name"), head.get("settings")
        if head.get("format") != FORMAT or not isinstance(name, str) or not isinstance(settings, dict):
            raise TraceError(f"{where}: not a trace ({FORMAT}): save it again")
        known: dict[int, int] = {}
        requests = _in_order((where, _saved_request(where, record, known)) for where, record in lines)
        if not requests:
            raise TraceError(f"{path} holds no request: save it again")
        return cls(name, requests, settings)


def read_ragpulse(folder: Path) -> Trace:
    """Read a folder of RAGPulse's six JSON-lines files. Blank lines are skipped.

    Raises:
        TraceError: a file is missing; or a line is not JSON, lacks a field, has one of a wrong type, names an id
            without a length, or goes back in time. The message has file and line number.
    """
    lengths = {kind: _read_lengths(folder / table.file, table.id_field) for kind, table in TABLES.items()}
    records = _records(folder / REQUESTS_FILE, INCOMPLETE.format(folder / REQUESTS_FILE))
    requests = _in_order((where, _request(where, record, lengths)) for where, record in records)
    if not requests:
        raise TraceError(f"{folder / REQUESTS_FILE} holds no request: give the folder of a complete trace")
    return Trace("ragpulse", requests)


def _read_lengths(path: Path, id_field: str) -> dict[int, int]:
    records = _records(path, INCOMPLETE.format(path))
    return {_integer(where, record, id_field): _integer(where, record, "token_length") for where, record in records}


def _in_order(requests: Iterator[tuple[str, TraceRequest]]) -> tuple[TraceRequest, ...]:
    """Return requests that come with "path:line", none before the one above it."""
    kept: list[TraceRequest] = []
    for where, request in requests:
        if kept and request.timestamp < kept[-1].timestamp:
            raise TraceError(f"{where}: timestamp {request.timestamp:g} is before the line above it: sort the file")
        kept.append(request)
    return tuple(kept)


def _request(where: str, record: dict[str, Any], lengths: dict[str, dict[int, int]]) -> TraceRequest:
    try:
        timestamp = float(record["timestamp"])
        if not math.isfinite(timestamp):
            raise ValueError(f"timestamp is {timestamp}")
        session_id = str(record["session_id"])
        ids = {kind: list(record["hash_ids"][table.request_field]) for kind, table in TABLES.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise TraceError(f"{where}: not a request ({type(error).__name__}: {error}): remove or repair it") from error
    parts: dict[str, tuple[TracePart, ...]] = {}
    for kind, known in lengths.items():
        unknown = [part for part in ids[kind] if not isinstance(part, int) or part not in known]
        if unknown:
            raise TraceError(f"{where}: {kind} id {unknown[0]!r} has no length in {TABLES[kind].file}")
        parts[kind] = tuple(TracePart(part, known[part]) for part in ids[kind])
    return TraceRequest(
        timestamp=timestamp,
        session_id=session_id,
        input_length=_integer(where, record, "input_length"),
        output_length=_integer(where, record, "output_length"),
        **parts,
    )


def _saved_request(where: str, record: dict[str, Any], known: dict[int, int]) -> TraceRequest:
    """Read a saved request; its pieces are noted in `known`."""
    parts = {name: tuple(_saved_parts(where, name, record.get(name), known)) for name in TABLES}
    timestamp, session_id = record.get("timestamp"), record.get("session_id")
    if isinstance(timestamp, bool) or not isinstance(timestamp, int | float) or not math.isfinite(timestamp):
        raise TraceError(f"{where}: timestamp is {timestamp!r}, not a number")
    if not isinstance(session_id, str):
        raise TraceError(f"{where}: session_id is {session_id!r}, not a text")
    return TraceRequest(
        timestamp=float(timestamp),
        session_id=session_id,
        input_length=_integer(where, record, "input_length"),
        output_length=_integer(where, record, "output_length"),
        **parts,
    )


def _saved_parts(where: str, name: str, pairs: Any, known: dict[int, int]) -> Iterator[TracePart]:
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        whole = isinstance(pair, list) and [type(one) for one in pair] == [int, int]
        if not whole or min(pair) < 0:
            raise TraceError(f"{where}: {name} has {pair!r}, not an id and a length")
        part = TracePart(*pair)
        if known.setdefault(part.id, part.num_tokens) != part.num_tokens:
            raise TraceError(f"{where}: {name} id {part.id} has {part.num_tokens} tokens, and {known[part.id]} above")
        yield part


def _records(path: Path, missing: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield "path:line" and the object on each line."""
    if not path.is_file():
        raise TraceError(missing)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise TraceError(f"{where}: not JSON ({error}): remove or repair the line") from error
            if not isinstance(record, dict):
                raise TraceError(f"{where}: a JSON object is expected, not {type(record).__name__}")
            yield where, record


def _integer(where: str, record: dict[str, Any], field: str) -> int:
    value = record.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TraceError(f"{where}: {field} is {value!r}, not a whole number of 0 or more")
    return value
