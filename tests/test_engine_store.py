"""An engine over a KV store: what was read once is not computed again after a restart, or after an eviction."""

import random
import threading

import pytest
from engine_helpers import BLOCK, ask, check_settled, passage, random_tokens, tail, template, tiny_engine

from engine import Engine, Generation, Prompt, Reuse, SamplingParams
from engine.kv_store import ExtentStore
from engine.prompt import block_keys

pytestmark = pytest.mark.usefixtures("one_thread")

GENERATOR = random.Random(8)
TEMPLATE = template(random_tokens(GENERATOR, 19))
PASSAGES = [passage(random_tokens(GENERATOR, n), str(n)) for n in (37, 32, 17, 50, 48)]
FOUR = SamplingParams(max_tokens=4)


@pytest.fixture
def start(tiny_folder, tmp_path):
    """Start an engine over the store of this test; the one before is stopped."""
    running: list[tuple[Engine, ExtentStore]] = []

    def stop():
        for engine, store in running:
            check_settled(engine)
            engine.close()
            store.close()
        running.clear()

    def start(**settings) -> Engine:
        stop()
        store = ExtentStore(tmp_path / "kv", capacity_bytes=1 << 30)
        running.append((tiny_engine(tiny_folder, store=store, **settings), store))
        return running[0][0]

    yield start
    stop()


def answer(engine: Engine, *order: int, **options) -> Generation:
    prompt = Prompt([TEMPLATE, *(PASSAGES[i] for i in order), tail([1, 2, 3])])
    return ask(engine, prompt, FOUR, **{"reuse": Reuse.CHUNK, "uncertified_repair": BLOCK, **options})


def tiers(generation: Generation) -> list[str | None]:
    return [report.tier for report in generation.cache.segments[:-1]]


def test_a_restart_costs_no_computation(start):
    engine = start()
    assert engine.precompute(TEMPLATE, PASSAGES) == 5
    before = answer(engine, 3, 0, 4)
    assert tiers(before) == ["device"] * 4
    engine = start()
    assert engine.missing(TEMPLATE, PASSAGES) == []
    after = answer(engine, 3, 0, 4)
    assert tiers(after) == ["disk"] * 4
    assert after.token_ids == before.token_ids
    assert after.cache.hit_tokens == {"device": 0, "disk": before.cache.hit_tokens["device"]}
    assert tiers(answer(engine, 3, 0, 4)) == ["device"] * 4
    assert tiers(answer(engine, 3, 1, 4)) == ["device", "device", "disk", "device"]


def test_exact_reuse_loads_the_first_passage_alone(start):
    engine = start()
    engine.precompute(TEMPLATE, PASSAGES)
    plain = answer(engine, 0, 1, reuse=Reuse.EXACT)
    engine = start()
    first = answer(engine, 0, 1, reuse=Reuse.EXACT)
    assert tiers(first) == ["disk", "disk", None]
    assert first.token_ids == plain.token_ids
    assert tiers(answer(engine, 0, 1, reuse=Reuse.EXACT)) == ["device"] * 3


def test_what_questions_compute_is_kept_too(start):
    engine = start()
    answer(engine, 2, 1)
    ask(engine, Prompt([TEMPLATE, PASSAGES[3], tail([5])]), FOUR)
    engine = start()
    assert engine.missing(TEMPLATE, PASSAGES) == [0, 4]
    assert engine.missing(TEMPLATE, PASSAGES, "another collection") == [0, 1, 2, 3, 4]


def test_an_evicted_passage_comes_back_from_disk(start):
    engine = start(num_blocks=14)
    engine.precompute(TEMPLATE, PASSAGES)
    assert engine.stats().evicted_blocks > 0
    for _ in range(20):
        order = GENERATOR.sample(range(5), 2)
        result = answer(engine, *order)
        assert None not in tiers(result)
        check_settled(engine)


def test_a_damaged_record_is_computed_again(start, tmp_path):
    engine = start()
    engine.precompute(TEMPLATE, PASSAGES)
    chunk, exact = (answer(engine, 3, 0, 4, reuse=reuse).token_ids for reuse in (Reuse.CHUNK, Reuse.EXACT))
    assert chunk != exact
    start()  # everything is written
    for path in sorted((tmp_path / "kv").rglob("*")):
        if path.is_file():
            content = bytearray(path.read_bytes())
            for position in range(5000, len(content), 3001):
                content[position] ^= 0xFF
            path.write_bytes(content)
    damaged = answer(start(), 3, 0, 4)
    assert None in tiers(damaged)
    assert damaged.token_ids in (chunk, exact), "what cannot be loaded is computed, in the prompt's context or its own"
    answers = [answer(start(), 3, 0, 4) for _ in range(3)]
    assert tiers(answers[-1]) == ["disk"] * 4, "and kept again"
    assert answers[-1].token_ids == chunk


def test_another_models_store_is_of_no_use_and_no_harm(start, tmp_path, tiny_folder):
    engine = start()
    engine.precompute(TEMPLATE, PASSAGES)
    plain = answer(engine, 0, 1)
    engine = start(block_size=8)
    assert engine.missing(TEMPLATE, PASSAGES) == [0, 1, 2, 3, 4]
    other = answer(engine, 0, 1)
    assert tiers(other)[1:] == [None, None]
    assert len(other.token_ids) == len(plain.token_ids)


def test_a_purged_passage_is_not_loaded_again(start):
    engine = start()
    engine.precompute(TEMPLATE, PASSAGES)
    assert engine.purge("", [PASSAGES[0].tokens])
    key = engine.identity.key("", TEMPLATE.tokens, PASSAGES[0].tokens)
    assert engine.tier is not None
    engine.tier.flush()
    engine.tier._store.purge([key])
    assert engine.missing(TEMPLATE, PASSAGES) == [0]


def test_what_the_tree_has_and_the_store_has_lost_is_stored_again_when_asked_for(start):
    engine = start()
    engine.precompute(TEMPLATE, PASSAGES[:2])
    assert engine.tier is not None
    engine.tier.flush()
    engine.tier._store.delete(engine.identity.key("", TEMPLATE.tokens, PASSAGES[0].tokens))
    assert engine.missing(TEMPLATE, PASSAGES[:2]) == [0]
    assert tiers(answer(engine, 0, 1, reuse=Reuse.EXACT))[:2] == ["device", "device"]
    assert engine.missing(TEMPLATE, PASSAGES[:2]) == [0], "a question does not write what it has only read"
    assert engine.precompute(TEMPLATE, PASSAGES[:2]) == 1
    assert engine.missing(TEMPLATE, PASSAGES[:2]) == []


def test_nodes_are_on_disk_once_they_are_written(tiny_folder, tmp_path):
    """What waits to be written, or is declined after all, would still cost a computation."""

    class Reluctant(ExtentStore):
        takes, go_on = True, threading.Event()

        def put(self, *arguments):
            assert self.go_on.wait(30)
            return self.takes and super().put(*arguments)

    store = Reluctant(tmp_path / "slow", capacity_bytes=2**22)
    engine = tiny_engine(tiny_folder, store=store)

    def is_on_disk(number: int) -> bool:
        ask(engine, [1, 2, 3], SamplingParams(max_tokens=1))  # what was written is noted when a request is admitted
        keys = [key for part in (TEMPLATE, PASSAGES[number]) for key in block_keys(part.tokens, BLOCK, sealed=True)]
        match = engine.cache.tree("").match(keys)
        assert len(match.blocks) == len(keys)
        return match.nodes[-1].on_disk

    assert engine.precompute(TEMPLATE, PASSAGES[:1]) == 1
    assert not is_on_disk(0)
    Reluctant.go_on.set()
    engine.tier.flush()
    assert is_on_disk(0)
    store.takes = False
    assert engine.precompute(TEMPLATE, PASSAGES[1:2]) == 1
    engine.tier.flush()
    assert not is_on_disk(1)
    engine.close()
    store.close()
