"""Quality of answers: every way to compute a prompt beside full prefill, and free answers of other engines."""

import random

import pytest
import torch
from certify_helpers import a_certificate, a_row
from engine_helpers import check_settled, passage, random_tokens, tail, template, tiny_engine
from rag_helpers import make_chat_model

from engine import Engine, Prompt
from engine.certificate import Band, Certificates, certificate_key
from rag.bench.certified import UNCERTIFIED_REPAIR
from rag.bench.suite import quality
from rag.bench.suite.answer_quality import answer_text, score_answers
from rag.bench.suite.checks import Evidence, judge
from rag.bench.suite.experiment import Check, Drive, Experiment, WorkloadSpec
from rag.bench.suite.quality import Meter, run_quality
from rag.bench.suite.records import AnswerRecord
from rag.bench.suite.requests import BenchRequest, RequestStream
from rag.bench.suite.wrong_shift import wrong_shift
from rag.certify.folders import certificates_of
from rag.config import RagConfig
from rag.model_hub import ModelHub

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTH, WHOLE = 48, 64  # tokens of a passage; a repair that leaves nothing to reuse
HEAD = template(range(30))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = make_chat_model(tmp_path_factory.mktemp("models") / "tiny")
    return RagConfig(
        data_dir=folder / "data", models_dir=folder / "none", model=str(folder), embedder=str(folder),
        engine={"dtype": "float32", "backend": "reference", "kv_cache_bytes": 8 << 20},
    )  # fmt: skip


@pytest.fixture(scope="module")
def engine(config):
    certificates = certificates_of(ModelHub(config.models_dir), config.model)
    return Engine.from_pretrained(config.model, config.engine.build(), certificates=certificates)


def a_request(number: int = 0, k: int = 3, **changed) -> BenchRequest:
    drawn = random.Random(number)
    passages = [passage(random_tokens(drawn, LENGTH), str(n)) for n in range(k)]
    prompt = Prompt([HEAD, *passages, tail(random_tokens(drawn, 9))])
    return BenchRequest(**({"number": number, "time": 0.0, "prompt": prompt, "output_tokens": 6} | changed))


def an_experiment(*repairs: int, checks=()) -> Experiment:
    workload = WorkloadSpec(kind="orders", count=3)
    return Experiment(name="q", title="", drive=Drive.QUALITY, workload=workload, repairs=repairs, checks=checks)


def measure(engine, request, *repairs, checks=(), certificates=None):
    meter = Meter(engine, an_experiment(*repairs, checks=checks), certificates or Certificates(()))
    records = meter.measure(request, "q/0")
    return {record.variant: record for record in records}


def test_every_way_beside_full_prefill(config):
    stream = RequestStream(tuple(a_request(number) for number in range(3)), "made up")
    records = list(run_quality(an_experiment(0, 16, WHOLE), stream, config, unit="q/0"))
    names = {"full", "none", "order", "repair-0", "repair-16", f"repair-{WHOLE}", "chunk"}
    assert [(one.request, one.variant) for one in records] == [(n, r.variant) for n in range(3) for r in records[:7]]
    assert {one.variant for one in records} == names
    assert {(one.unit, one.k, one.gold, one.gold_f1) for one in records} == {("q/0", 3, None, None)}
    kl = {name: sum(one.kl for one in records if one.variant == name) for name in names}
    assert kl["full"] == 0
    assert kl[f"repair-{WHOLE}"] < 1e-9 < kl["repair-16"] < kl["repair-0"]
    assert min(kl["none"], kl["order"]) > kl["repair-16"]
    for one in records:
        if one.variant in ("full", f"repair-{WHOLE}"):
            assert (one.f1, one.top1) == (1, 1)
        assert one.ttft_ms > 0
    for number in range(3):
        [full] = {one.full_ms for one in records if one.request == number}
        assert [full] == [one.ttft_ms for one in records if (one.request, one.variant) == (number, "full")]


def test_nothing_is_left_behind_and_nothing_is_found(engine, monkeypatch):
    seen = []
    ask = quality.ask_all

    def asked(engine, questions, *, max_tokens):
        found = ask(engine, questions, max_tokens=max_tokens)
        seen.extend(
            (name, max_tokens, one.cache.cached_tokens) for (_, name, _), one in zip(questions, found, strict=True)
        )
        return found

    monkeypatch.setattr(quality, "ask_all", asked)
    for _ in range(2):
        measure(engine, a_request(output_tokens=100), 16)
        check_settled(engine)
        assert engine.stats().cached_blocks == 0
    timed = {(name, cached) for name, tokens, cached in seen if tokens == 1}
    reused, due = (30 + LENGTH + 2 * (LENGTH - repair) for repair in (16, UNCERTIFIED_REPAIR))
    assert timed == {
        ("full", 0),
        ("quality/order", 0),
        ("quality/none", 0),
        ("quality/read", reused),
        ("quality/read", due),
    }
    assert {tokens for _, tokens, _ in seen} == {1, 0, quality.MAX_TOKENS}, "answers are no longer than that"


def test_what_has_no_order_has_no_pieces(engine):
    assert set(measure(engine, a_request(k=1), 16)) == {"full", "none"}
    assert set(measure(engine, a_request(k=0), 16)) == {"full"}


def test_chunk_reuse_at_the_certified_repair_or_the_one_that_is_due(config, engine):
    key = certificate_key(engine.identity, HEAD.tokens)
    bands = (Band(min_passages=2, max_passages=3, repair=16),)
    rows = tuple(a_row(passages=k, repair=16) for k in (2, 3))
    path = a_certificate(key=key, bands=bands, rows=rows).write(
        ModelHub(config.models_dir).resolve(config.model) / "certificates"
    )
    try:
        certificates = certificates_of(ModelHub(config.models_dir), config.model)
        certified = Engine.from_pretrained(config.model, config.engine.build(), certificates=certificates)
        found = measure(certified, a_request(), 0, 16, certificates=certificates)
        assert found["chunk"].kl == pytest.approx(found["repair-16"].kl, abs=1e-6)
        assert found["chunk"].kl < found["repair-0"].kl
        found = measure(certified, a_request(k=4), 16, 32, certificates=certificates)
        assert found["chunk"].kl == pytest.approx(found["repair-16"].kl, abs=1e-6), "of the most that are certified"
    finally:
        path.unlink()
    found = measure(engine, a_request(), 16, UNCERTIFIED_REPAIR)
    assert found["chunk"].kl == pytest.approx(found[f"repair-{UNCERTIFIED_REPAIR}"].kl, abs=1e-6)
    assert found["chunk"].kl < found["repair-16"].kl


def test_the_threads_are_those_of_the_run_and_given_back(config, monkeypatch):
    before, seen = torch.get_num_threads(), []
    measured = Meter.measure

    def watched(meter, request, unit):
        seen.append(torch.get_num_threads())
        return measured(meter, request, unit)

    monkeypatch.setattr(Meter, "measure", watched)
    stream = RequestStream((a_request(k=0), a_request(1, k=0)), "made up")
    for threads in (before + 1, None):
        assert len(list(run_quality(an_experiment(0), stream, config, unit="q/0", threads=threads))) == 2
        assert torch.get_num_threads() == before
    assert seen == [before + 1] * 2 + [before] * 2


def test_gold_texts_are_looked_for(engine):
    [answer] = [one.text for one in engine.generate([a_request().prompt])]
    found = measure(engine, a_request(golds=("never said", answer[:3])), 0)
    assert found["full"].gold
    assert found["full"].gold_f1 is not None
    assert not measure(engine, a_request(golds=("never said",)), 0)["full"].gold


@pytest.fixture(scope="module")
def shallow(tmp_path_factory):
    """An engine of one layer, whose keys and values know nothing of context: reuse moves nothing where it is right."""
    return tiny_engine(make_chat_model(tmp_path_factory.mktemp("models") / "shallow", layers=1))


def judged(engine, count: int = 8):
    """The verdict on a wrong shift, over as many requests."""
    experiment = an_experiment(0, checks=(Check.WRONG_SHIFT,))
    meter, requests = Meter(engine, experiment, Certificates(())), [a_request(number) for number in range(count)]
    records = [record for request in requests for record in meter.measure(request, "q/0")]
    [verdict] = judge(Evidence(experiment, RequestStream(tuple(requests), ""), records, 1, None), unit="q/checks")
    return verdict


def test_a_wrong_shift_is_seen_and_the_check_fails_where_the_shift_is_right(shallow, monkeypatch):
    verdict = judged(shallow)
    assert verdict.passed, verdict.detail
    monkeypatch.setattr(quality, "wrong_shift", lambda engine: wrong_shift(engine, by=0))
    assert not judged(shallow).passed


def test_a_wrong_shift_breaks_reuse_alone_and_ends_with_its_block(shallow):
    with wrong_shift(shallow):
        broken = measure(shallow, a_request(), 0, 16, WHOLE)
    assert broken["repair-0"].kl > 5e-5
    assert broken["repair-16"].kl > 5e-5
    assert broken[f"repair-{WHOLE}"].kl < 1e-6, "nothing is shifted there"
    sound = measure(shallow, a_request(), 0, checks=(Check.WRONG_SHIFT,))
    assert sound["repair-0"].kl < 1e-6, "what float32 leaves"
    assert sound["wrong-shift"].kl == pytest.approx(broken["repair-0"].kl, rel=0.01)


def an_answer(contestant: str, tokens, number: int = 0, **changed) -> AnswerRecord:
    fields = {
        "unit": "q/0", "contestant": contestant, "request": number, "status": "ok", "arrival": 0.0, "sent": 0.0,
        "prompt": "", "prompt_tokens": 1, "wanted": len(tokens), "count": len(tokens), "tokens": tuple(tokens),
    }  # fmt: skip
    return AnswerRecord(**(fields | changed))


@pytest.fixture(scope="module")
def tokenizer(engine):
    return engine.tokenizer


def test_an_answer_ends_with_its_first_end(tokenizer):
    end = next(iter(tokenizer.eos_token_ids))
    said, more = tokenizer.encode("a b"), tokenizer.encode(" c")
    assert answer_text([*said, end, *more, end], tokenizer) == "a b"
    assert answer_text([*said, *more], tokenizer) == "a b c"
    assert answer_text([end], tokenizer) == ""


def test_free_answers_of_engines(tokenizer):
    end = next(iter(tokenizer.eos_token_ids))
    asked = [a_request(n, golds=golds, question="What?") for n, golds in enumerate([("B c",), (), ("x",)])]
    stream = RequestStream((*asked, a_request(3)), "")
    say = tokenizer.encode
    answers = [
        an_answer("preread-off", [*say("a b c"), end]),
        an_answer("preread-chunk", [*say("a b"), end, *say(" c")]),
        an_answer("openvino", say("a b c"), status="short"),
        an_answer("url", [], count=5),
        an_answer("openvino", say("alone"), 1),
        an_answer("openvino", say("x alone"), 2),
        an_answer("preread-off", say("to no question"), 3),
    ]
    found = {(one.variant, one.request): one for one in score_answers("q/0", stream, answers, tokenizer)}
    assert set(found) == {("preread-off", 0), ("preread-chunk", 0), ("openvino", 2)}, "the others compare with nothing"
    full, chunk, alone = found.values()
    assert (full.f1, full.gold, full.k, full.kl, full.ttft_ms) == (1, True, 3, None, None)
    assert chunk.f1 == pytest.approx(0.8)
    assert chunk.gold is False
    assert chunk.gold_f1 == pytest.approx(0.5)
    assert (alone.f1, alone.gold) == (None, True)
    without_off = [an_answer("preread-exact", say("a b")), *answers[1:2]]
    assert [one.f1 for one in score_answers("q/0", stream, without_off, tokenizer)] == [1, 1]
