"""Whatever happens to the store under a running engine, its answers are those of an engine without one."""

import os
import random
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_helpers import ask, check_settled, passage, random_tokens, tail, template, tiny_engine
from kv_helpers import MIB, extents

from engine import Engine, Prompt, SamplingParams
from engine.kv_store import ExtentStore

pytestmark = pytest.mark.usefixtures("one_thread")

GENERATOR = random.Random(4)
TEMPLATE = template(random_tokens(GENERATOR, 21))
PASSAGES = [passage(random_tokens(GENERATOR, n), str(n)) for n in (37, 32, 17, 50, 48, 33)]
QUESTIONS = [(0, 1, 2), (2, 0), (3, 4, 5), (5, 3), (1, 4, 0), (2, 5)]
FEW_BLOCKS = 16  # what one question needs, and little more: passages leave the device between questions


def answer(engine: Engine, order: tuple[int, ...]) -> tuple[int, ...]:
    prompt = Prompt([TEMPLATE, *(PASSAGES[i] for i in order), tail([1, 2, 3])])
    return ask(engine, prompt, SamplingParams(max_tokens=4)).token_ids  # exact: the same whatever is reused


@pytest.fixture(scope="module")
def expected(tiny_folder) -> dict[tuple[int, ...], tuple[int, ...]]:
    engine = tiny_engine(tiny_folder)
    return {order: answer(engine, order) for order in QUESTIONS}


@pytest.fixture
def started(tiny_folder, tmp_path) -> Iterator[tuple[Engine, ExtentStore]]:
    store = ExtentStore(tmp_path, capacity_bytes=4 * MIB)
    engine = tiny_engine(tiny_folder, num_blocks=FEW_BLOCKS, store=store)
    yield engine, store
    check_settled(engine)
    engine.close()
    store.close()


def damage(folder: Path, generator: random.Random) -> None:
    """Overwrite a stretch of an extent, or cut the extent short."""
    path = generator.choice(extents(folder))
    start = generator.randrange(path.stat().st_size)
    if generator.random() < 0.3:
        os.truncate(path, start)
    else:
        with path.open("r+b") as file:
            file.seek(start)
            file.write(generator.randbytes(generator.choice([1, 5000])))


def test_damage_between_and_under_questions(started, expected, tmp_path):
    engine, store = started
    generator = random.Random(2)
    for round_ in range(12):
        for order in QUESTIONS:
            assert answer(engine, order) == expected[order], round_
            engine.tier.flush()
            if extents(tmp_path):
                damage(tmp_path, generator)
    assert store.stats().bad_records > 10
    assert store.stats().hits > 10


def test_deletes_purges_and_compaction_race_with_answers(started, expected):
    engine, store = started
    stop = threading.Event()
    purges: list[bool] = []

    def disturb() -> None:
        generator = random.Random(3)
        while not stop.is_set():
            keys = store.keys()
            some = generator.sample(keys, min(len(keys), 1))
            store.delete(*some) if generator.random() < 0.5 else purges.append(store.purge(some).absent)
            store.compact()
            stop.wait(generator.random() * 0.1)

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        for _ in range(200):
            for order in QUESTIONS:
                assert answer(engine, order) == expected[order]
            if min(store.stats().hits, store.stats().deleted) > 10:
                break
    finally:
        stop.set()
        disturber.join()
    assert purges
    assert all(purges)
    assert min(store.stats().hits, store.stats().deleted) > 10
    assert store.stats().bad_records == 0


def test_a_disk_that_is_full_from_some_time_on(started, expected, tmp_path, caplog):
    engine, store = started
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert answer(engine, QUESTIONS[0]) == expected[QUESTIONS[0]]
    engine.tier.flush()
    stored = store.stats().records
    [extent] = extents(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (extent.stat().st_size, limits[1]))
    try:
        for _ in range(3):
            for order in QUESTIONS:
                assert answer(engine, order) == expected[order]
        engine.tier.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot be stored" in caplog.text
    stats = store.stats()
    assert stats.records == stored
    assert stats.declined > 0
    assert stats.hits > 0
