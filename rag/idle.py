"""Reads passages ahead of the questions while nobody waits for anything."""

import logging
from threading import Event, Thread
from typing import TYPE_CHECKING

from engine.errors import EngineStoppedError
from retriever.errors import UnknownCollectionError

if TYPE_CHECKING:
    from rag.components import Components
    from rag.precompute import Precompute
    from rag.precompute_run import PrecomputeRun
    from retriever.records import Collection

__all__ = ["IdlePrecompute"]

logger = logging.getLogger(__name__)

IDLE_SECONDS = 2.0  # people ask again within seconds; somebody who reads an answer does not
POLL_SECONDS = 0.5
RETRY_SECONDS = 60.0
FAILED = "reading ahead has failed and is tried again later; questions are answered as before"

_State = tuple[int, str]


class IdlePrecompute:
    """A thread that works only while nobody waits, and stops at once when somebody does.

    Args:
        components: library, engine and what tells whether somebody waits.
        precompute: makes the runs.
        idle_seconds: how long nobody may have waited before it begins.
    """

    def __init__(
        self, components: "Components", precompute: "Precompute", *, idle_seconds: float = IDLE_SECONDS
    ) -> None:
        self._components = components
        self._precompute = precompute
        self._idle_seconds = idle_seconds
        self._stopping = Event()
        self._plans: dict[int, tuple[_State, PrecomputeRun | None]] = {}  # by collection: its state, what is left
        self._thread = Thread(target=self._loop, name="read-ahead", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End what runs, and the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _loop(self) -> None:
        while not self._stopping.wait(min(POLL_SECONDS, self._idle_seconds)):
            if not self._may_read:
                continue
            try:
                is_well = self._read_all()
            except EngineStoppedError:
                return
            except Exception:
                logger.exception("%s", FAILED)
                is_well = False
            if not is_well:
                self._stopping.wait(RETRY_SECONDS)

    @property
    def _may_read(self) -> bool:
        """Whether nobody has waited for long enough, and nobody ends the thread."""
        return not self._stopping.is_set() and self._components.activity.idle_seconds >= self._idle_seconds

    def _read_all(self) -> bool:
        """Read what is left of every collection; tell whether none of them is to be tried again later."""
        library = self._components.library()
        library.popularity.flush()
        rows = library.collections()
        self._plans = {row.id: self._plans[row.id] for row in rows if row.id in self._plans}
        is_well = True
        for row in rows:
            if not self._may_read:
                break
            try:
                is_well &= self._read(row)
            except EngineStoppedError:
                raise
            except UnknownCollectionError:
                continue  # it has been deleted meanwhile
            except Exception:  # the others are read all the same
                logger.exception("%s: %s", row.name, FAILED)
                is_well = False
        return is_well

    def _read(self, row: "Collection") -> bool:
        """Read what is left of a collection, until somebody waits; planned once for each state of it.

        Returns:
            False when the disk takes no more.
        """
        if not row.num_passages:
            return True
        state, run = self._plans.get(row.id, (None, None))
        if state != _state_of(row):
            run = self._precompute.start(row.name)
            state = _state_of(run.collection)
            self._plans[row.id] = state, run
        if state is None or run is None:
            return True
        with self._components.activity.interrupting(run.stop) as idle:
            if not idle:
                return True
            try:
                for _ in run:
                    if self._stopping.is_set():
                        run.stop()
            finally:
                self._plans[row.id] = state, run.rest()  # a run is iterated over once, also one that fails
        return not run.is_refused


def _state_of(row: "Collection") -> _State:
    """Return what the KV of a collection's passages follows from: the passages, and the template above them."""
    return row.generation, row.answering
