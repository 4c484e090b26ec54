"""Contestants of the suites that compute: our engine in every mode, and transformers."""

import random
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from certify_helpers import a_certificate
from engine_helpers import BLOCK, passage, random_tokens, tail, template, tiny_engine

from engine import EngineConfig, SamplingParams
from engine.certificate import certificate_key
from rag.bench.peers import preread_adapter, transformers_adapter
from rag.bench.peers.serving import OneByOne
from rag.bench.suite.contestant import Event

pytestmark = pytest.mark.usefixtures("one_thread")

GENERATOR = random.Random(11)
TEMPLATE = template(random_tokens(GENERATOR, 19))
A, B, C = (passage(random_tokens(GENERATOR, n), name) for n, name in ((37, "a"), (40, "b"), (50, "c")))
LENGTHS = 37 + 40 + 50
QUESTION = tail(random_tokens(GENERATOR, 7))
OUTPUT = 5


@pytest.fixture
def load(tiny_folder, tmp_path):
    """Makes our engine in some mode; all of them are closed afterwards."""
    made = []

    def make(mode, repair=None, **engine):
        config = EngineConfig(
            **{"dtype": "float32", "backend": "reference", "block_size": BLOCK, "kv_cache_bytes": 4 << 20, **engine}
        )
        settings = {
            "folder": str(tiny_folder), "engine": asdict(config), "threads": torch.get_num_threads(), "mode": mode,
            "repair": repair, "certificates": [str(tmp_path / "certificates")],
            "scratch": str(tmp_path / f"scratch-{len(made)}"), "store_bytes": 64 << 20,
        }  # fmt: skip
        made.append(preread_adapter.load(settings))
        return made[-1]

    yield make
    for adapter in made:
        adapter.close()


def a_job(*passages, number=0, question=QUESTION, tokens=OUTPUT, conversation=""):
    segments = (TEMPLATE, *passages, question)
    return {
        "do": "submit", "number": number, "tokens": tokens, "conversation": conversation,
        "segments": [[one.kind.value, list(one.tokens), one.name] for one in segments],
        "prompt": [token for one in segments for token in one.tokens],
    }  # fmt: skip


def run(engine, *jobs):
    """Answer jobs at once; return what became of each: its tokens, and what the last event says."""
    for job in jobs:
        engine.submit(job)
    events = []
    while engine.busy:
        events += [Event(**{"at": 0.0, **news, "tokens": tuple(news.get("tokens", ()))}) for news in engine.step()]
    found = []
    for job in jobs:
        own = [event for event in events if event.number == job["number"]]
        assert [event.done for event in own] == [False] * (len(own) - 1) + [True]
        assert [event.at for event in own] == sorted(event.at for event in own)
        assert sum(event.count for event in own) == sum(len(event.tokens) for event in own)
        found.append(SimpleNamespace(tokens=[t for event in own for t in event.tokens], events=own, last=own[-1]))
    return found if len(found) > 1 else found[0]


def greedy(folder, *jobs):
    """The answers of an engine that nobody adapted."""
    sampling = SamplingParams(max_tokens=OUTPUT, ignore_eos=True)
    prompts = [job["prompt"] for job in jobs]
    return [list(one.token_ids) for one in tiny_engine(folder).generate(prompts, sampling)]


def test_without_reuse_every_prompt_is_computed(load, tiny_folder):
    engine = load("off")
    jobs = [a_job(A, B, number=0), a_job(B, A, number=1), a_job(A, B, number=2, conversation="x")]
    found = [*run(engine, *jobs), run(engine, a_job(A, B, number=3, conversation="x"))]
    assert [one.tokens for one in found] == greedy(tiny_folder, *jobs, jobs[0])
    for one in found:
        assert one.last.cached == {"device": 0, "disk": 0}
        assert one.last.outcomes == {"computed": 37 + 40}
        assert (one.last.repair, one.last.certified) == (None, None)
        assert one.last.started <= one.events[0].at
    stats = engine._engine.stats()
    assert stats.free_blocks == stats.num_blocks, "something of it was kept"


def test_exact_reuse_takes_the_beginning_in_the_order_given(load, tiny_folder):
    engine = load("exact")
    first, again, other = (run(engine, a_job(*passages)) for passages in ((A, B, C), (A, B, C), (A, C, B)))
    assert first.tokens == again.tokens == greedy(tiny_folder, a_job(A, B, C))[0]
    assert first.last.cached == {"device": 0, "disk": 0}
    assert again.last.cached == {"device": 19 + LENGTHS, "disk": 0}
    assert again.last.outcomes == {"canonical": 37, "path": 40 + 50}
    assert other.last.cached == {"device": 19 + 37, "disk": 0}
    assert other.last.outcomes == {"canonical": 37, "computed": 40 + 50}


def test_the_cache_may_choose_the_order(load):
    engine = load("order")
    first, other = run(engine, a_job(A, B, C)), run(engine, a_job(C, A, B))
    assert other.last.cached == {"device": 19 + LENGTHS, "disk": 0}
    assert other.tokens == first.tokens
    assert run(engine, a_job()).last.outcomes == {}, "a prompt may have no passages"


def test_chunk_reuse_of_passages_that_were_read_ahead(load):
    engine = load("chunk")
    prepare = [list(TEMPLATE.tokens), [list(one.tokens) for one in (A, B, C)]]
    prepared = engine.prepare(*prepare)
    assert prepared["tokens"] == LENGTHS
    assert prepared["seconds"] > 0
    for passages, tier in (((B, C, A), "disk"), ((C, B, A), "device"), ((A, B, C), "device")):
        last = run(engine, a_job(*passages)).last
        assert last.outcomes == {"canonical": len(passages[0].tokens), "shifted": LENGTHS - len(passages[0].tokens)}
        assert (last.repair, last.certified) == (32, False)
        assert last.cached == {"device": 0, "disk": 0, tier: 19 + LENGTHS - 2 * 32}
    assert engine.prepare(*prepare) == prepared, "they are on the disk already"
    assert run(engine, a_job(C, B, A)).last.cached == {"device": 0, "disk": 19 + LENGTHS - 2 * 32}


def test_other_passages_take_the_place_of_those_read_ahead_before(load):
    engine = load("chunk", repair=0)
    for passages in ((A, B), (C,)):
        engine.prepare(list(TEMPLATE.tokens), [list(one.tokens) for one in passages])
    found = run(engine, a_job(A, C)).last
    assert found.outcomes == {"computed": 37, "shifted": 50}
    assert found.cached["disk"] == 19 + 50


def test_what_a_certificate_covers(load, tmp_path):
    key = certificate_key(load("exact")._engine.identity, TEMPLATE.tokens)
    a_certificate(key=key, repair=16).write(tmp_path / "certificates")
    certified, less, more = load("chunk"), load("chunk", repair=0), load("chunk", repair=32)
    short = passage(range(17, 36), "short")  # than any that was certified
    cases = [
        (certified, (A, B), 16, True), (certified, (A, B, short), 16, False), (certified, (A,), None, None),
        (less, (A, B), 0, False), (more, (A, B), 32, True), (more, (A, short), 32, False),
    ]  # fmt: skip
    for engine, passages, repair, covered in cases:
        last = run(engine, a_job(*passages)).last
        assert (last.repair, last.certified) == (repair, covered)
    assert "certified" in certified.detail
    assert "32 tokens" in more.detail


def test_it_says_whether_it_drafts(load):
    assert load("exact").detail.endswith(", drafts of up to 16 tokens from the prompt")
    assert load("off", max_draft_tokens=0).detail.endswith(", no drafts")


def test_a_conversation_has_its_own_history_cached(load):
    engine = load("exact")
    history = random_tokens(GENERATOR, 3 * BLOCK)
    turns = [tail(history), tail((*history, *random_tokens(GENERATOR, 5)))]
    for conversation, hits in (("", 0), ("one", 3 * BLOCK)):
        engine.prepare([], [])
        for question in turns:
            last = run(engine, a_job(A, question=question, conversation=conversation)).last
        assert last.cached["device"] == 19 + 37 + hits
    assert run(engine, a_job(A, question=turns[1], conversation="two")).last.cached["device"] == 19 + 37


def test_requests_that_are_dropped_leave_nothing_behind(load):
    for mode in preread_adapter.MODES:
        engine = load(mode)
        for number in range(3):
            engine.submit(a_job(A, B, number=number))
        engine.step()
        engine.cancel()
        assert not engine.busy
        engine.prepare([], [])
        stats = engine._engine.stats()
        assert (stats.running, stats.waiting, stats.free_blocks) == (0, 0, stats.num_blocks)
        assert len(run(engine, a_job(A, B)).tokens) == OUTPUT


def test_a_prompt_that_the_engine_refuses_is_an_error_of_its_own(load):
    engine = load("exact")
    with pytest.raises(Exception, match="at most 256"):
        engine.submit(a_job(*[A] * 7))
    assert not engine.busy


def test_transformers_answers_one_after_the_other(tiny_folder):
    settings = {"folder": str(tiny_folder), "threads": torch.get_num_threads(), "dtype": "float32"}
    peer = OneByOne(transformers_adapter.load(settings))
    jobs = [a_job(A, B, number=0), a_job(B, number=1)]
    found = run(peer, *jobs)
    assert [one.tokens for one in found] == greedy(tiny_folder, *jobs)
    assert [len(one.events) for one in found] == [OUTPUT, OUTPUT]
    assert all(one.last.cached == {"device": 0} for one in found)
    assert all(one.events[0].started is not None for one in found)
    peer.submit(jobs[0])
    peer.step()
    assert peer.prepare([], []) == {"tokens": 0, "seconds": 0.0}
    assert not peer.busy


def test_transformers_may_choose_what_is_fastest(tiny_folder, monkeypatch):
    timed = {"float32": 0.2, "bfloat16": 0.1, "float16": 0.3}
    monkeypatch.setattr(transformers_adapter.Transformers, "_seconds", lambda _, __, dtype: timed[dtype])
    settings = {"folder": str(tiny_folder), "threads": torch.get_num_threads(), "dtype": "auto"}
    peer = transformers_adapter.load(settings)
    assert peer.detail.startswith("bfloat16")
    assert peer._model.dtype is torch.bfloat16
    monkeypatch.undo()
    assert transformers_adapter.load(settings).detail.split(",")[0] in transformers_adapter.DTYPES
