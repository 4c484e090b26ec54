"""Any sequence of operations, ended at any access to the disk, leaves what a dict would hold, before or after."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from kv_helpers import MIB, extents, holds, key_of, payload_of, put, raw_bytes

from engine import kv_extent
from engine.kv_store import ExtentStore

NUMBERS = st.integers(0, 40)
WRITES = ("pwrite", "ftruncate", "fsync", "_punch_hole", "unlink")


class Killed(BaseException):
    """Ends an operation as the end of the process would: no handler of errors sees it."""


class Plug:
    """Counts accesses that change the disk, and pulls the plug at one of them."""

    def __init__(self) -> None:
        self.accesses_left: int | None = None

    def wrap(self, name: str, access):
        def counted(*arguments, **named):
            if self.accesses_left is None:
                return None if name == "fsync" else access(*arguments, **named)
            if self.accesses_left:
                self.accesses_left -= 1
                return None if name == "fsync" else access(*arguments, **named)
            if name == "pwrite":
                fd, content, offset = arguments
                access(fd, content[: len(content) // 2], offset)
            raise Killed

        return counted


class StoreMachine(RuleBasedStateMachine):
    """A store and a dict; what an operation that was killed did is found out afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.plug = Plug()
        self.patch = pytest.MonkeyPatch()
        owners = {"_punch_hole": kv_extent, "unlink": Path}
        for name in WRITES:
            owner = owners.get(name, os)
            self.patch.setattr(owner, name, self.plug.wrap(name, getattr(owner, name)))
        self.store = ExtentStore(self.folder, capacity_bytes=MIB)
        self.present: set[int] = set()

    @initialize(holes=st.booleans(), numbers=st.sets(NUMBERS, min_size=10))
    def fill(self, holes, numbers):
        if not holes:
            self.patch.setattr(kv_extent, "_punch_hole", lambda fd, start, end: False)
        self.present = {n for n in numbers if put(self.store, n)}
        assert self.present == numbers

    def run(self, operation, touched: set[int], after: set[int], accesses: int | None) -> None:
        """Run an operation that makes the present ones `after`, to its end or to its death."""
        self.plug.accesses_left = accesses
        try:
            operation()
            self.present = after
        except Killed:
            self.plug.accesses_left = None
            self.reopen()
            found = {n for n in touched if holds(self.store, n)}
            self.present = (self.present - touched) | found
        finally:
            self.plug.accesses_left = None

    def reopen(self) -> None:
        self.store = ExtentStore(self.folder, capacity_bytes=MIB)

    accesses = st.none() | st.integers(0, 8)

    @rule(number=NUMBERS, accesses=accesses)
    def put(self, number, accesses):
        self.run(lambda: put(self.store, number), {number}, self.present | {number}, accesses)

    @rule(numbers=st.sets(NUMBERS, max_size=25), accesses=accesses)
    def delete(self, numbers, accesses):
        keys = [key_of(n) for n in numbers]
        self.run(lambda: self.store.delete(*keys), numbers & self.present, self.present - numbers, accesses)

    @rule(numbers=st.sets(NUMBERS, max_size=6), accesses=accesses)
    def purge(self, numbers, accesses):
        def purge() -> None:
            report = self.store.purge(key_of(n) for n in numbers)
            assert report.absent
            assert report.erased == len(numbers & self.present)
            raw = raw_bytes(self.folder)
            assert not any(key_of(n) in raw or payload_of(n)[:100] in raw for n in numbers)

        self.run(purge, numbers & self.present, self.present - numbers, accesses)

    @rule(accesses=accesses)
    def compact(self, accesses):
        self.run(self.store.compact, set(), self.present, accesses)

    @rule(accesses=accesses)
    def open_again(self, accesses):
        def open_again() -> None:
            self.store.close()
            self.reopen()
            assert self.store.stats().damages == 0

        self.run(open_again, set(), self.present, accesses)

    @rule()
    def die(self):
        self.reopen()
        assert self.store.stats().damages == 0

    @invariant()
    def holds_exactly_the_present(self):
        assert {n for n in range(41) if holds(self.store, n)} == self.present
        assert self.store.stats().bad_records == 0
        assert set(self.store.keys()) == {key_of(n) for n in self.present}

    @invariant()
    def nothing_but_live_records_is_on_the_disk(self):
        raw = raw_bytes(self.folder)
        assert not any(key_of(n) in raw for n in range(41) if n not in self.present)
        assert raw.count(b"preadKV\n") == len(self.present)

    @invariant()
    def accounts_for_every_byte(self):
        extents_live = sum(extent.live_bytes for extent in self.store._folder._extents)
        records = [self.store._index.get(key_of(n)) for n in self.present]
        assert extents_live == sum(record.header.extent_bytes for record in records)
        assert [extent.path for extent in self.store._folder._extents] == extents(self.folder)

    def teardown(self):
        self.patch.undo()
        shutil.rmtree(self.folder)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
