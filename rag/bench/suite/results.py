"""The file that a run leaves behind: JSON lines, appended unit by unit, so that an interrupted run can go on."""

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from rag.bench.suite.experiment import Experiment
from rag.bench.suite.records import (
    FORMAT,
    AnswerRecord,
    CheckRecord,
    ContestantRecord,
    Header,
    QualityRecord,
    Record,
    RecordLine,
    SimulationRecord,
    SkippedRecord,
    StreamRecord,
    UnitRecord,
    WindowRecord,
)
from rag.errors import InvalidRequestError, ResultFileError

__all__ = ["ResultFile", "Results"]

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Results:
    """What a file holds: records of complete units, each unit once.

    Attributes:
        header: of the run.
        records: all others, in the order in which they were written.
    """

    header: Header
    records: tuple[Record, ...]

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read a file; a line that a crash cut short at its end is left out.

        Raises:
            InvalidRequestError: it is missing, is no result file, or a line before the last is malformed.
        """
        lines = list(_lines(path))
        if not lines or not isinstance(lines[0], Header):
            raise InvalidRequestError(f"{path} is not a result of rag bench run ({FORMAT}): name another file")
        return cls(lines[0], tuple(lines[1 : _whole(lines)]))

    @property
    def experiments(self) -> tuple[Experiment, ...]:
        """Those of the suite, measured or not."""
        return self.header.suite.experiments

    @cached_property
    def units(self) -> dict[str, UnitRecord]:
        """Complete units by id."""
        return {one.unit: one for one in self._all(UnitRecord)}

    @property
    def contestants(self) -> dict[str, ContestantRecord]:
        """Engines that took part, by name; the last start counts."""
        return {one.name: one for one in self._all(ContestantRecord)}

    @property
    def skipped(self) -> list[SkippedRecord]:
        """What was left out, each once: an engine that failed, what was absent, but not what came later."""
        left_out = dict[tuple[str, str], SkippedRecord]()
        for one in self.records:
            if isinstance(one, SkippedRecord):
                left_out[one.name, one.unit] = one
            elif isinstance(one, ContestantRecord | UnitRecord):
                left_out.pop((one.name if isinstance(one, ContestantRecord) else one.experiment, ""), None)
        return list(left_out.values())

    @property
    def streams(self) -> dict[str, StreamRecord]:
        """What was asked, by experiment."""
        return {one.experiment: one for one in self._all(StreamRecord)}

    def answers(self, experiment: str) -> list[AnswerRecord]:
        """Return the answers of an experiment."""
        return [one for one in self._all(AnswerRecord) if self.units[one.unit].experiment == experiment]

    def windows(self, experiment: str) -> list[WindowRecord]:
        """Return what engines held in an experiment."""
        return [one for one in self._all(WindowRecord) if self.units[one.unit].experiment == experiment]

    def quality(self, experiment: str) -> list[QualityRecord]:
        """Return the qualities of an experiment."""
        return [one for one in self._all(QualityRecord) if self.units[one.unit].experiment == experiment]

    def simulations(self, experiment: str) -> list[SimulationRecord]:
        """Return the simulated hit rates of an experiment."""
        return [one for one in self._all(SimulationRecord) if self.units[one.unit].experiment == experiment]

    @property
    def checks(self) -> list[CheckRecord]:
        """Return the self-checks."""
        return self._all(CheckRecord)

    def _all(self, kind: type[Kind]) -> list[Kind]:
        return [one for one in self.records if isinstance(one, kind)]


class ResultFile:
    """Writes a run's file: a unit's records together, its `UnitRecord` last, when it is complete.

    Args:
        path: of the file; its folder exists.
        header: of the run; a file that is there goes on where its suite is the same.

    Raises:
        InvalidRequestError: the file is of another suite, model, machine, version or setting, or another run is
            writing it.
        ResultFileError: it cannot be written.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.found: tuple[Record, ...] = ()
        self._units: dict[str, list[Record]] = {}
        self._file = path.open("ab", buffering=0)
        try:
            _lock(self._file, path)
            if path.stat().st_size:
                found = Results.load(path)
                self._refuse_others(found.header, header)
                self.found = found.records
                self._note(found.records)
                self._file.truncate(_whole_bytes(path, len(found.records)))  # without what was cut short
            else:
                self.add(header)
        except BaseException:
            self._file.close()
            raise

    @property
    def done(self) -> frozenset[str]:
        """Ids of complete units."""
        return frozenset(self._units)

    def records(self, unit: str) -> Sequence[Record]:
        """Return the records of a complete unit, those of runs before included."""
        return self._units.get(unit, ())

    def add(self, *records: Record) -> None:
        """Append records: all of them, or none.

        Raises:
            ResultFileError: the disk is full, say; what was written before stands.
        """
        lines = "".join(f"{one.model_dump_json()}\n" for one in records).encode()
        size = os.fstat(self._file.fileno()).st_size
        try:
            _write_whole(self._file, lines)
        except OSError as error:
            self._file.truncate(size)
            raise ResultFileError(
                f"{self.path} cannot be written ({error.strerror}); make room, then run the same again with "
                f"--output {self.path}: what is complete is not measured again"
            ) from error
        self._note(records)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _note(self, records: Sequence[Record]) -> None:
        """Remember complete units."""
        open_units: dict[str, list[Record]] = {}
        for record in records:
            if name := _unit(record):
                open_units.setdefault(name, []).append(record)
        complete = {one.unit for one in records if isinstance(one, UnitRecord)}
        self._units |= {name: lines for name, lines in open_units.items() if name in complete}

    def _refuse_others(self, found: Header, wanted: Header) -> None:
        pairs = {
            "suite": (found.suite, wanted.suite),
            "model": (found.model, wanted.model),
            "embedder": (found.embedder, wanted.embedder),
            "processor": (found.environment.cpu, wanted.environment.cpu),
            "version of Preread": (found.environment.preread, wanted.environment.preread),
            "version of torch": (found.environment.torch, wanted.environment.torch),
        }
        if found.setting is not None and wanted.setting is not None:
            there, here = found.setting, wanted.setting
            pairs |= {
                "number of threads": (there.threads, here.threads),
                "memory for KV": (there.kv_gib, here.kv_gib),
                "GGUF": (there.gguf, here.gguf),
                "Python for peers": (there.pythons, here.pythons),
            }
        differing = [name for name, (before, now) in pairs.items() if before != now]
        if differing:
            raise InvalidRequestError(
                f"{self.path} is of another {' and '.join(differing)}: name another file with --output"
            )


def _lines(path: Path) -> Iterator[Record]:
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # what no line's end follows was cut short by a crash
    except OSError as error:
        raise InvalidRequestError(f"{path} cannot be read ({error}): name a result of rag bench run") from error
    for number, line in enumerate(lines, 1):
        try:
            yield RecordLine.validate_json(line)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise InvalidRequestError(f"{path}:{number}: not a record ({reason}): name another file") from error


def _whole(lines: Sequence[Record]) -> int:
    """Return how many lines there are before the first of a unit that is not complete: a crash cut it short."""
    complete = {one.unit for one in lines if isinstance(one, UnitRecord)}
    return next((place for place, one in enumerate(lines) if _unit(one) and _unit(one) not in complete), len(lines))


def _lock(file: io.FileIO, path: Path) -> None:
    """Let no other run write the file, until it is closed; where the system cannot lock, nothing is done."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InvalidRequestError(f"another run is writing {path}: wait for it, or name another file") from error


def _whole_bytes(path: Path, records: int) -> int:
    """Return how long the header and so many records are."""
    return sum(len(line) + 1 for line in path.read_bytes().split(b"\n")[: records + 1])


def _write_whole(file: io.FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _unit(record: Record) -> str:
    return str(getattr(record, "unit", ""))
