"""The shadow check: what it looks at, what it finds, and when it turns chunk reuse off."""

import logging
import time
from functools import partial
from threading import Event as ThreadEvent
from types import SimpleNamespace

import pytest
import torch
from certify_helpers import a_certificate, a_row
from engine_helpers import passage, tail, template, tiny_engine

from engine import Engine, EngineConfig, EngineWorker, Prompt, Reuse, SamplingParams, SegmentKind
from engine.certificate import Certificates, certificate_key
from engine.errors import EngineStoppedError, QueueFullError
from engine.ladder import Outcome
from engine.output import Generation
from engine.request import FinishReason
from engine.stats import CacheReport, SegmentReport, Timings
from rag.shadow import FEWEST_CHECKS, MAX_PENDING, ShadowChecker

PROMPT = Prompt([template(range(20)), passage(range(40), "a"), passage(range(50, 90), "b"), tail(range(9))])
SURE, UNSURE = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
KL = 0.9 * torch.log(torch.tensor(0.9 / 0.5)).item() + 0.1 * torch.log(torch.tensor(0.1 / 0.5)).item()


def a_generation(*, names=("a", "b"), outcome=Outcome.SHIFTED, tokens=(1, 0, 1), logprobs=None) -> Generation:
    kinds = [(SegmentKind.TEMPLATE, "", Outcome.PATH), (SegmentKind.PASSAGE, names[0], Outcome.CANONICAL)]
    kinds += [(SegmentKind.PASSAGE, names[1], outcome), (SegmentKind.TAIL, "", Outcome.COMPUTED)]
    segments = tuple(SegmentReport(kind, name, 40, 24, rung, "device") for kind, name, rung in kinds)
    return Generation(
        tokens, "", FinishReason.STOP, 109, CacheReport(segments), Timings(0.0), forced_logprobs=logprobs
    )  # fmt: skip


class FakeWorker:
    """Answers with full prefill's or reused log-probabilities, by the kind of reuse that is asked for."""

    def __init__(self, *, full=SURE, reused=UNSURE) -> None:
        self.rows = {Reuse.EXACT: full, Reuse.CHUNK: reused}
        self.asked = []
        self.error = None
        self.open = ThreadEvent()
        self.open.set()

    def submit_sync(self, prompt, *, forced, background, namespace, as_of, reuse):
        assert background
        self.open.wait(10)
        if self.error:
            raise self.error
        self.asked.append(SimpleNamespace(prompt=prompt, forced=forced, namespace=namespace, as_of=as_of, reuse=reuse))
        return self.asked[-1]

    def stream_sync(self, handle):
        yield a_generation(logprobs=self.rows[handle.reuse].expand(len(handle.forced), -1))


def a_checker(worker, *, rate=1.0, reordered=0.05):
    certificate = a_certificate(max_passages=2, rows=(a_row(reordered=reordered),))
    return ShadowChecker(worker, rate, lambda template: certificate)


def test_drift_is_that_of_the_answer_over_reused_kv_from_full_prefill():
    worker = FakeWorker()
    checker = a_checker(worker)
    checker.observe(PROMPT, a_generation(tokens=tuple(range(2)) * 50), "c1", 7)
    checker.close()
    stats = checker.stats()
    assert (stats.checked, stats.skipped, stats.failed, stats.fallen_back) == (1, 0, 0, False)
    assert stats.drift == pytest.approx(KL, rel=1e-5)
    assert stats.allowance == pytest.approx(0.055)
    chunk, full = worker.asked
    assert (chunk.reuse, chunk.prompt, chunk.namespace) == (Reuse.CHUNK, PROMPT, "c1")
    assert chunk.as_of == full.as_of == 7
    assert [segment.kind for segment in full.prompt.segments] == [SegmentKind.TEMPLATE, SegmentKind.TAIL]
    assert full.prompt.tokens == PROMPT.tokens
    assert len(chunk.forced) == len(full.forced) == 64


def test_each_template_has_the_allowance_of_its_own_certificate():
    """Collections may have templates of their own; one that no certificate knows of is not judged by another's."""
    worker = FakeWorker()
    others = Prompt([template(range(5)), *PROMPT.segments[1:]])
    found = {
        PROMPT.segments[0].tokens: a_certificate(max_passages=2, rows=(a_row(reordered=0.05),)),
        others.segments[0].tokens: a_certificate(max_passages=2, rows=(a_row(reordered=0.2),)),
    }
    checker = ShadowChecker(worker, 1.0, found.get)
    unknown = Prompt([template(range(7)), *PROMPT.segments[1:]])
    for prompt, allowance in ((PROMPT, 0.055), (others, (0.055 + 0.22) / 2), (unknown, (0.055 + 0.22) / 2)):
        checker.observe(prompt, a_generation(), "c1", 7)
        while not checker.stats().checked + checker.stats().skipped > (prompt is not PROMPT) + (prompt is unknown):
            time.sleep(0.001)
        assert checker.stats().allowance == pytest.approx(allowance)
    checker.close()
    assert (checker.stats().checked, checker.stats().skipped, checker.stats().failed) == (2, 1, 0)
    assert all(asked.prompt.segments[0] != unknown.segments[0] for asked in worker.asked)


def test_passages_are_checked_in_the_order_in_which_they_were_read():
    worker = FakeWorker()
    checker = a_checker(worker)
    checker.observe(PROMPT, a_generation(names=("b", "a")), "c1", 7)
    checker.close()
    assert [segment.name for segment in worker.asked[0].prompt.segments] == ["template", "b", "a", "tail"]


@pytest.mark.parametrize(
    ("rate", "generation"),
    [(1.0, a_generation(outcome=Outcome.PATH)), (1.0, a_generation(tokens=())), (0.0, a_generation())],
    ids=["nothing was shifted", "no answer", "rate 0"],
)
def test_what_is_not_checked(rate, generation):
    worker = FakeWorker()
    checker = a_checker(worker, rate=rate)
    for _ in range(20):
        checker.observe(PROMPT, generation, "c1", 7)
    checker.close()
    assert worker.asked == []
    assert checker.stats().drift is checker.stats().allowance is None


def test_a_share_is_checked_and_never_more_than_can_wait():
    worker = FakeWorker()
    checker = a_checker(worker, rate=0.25)
    worker.open.clear()
    for _ in range(400):
        checker.observe(PROMPT, a_generation(), "c1", 7)
    skipped = checker.stats().skipped
    worker.open.set()
    checker.close()
    assert checker.stats().checked in (MAX_PENDING, MAX_PENDING + 1), "one may have been taken from the queue at once"
    assert 70 < checker.stats().checked + skipped < 130


def observe_many(checker, count):
    for _ in range(count):
        checked = checker.stats().checked
        checker.observe(PROMPT, a_generation(), "c1", 7)
        while checker.stats().checked == checked and not checker.stats().fallen_back:
            time.sleep(0.001)


def test_chunk_reuse_ends_where_the_mean_leaves_what_is_certified(caplog):
    checker = a_checker(FakeWorker(), reordered=KL / 2)
    with caplog.at_level(logging.WARNING):
        observe_many(checker, FEWEST_CHECKS - 1)
        assert checker.reuse(Reuse.AUTO) is Reuse.AUTO
        assert checker.reuse(Reuse.EXACT) is Reuse.EXACT
        observe_many(checker, 3)
    checker.close()
    assert checker.stats().fallen_back
    assert checker.stats().checked == FEWEST_CHECKS, "afterwards there is nothing to check"
    assert checker.reuse(Reuse.AUTO) is checker.reuse(Reuse.CHUNK) is Reuse.EXACT
    (record,) = caplog.records
    assert "rag certify" in record.message


def test_chunk_reuse_goes_on_inside_what_is_certified(caplog):
    checker = a_checker(FakeWorker(), reordered=KL)  # its interval ends above
    observe_many(checker, FEWEST_CHECKS + 8)
    checker.close()
    assert not checker.stats().fallen_back
    assert checker.reuse(Reuse.CHUNK) is Reuse.CHUNK
    assert not caplog.records


@pytest.mark.parametrize("error", [QueueFullError("full"), EngineStoppedError("stopped"), RuntimeError("broken")])
def test_a_check_that_fails_is_counted_and_the_next_one_is_made(error):
    worker = FakeWorker()
    checker = a_checker(worker)
    worker.error = error
    checker.observe(PROMPT, a_generation(), "c1", 7)
    while not checker.stats().failed:
        time.sleep(0.001)
    worker.error = None
    checker.observe(PROMPT, a_generation(), "c1", 7)
    checker.close()
    assert (checker.stats().failed, checker.stats().checked) == (1, 1)


def test_over_a_real_engine_it_leaves_the_cache_alone(tiny_folder, tmp_path):
    key = certificate_key(tiny_engine(tiny_folder).identity, PROMPT.segments[0].tokens)
    a_certificate(key=key, repair=16, max_passage_tokens=40).write(tmp_path)
    config = EngineConfig(dtype="float32", backend="reference", block_size=16, kv_cache_bytes=4 << 20)
    engine = Engine.from_pretrained(tiny_folder, config, certificates=Certificates([tmp_path]))
    worker = EngineWorker(engine).start()
    checker = ShadowChecker(worker, 1.0, partial(Certificates([tmp_path]).find, engine.identity))
    for _ in range(2):  # the first one computes what the second one reuses
        handle = worker.submit_sync(PROMPT, SamplingParams(max_tokens=8), reuse=Reuse.CHUNK, namespace="c1")
        *_, generation = worker.stream_sync(handle)
    assert generation.cache.segments[2].outcome is Outcome.SHIFTED
    before = worker.call(lambda engine: engine.cache.num_cached_blocks).result()
    checker.observe(PROMPT, generation, "c1", 7)
    while not checker.stats().checked:
        assert not checker.stats().failed
        time.sleep(0.01)
    assert worker.call(lambda engine: engine.cache.num_cached_blocks).result() == before
    worker.close()
    checker.close()
    drift = checker.stats().drift
    assert drift is not None
    assert 0 < drift < 1
