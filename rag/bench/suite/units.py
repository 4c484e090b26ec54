"""A unit of a run: what is measured in one go, written together when it is complete, and never measured again."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic

from rag.bench.environment import load_average
from rag.bench.suite.experiment import Experiment
from rag.bench.suite.lineup import Lineup
from rag.bench.suite.records import AnswerRecord, Record, UnitRecord
from rag.bench.suite.requests import RequestStream
from rag.bench.suite.results import ResultFile

__all__ = ["PATIENCE_SECONDS", "Course", "Unit"]

PATIENCE_SECONDS = 180.0


@dataclass(slots=True)
class Unit:
    """What is being measured.

    Attributes:
        name: `experiment/repeat`, and more where an engine is alone in it.
        began: when, by the run's clock; the times of its records count from here.
        records: that it has so far.
    """

    name: str
    began: float
    records: list[Record] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Course:
    """One pass of an experiment: who meets what, and where the records go.

    Attributes:
        experiment: of the suite.
        repeat: which pass, from 0.
        stream: its requests.
        lineup: engines that are there.
        file: where units are written.
        tell: told how much of the pass is done, from 0 to 1, and what is being done.
        patience: seconds of silence after which an engine that owes an answer is given up.
        clock: that the engines share.
        label: what stands for the pass in the ids of its units; its number if empty.
        scores: makes, of a unit's name and answers, the records of how good the answers are.
    """

    experiment: Experiment
    repeat: int
    stream: RequestStream
    lineup: Lineup
    file: ResultFile
    tell: Callable[[float, str], None]
    patience: float = PATIENCE_SECONDS
    clock: Callable[[], float] = monotonic
    label: str = ""
    scores: Callable[[str, Sequence[AnswerRecord]], Iterable[Record]] = lambda _unit, _answers: ()

    @property
    def name(self) -> str:
        """Id of the unit that closes the pass: when it is there, the whole pass is."""
        return f"{self.experiment.name}/{self.label or self.repeat}"

    def lacks(self, *parts: object) -> bool:
        """Whether a unit of the pass has not been measured."""
        return self._id(parts) not in self.file.done

    @contextmanager
    def unit(self, *parts: object, within: Unit | None = None) -> Iterator[Unit]:
        """Measure a unit: it is written when the block ends well, and lost when it does not.

        Args:
            parts: what follows the pass in its id.
            within: the unit that it is written together with, after that one's records so far.

        Raises:
            ResultFileError: the file cannot be written.
        """
        when, load = datetime.now(UTC), load_average()
        unit = Unit(self._id(parts), self.clock())
        yield unit
        closing = UnitRecord(
            unit=unit.name,
            experiment=self.experiment.name,
            repeat=self.repeat,
            began=when.isoformat(timespec="seconds"),
            seconds=self.clock() - unit.began,
            load=load,
        )
        if within is None:
            self.file.add(*unit.records, closing)
        else:
            within.records += (*unit.records, closing)

    def _id(self, parts: tuple[object, ...]) -> str:
        return "/".join((self.name, *map(str, parts)))
