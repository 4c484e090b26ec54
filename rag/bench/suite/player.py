"""An engine within a unit: what it did before, what it holds after, and what driving it cost."""

from dataclasses import dataclass
from typing import Self

from rag.bench.suite.contestant import Contestant, Footprint, Prepared
from rag.bench.suite.lineup import awake
from rag.bench.suite.records import WindowRecord
from rag.bench.suite.requests import RequestStream

__all__ = ["Player"]


@dataclass(slots=True)
class Player:
    """An engine that has been prepared.

    Attributes:
        contestant: the engine.
        prepared: what it read ahead.
        before: what it held then.
        seconds: that it was driven.
        generator_cpu: processor seconds that driving it took.
    """

    contestant: Contestant
    prepared: Prepared
    before: Footprint
    seconds: float = 0.0
    generator_cpu: float = 0.0

    @classmethod
    def prepare(cls, contestant: Contestant, stream: RequestStream) -> Self:
        """Let an engine forget everything and read ahead what ingestion would.

        Raises:
            PeerError: it cannot.
        """
        with awake(contestant):
            return cls(contestant, contestant.prepare(stream), contestant.footprint())

    def window(
        self, unit: str, *, rate: float | None = None, lateness_ms: float = 0.0, cut: bool = False
    ) -> WindowRecord:
        """Measure what it holds now, and make the unit's record of it; the next one counts from here.

        Raises:
            PeerError: it is gone.
        """
        with awake(self.contestant):
            after = self.contestant.footprint()
        cpu = (after.cpu_seconds, self.before.cpu_seconds)
        record = WindowRecord(
            unit=unit,
            contestant=self.contestant.name,
            rate=rate,
            prepared_tokens=self.prepared.tokens,
            prepared_seconds=self.prepared.seconds,
            memory=after.memory,
            disk=after.disk,
            engine_cpu=None if cpu[0] is None or cpu[1] is None else cpu[0] - cpu[1],
            generator_cpu=self.generator_cpu,
            seconds=self.seconds,
            lateness_ms=lateness_ms,
            cut=cut,
        )
        self.before, self.seconds, self.generator_cpu = after, 0.0, 0.0
        return record
