"""The file that a run leaves behind: JSON lines, appended unit by unit, so that an interrupted run can go on."""

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
from rag.errors import InvalidRequestError

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
        complete = {one.unit for one in lines if isinstance(one, UnitRecord)}
        return cls(lines[0], tuple(one for one in lines[1:] if not _unit(one) or _unit(one) in complete))

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
        """What was left out, each once."""
        return list({one.name: one for one in self._all(SkippedRecord)}.values())

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
        InvalidRequestError: the file is of another suite, model or machine.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.done: frozenset[str] = frozenset()
        if path.exists() and path.stat().st_size:
            found = Results.load(path)
            self._refuse_others(found.header, header)
            self.done = frozenset(found.units)
            _write(path, (found.header, *found.records))  # without the unit that was cut short
        self._file = path.open("a", encoding="utf-8")
        if not path.stat().st_size:
            self.add(header)

    def add(self, *records: Record) -> None:
        """Append records."""
        for record in records:
            self._file.write(record.model_dump_json() + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _refuse_others(self, found: Header, wanted: Header) -> None:
        pairs = {
            "suite": (found.suite, wanted.suite),
            "model": (found.model, wanted.model),
            "processor": (found.environment.cpu, wanted.environment.cpu),
        }
        differing = [name for name, (there, here) in pairs.items() if there != here]
        if differing:
            raise InvalidRequestError(
                f"{self.path} is of another {' and '.join(differing)}: name another file with --output"
            )


def _lines(path: Path) -> Iterator[Record]:
    try:
        texts = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{path} cannot be read ({error}): name a result of rag bench run") from error
    for number, text in enumerate(texts, 1):
        if not text.endswith("\n"):
            return  # cut short by a crash
        try:
            yield RecordLine.validate_json(text)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise InvalidRequestError(f"{path}:{number}: not a record ({reason}): name another file") from error


def _write(path: Path, records: Sequence[Record]) -> None:
    partial = path.with_name(f"{path.name}.part")
    partial.write_text("".join(f"{one.model_dump_json()}\n" for one in records), encoding="utf-8")
    partial.replace(path)


def _unit(record: Record) -> str:
    return str(getattr(record, "unit", ""))
