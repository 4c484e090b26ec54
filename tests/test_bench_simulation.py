"""Simulated hit rates: larger caches find more, every way is there, and what cannot be held is left out or refused."""

import random
from collections import defaultdict
from itertools import pairwise

import pytest
from rag_helpers import make_chat_model

from engine.prompt import Prompt, Segment, SegmentKind
from rag.bench.suite import simulation
from rag.bench.suite.experiment import Experiment, WorkloadSpec
from rag.bench.suite.requests import BenchRequest, RequestStream
from rag.bench.suite.simulation import SHARES, WAYS, run_simulation
from rag.bench.trace_replay import Replay
from rag.config import RagConfig
from rag.errors import InvalidRequestError

TEMPLATE = Segment(tuple(range(20)), SegmentKind.TEMPLATE)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_chat_model(folder)
    return RagConfig(models_dir=folder, model=str(folder), engine={"dtype": "float32"})


def stream_of(count, pool, k=3, length=32):
    rng = random.Random(1)
    passages = [Segment((n,) * length, SegmentKind.PASSAGE, str(n)) for n in range(pool)]
    weights = [1 / (1 + n) for n in range(pool)]
    requests = []
    for number in range(count):
        chosen = list(dict.fromkeys(rng.choices(passages, weights, k=20)))[:k]
        prompt = Prompt([TEMPLATE, *chosen, Segment((9, number), SegmentKind.TAIL)])
        requests.append(BenchRequest(number, 0.0, prompt, 4))
    return RequestStream(tuple(requests), "made up")


def experiment(**changes):
    workload = WorkloadSpec(kind="passages", count=1)
    return Experiment(name="sizes", title="", drive="simulation", workload=workload, **changes)


@pytest.fixture(scope="module")
def records(config):
    return list(run_simulation(experiment(repairs=(0, 16)), stream_of(80, 60), config, repeat=2))


def test_every_way_size_and_policy_is_there_once(records):
    keys = {(one.reuse, one.order, one.policy, one.share) for one in records}
    shares = {one.share for one in records}
    assert len(keys) == len(records) == len(WAYS) * len(shares) * 3
    assert shares == set(SHARES[2:]), "smaller ones do not hold a prompt"
    assert {one.policy for one in records} == {"lru", "lfu", "pgdsf"}
    assert {one.unit for one in records} == {"sizes/2"}
    tokens = len(stream_of(80, 60).passages) * 32
    assert all(one.device_tokens == pytest.approx(one.share * tokens, abs=1) for one in records)


def test_larger_caches_find_more(records):
    by_way = defaultdict(list)
    for one in records:
        by_way[one.reuse, one.order, one.policy].append(one)
    for ones in by_way.values():
        ones.sort(key=lambda one: one.share)
        assert ones[0].device_rate < ones[-1].device_rate
        assert all(after.device_rate >= before.device_rate - 0.02 for before, after in pairwise(ones))


def test_exact_reuse_has_the_device_alone_and_chunk_reuse_the_disk_too(records):
    for one in records:
        assert 0 <= one.device_rate <= one.hit_rate <= 1
        assert (one.reuse == "chunk") or one.hit_rate == one.device_rate
    (chunk,) = {round(one.hit_rate, 9) for one in records if one.reuse == "chunk"}
    # all but the repaired blocks of the second and third passage: two of six blocks
    assert chunk == pytest.approx(4 / 6, abs=0.01)
    best = {way: max(one.hit_rate for one in records if (one.reuse, one.order) == way) for way in WAYS}
    assert best["exact", "score"] < best["exact", "cache"] < best["chunk", "score"]


def test_the_certified_repair_is_taken_where_none_is_asked_for(config, monkeypatch):
    monkeypatch.setattr(simulation, "certified_repair", lambda config, template: 32)
    records = run_simulation(experiment(), stream_of(20, 30), config)
    chunk = next(one for one in records if one.reuse == "chunk")
    assert chunk.unit == "sizes/0"
    assert chunk.hit_rate == pytest.approx(1 / 3, abs=0.01), "a passage no longer than the repair is computed"


def test_records_come_one_by_one(config, monkeypatch):
    done = []
    simulate = Replay.simulate
    monkeypatch.setattr(Replay, "simulate", lambda self, variants: done.append(1) or simulate(self, variants))
    records = run_simulation(experiment(repairs=(16,)), stream_of(10, 30), config)
    next(records)
    assert len(done) == 1


def test_a_stream_too_small_for_its_longest_prompt_is_refused(config):
    with pytest.raises(InvalidRequestError, match="take a workload of more passages"):
        next(run_simulation(experiment(repairs=(16,)), stream_of(5, 3), config))


def test_a_repair_that_is_not_whole_blocks_is_refused(config):
    with pytest.raises(InvalidRequestError, match="repair is 8"):
        next(run_simulation(experiment(repairs=(8,)), stream_of(30, 30), config))


def test_interruption_ends_it(config, monkeypatch):
    def interrupted(self, variants):
        self.interrupted = True
        return []

    monkeypatch.setattr(Replay, "simulate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(run_simulation(experiment(repairs=(16,)), stream_of(30, 30), config))
