"""The benchmark's checks of itself: each holds where all is well, and fails when what it guards is broken."""

from random import Random

import pytest
from engine_helpers import passage, tail, template

from engine import Prompt
from rag.bench.peers.serving import OneByOne
from rag.bench.peers.short_adapter import load as load_short
from rag.bench.suite.asked import Asked
from rag.bench.suite.checks import TWIN, Evidence, checks_suite, judge
from rag.bench.suite.contestant import SHORT, Event
from rag.bench.suite.drawing import draw
from rag.bench.suite.experiment import Check, Drive, Experiment, WorkloadSpec
from rag.bench.suite.records import AnswerRecord, QualityRecord, WindowRecord
from rag.bench.suite.requests import BenchRequest, RequestStream

OFF, EXACT = "preread-off", "preread-exact"
SPEC = WorkloadSpec(kind="orders", count=20, k=2, length=8, pool=4)


def a_stream(spec: WorkloadSpec = SPEC, count: int = 20) -> RequestStream:
    """Requests that depend on the seed as those of a real workload do."""
    order = Random(spec.seed)
    requests = []
    for number in range(count):
        passages = [passage(range(n, n + 8)) for n in order.sample(range(50), 2)]
        prompt = Prompt([template(range(8)), *passages, tail([number])])
        requests.append(BenchRequest(number=number, time=0.0, prompt=prompt, output_tokens=4))
    return RequestStream(tuple(requests), "made up")


def verdict(check: Check, records=(), *, stream=None, make=a_stream, cores=2):
    experiment = Experiment(
        name="e", title="", drive=Drive.TURNS, workload=SPEC, contestants=(OFF,), repairs=(16, 0), checks=(check,)
    )
    evidence = Evidence(experiment, stream or a_stream(), tuple(records), cores, make)
    [record] = judge(evidence, unit="e/checks")
    assert (record.unit, record.name) == ("e/checks", check.value)
    assert record.detail
    return record


def an_answer(contestant: str, number: int, seconds: float, **changed) -> AnswerRecord:
    fields = {
        "unit": "e/0", "contestant": contestant, "request": number, "status": "ok", "arrival": 10.0 * number,
        "sent": 10.0 * number, "first": 10.0 * number + seconds, "finished": 10.0 * number + 2 * seconds, "prompt": "",
        "prompt_tokens": 40, "wanted": 4, "count": 4, "cached": {"device": 0, "disk": 0},
    }  # fmt: skip
    return AnswerRecord(**(fields | changed))


def answers_of(*, factor: float = 1.0, noise: float = 0.02, hits: int = 0, count: int = 20) -> list[AnswerRecord]:
    """Answers of the engine, of itself once more, so many times slower, and of exact reuse."""
    drawn = Random(0)
    found = []
    for number in range(count):
        seconds = drawn.uniform(0.5, 2)
        for name, times, tokens in ((OFF, 1.0, 0), (TWIN, factor, hits), (EXACT, 0.3, 16)):
            taken = times * seconds * drawn.gauss(1, noise)
            found.append(an_answer(name, number, taken, cached={"device": tokens}))
    return found


def test_reuse_that_is_off():
    found = verdict(Check.REUSE_OFF, answers_of())
    assert found.passed
    assert "0 tokens hit in 40 answers, 320 with reuse" in found.detail


@pytest.mark.parametrize(
    "broken",
    [
        {"hits": 1},
        {"factor": 0.9},
        {"factor": 1.1},
        {"noise": 0.5},  # the interval says nothing
        {"count": 5},
    ],
)
def test_reuse_that_is_not_off_or_cannot_be_told(broken):
    assert not verdict(Check.REUSE_OFF, answers_of(**broken)).passed


def test_an_engine_that_does_not_tell_its_hits_is_no_proof():
    answers = [one.model_copy(update={"cached": None}) for one in answers_of()]
    assert not verdict(Check.REUSE_OFF, answers).passed


def test_requests_that_nothing_could_hit_are_no_proof():
    answers = [one.model_copy(update={"cached": {"device": 0}}) for one in answers_of()]
    assert not verdict(Check.REUSE_OFF, answers).passed


def test_warm_up_and_what_is_short_are_not_compared():
    wild = [an_answer(TWIN, number, 60.0, warmup=True, unit="e/1") for number in range(20)]
    wild += [an_answer(TWIN, number, 60.0, status="short", unit="e/2") for number in range(20)]
    others = [one.model_copy(update={"contestant": OFF}) for one in wild]
    assert verdict(Check.REUSE_OFF, answers_of() + wild + others).passed


def kls(variant: str, kl: float, count: int = 12) -> list[QualityRecord]:
    drawn = Random(variant)
    return [
        QualityRecord(unit="e/0", request=n, variant=variant, k=4, kl=kl * drawn.uniform(0.7, 1.3))
        for n in range(count)
    ]


def test_a_wrong_shift_that_is_seen():
    right = kls("repair-16", 0.06) + kls("repair-0", 0.3)
    assert verdict(Check.WRONG_SHIFT, right + kls("wrong-shift", 0.16)).passed
    assert not verdict(Check.WRONG_SHIFT, right + kls("wrong-shift", 0.061)).passed
    assert not verdict(Check.WRONG_SHIFT, right + kls("wrong-shift", 0.01)).passed
    assert not verdict(Check.WRONG_SHIFT, right).passed
    assert not verdict(Check.WRONG_SHIFT, right + kls("wrong-shift", 0.16, count=3)).passed


def test_a_wrong_shift_needs_a_right_one():
    with pytest.raises(ValueError, match="repairs"):
        Experiment(name="e", title="", drive=Drive.QUALITY, workload=SPEC, checks=("wrong-shift",))


def test_the_seed_decides():
    assert verdict(Check.SEED).passed
    drawn = iter(range(3, 9))
    assert not verdict(Check.SEED, make=lambda spec: a_stream(SPEC.model_copy(update={"seed": next(drawn)}))).passed
    assert not verdict(Check.SEED, make=lambda spec: a_stream(SPEC)).passed, "another seed changes nothing"
    assert not verdict(Check.SEED, stream=a_stream(SPEC.model_copy(update={"seed": 7}))).passed


def answers_of_short(tokens: int = 4) -> list[AnswerRecord]:
    """What an engine that gives too few tokens, or an honest one, leaves behind."""
    found = []
    for request in a_stream(count=4).requests:
        asked, engine = Asked(request, arrival=1.0), OneByOne(load_short({}))
        engine.submit({"number": request.number, "prompt": list(request.prompt.tokens), "tokens": 2 * tokens})
        while engine.busy:
            for news in engine.step():
                asked.hear(Event(at=2.0, **{**news, "tokens": tuple(news["tokens"])}))
        found.append(asked.record("e/0", SHORT, 0.0, warmup=False))
    return found


def test_too_few_tokens_are_found_out():
    stream = a_stream(count=4)
    answers = answers_of_short(tokens=2)
    assert [(one.status, one.count, one.wanted) for one in answers] == [("short", 2, 4)] * 4
    assert verdict(Check.SHORT, answers, stream=stream).passed
    counted = [answers[0].model_copy(update={"status": "ok"}), *answers[1:]]
    assert not verdict(Check.SHORT, counted, stream=stream).passed
    assert not verdict(Check.SHORT, answers[1:], stream=stream).passed, "one was lost"
    assert not verdict(Check.SHORT, answers_of_short(tokens=4), stream=stream).passed, "it gave what was asked for"
    assert not verdict(Check.SHORT, stream=stream).passed


def test_the_generators_share_of_the_machine():
    window = WindowRecord(unit="e/0", contestant="a", seconds=10.0, generator_cpu=0.3)
    assert verdict(Check.GENERATOR, [window]).passed
    assert not verdict(Check.GENERATOR, [window], cores=1).passed
    busy = window.model_copy(update={"contestant": "b", "generator_cpu": 0.5})
    long = busy.model_copy(update={"seconds": 1000.0})
    found = verdict(Check.GENERATOR, [window, busy, long])
    assert not found.passed
    assert "2.50%" in found.detail
    assert "beside b" in found.detail
    assert not verdict(Check.GENERATOR).passed


def test_the_suite_of_checks():
    suite = checks_suite(5)
    assert {check for one in suite.experiments for check in one.checks} == set(Check)
    for one in suite.experiments:
        assert one.workload.seed == 5
        if one.drive is not Drive.QUALITY:
            assert len(draw(one.workload).times) == one.workload.count
