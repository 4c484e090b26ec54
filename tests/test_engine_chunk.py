"""Chunk reuse as callers see it: certificates, passages nobody has read yet, orders, forced answers, purge."""

import random
from time import perf_counter

import pytest
import torch
from certify_helpers import a_certificate
from engine_helpers import BLOCK, ask, check_settled, collect, passage, random_tokens, tail, template, tiny_engine

from engine import Generation, Prompt, Reuse, SamplingParams
from engine.errors import ConfigError, PromptTooLongError, QueueFullError, ReuseNotCertifiedError, ShareFullError
from engine.request import RequestState

pytestmark = pytest.mark.usefixtures("one_thread")

GENERATOR = random.Random(3)
TEMPLATE = template(random_tokens(GENERATOR, 19))
A, B, C = (passage(random_tokens(GENERATOR, n), name) for n, name in ((37, "a"), (32, "b"), (50, "c")))
SHORT = passage(random_tokens(GENERATOR, 9), "short")
QUESTION = tail(random_tokens(GENERATOR, 7))
CHUNK = {"reuse": Reuse.CHUNK, "uncertified_repair": BLOCK}
FOUR = SamplingParams(max_tokens=4)


@pytest.fixture
def engine(tiny_folder):
    engine = tiny_engine(tiny_folder)
    yield engine
    check_settled(engine)


def outcomes(generation: Generation) -> list[str]:
    return [f"{report.name}:{report.outcome}" for report in generation.cache.segments[1:-1]]


def answer(engine, *passages, question=QUESTION, **options) -> Generation:
    return ask(engine, Prompt([TEMPLATE, *passages, question]), FOUR, **{**CHUNK, **options})


def test_passages_that_nobody_has_read_are_read_once_and_count_as_computed(engine):
    steps = []
    run = engine.runner.run
    engine.runner.run = lambda batch: steps.append(perf_counter()) or run(batch)
    first = answer(engine, A, B, C)
    assert outcomes(first) == ["a:computed", "b:computed", "c:computed"]
    assert first.cache.cached_tokens == 0
    assert first.timings.first_scheduled is not None
    assert first.timings.first_scheduled < steps[1], "reading its passages is part of its own time"
    assert engine.missing(TEMPLATE, [A, B, C]) == []
    second = answer(engine, A, B, C)
    assert outcomes(second) == ["a:canonical", "b:shifted", "c:shifted"]
    assert second.token_ids == first.token_ids, "the same runs, the same answer"
    assert second.cache.hit_tokens == {"device": 19 + 37 + 32 - BLOCK + 50 - BLOCK, "disk": 0}
    third = answer(engine, C, A, B)
    assert outcomes(third) == ["c:canonical", "a:shifted", "b:shifted"]


def test_many_requests_for_one_new_passage_share_its_reading(engine):
    requests = [engine.submit(Prompt([TEMPLATE, A, B, tail([n])]), FOUR, **CHUNK) for n in range(1, 6)]
    assert len({other for request in requests for other in request.prerequisites}) == 1
    results = [collect(engine.stream(request)) for request in requests]
    assert all(outcomes(result)[1] == "b:computed" for result in results)


def test_who_finds_the_queue_full_leaves_nothing_that_others_wait_for(engine, monkeypatch):
    """The next one who needs the passage reads it himself, for his own share."""
    prompt = Prompt([TEMPLATE, A, B, QUESTION])
    with monkeypatch.context() as patched:
        patched.setattr(engine.scheduler, "_max_num_waiting", 0)
        with pytest.raises(QueueFullError):
            engine.submit(prompt, FOUR, principal="refused", **CHUNK)
        patched.setattr(engine.scheduler, "_max_num_waiting", 10)
        patched.setattr(engine.scheduler, "_max_share_waiting", 0)
        with pytest.raises(ShareFullError):
            engine.submit(prompt, FOUR, principal="refused", **CHUNK)
    request = engine.submit(prompt, FOUR, principal="next", **CHUNK)
    assert [other.principal for other in request.prerequisites] == ["next"]
    assert outcomes(collect(engine.stream(request)))[1] == "b:computed"


def test_whoever_is_cancelled_leaves_nothing(engine):
    for steps in range(6):
        request = engine.submit(Prompt([TEMPLATE, A, B, C, QUESTION]), FOUR, **CHUNK)
        for _ in range(steps):
            engine.step()
        engine.forget(request)
        while engine.scheduler.has_work:
            engine.step()
        check_settled(engine)
        engine.cache.clear()


def test_a_passage_that_the_repair_covers_is_computed_and_not_published(engine):
    engine.precompute(TEMPLATE, [A, B, SHORT])
    before = engine.stats().cached_blocks
    result = answer(engine, A, SHORT, B)
    assert outcomes(result) == ["a:canonical", "short:computed", "b:shifted"]
    assert engine.stats().cached_blocks == before


def test_novel_orders_never_change_the_tree(engine):
    passages = [A, B, C, SHORT]
    engine.precompute(TEMPLATE, passages)
    before = engine.stats().cached_blocks
    for _ in range(20):
        order = GENERATOR.sample(passages, 4)
        assert answer(engine, *order).cache.cached_tokens > 0
        assert engine.stats().cached_blocks == before
    assert engine.stats().evicted_blocks == 0


def test_a_certificate_decides(tiny_folder, caplog):
    engine = tiny_engine(tiny_folder)
    prompt = Prompt([TEMPLATE, A, B, QUESTION])
    certificate = a_certificate(repair=BLOCK, max_passages=3, max_passage_tokens=40)

    class Certificates:
        def find(self, identity, template_tokens):
            assert identity is engine.identity
            return certificate if template_tokens == TEMPLATE.tokens else None

    engine._intake._certificates = Certificates()
    engine.precompute(TEMPLATE, [A, B, C])
    for reuse in (Reuse.CHUNK, Reuse.AUTO):
        assert outcomes(ask(engine, prompt, FOUR, reuse=reuse)) == ["a:canonical", "b:shifted"]
    too_long = Prompt([TEMPLATE, A, C, QUESTION])
    with pytest.raises(ReuseNotCertifiedError, match="2 to 3 passages of 20 to 40 tokens, not for 2 of 37 to 50"):
        engine.submit(too_long, FOUR, reuse=Reuse.CHUNK)
    other = Prompt([template([1, 2, 3]), A, B, QUESTION])
    with pytest.raises(ReuseNotCertifiedError, match="rag certify"):
        engine.submit(other, FOUR, reuse=Reuse.CHUNK)
    assert outcomes(ask(engine, too_long, FOUR, reuse=Reuse.AUTO)) == ["a:canonical", "c:computed"]
    assert "runs as 'exact'" in caplog.text
    check_settled(engine)


@pytest.mark.parametrize("repair", [-16, 7])
def test_a_repair_is_whole_blocks(engine, repair):
    with pytest.raises(ConfigError, match=str(repair)):
        answer(engine, A, B, uncertified_repair=repair)


def test_the_pool_must_hold_canonical_and_repaired_heads(tiny_folder):
    prompt = Prompt([TEMPLATE, A, B, C, QUESTION])
    exact = prompt.num_blocks(BLOCK, extra_tokens=4)
    engine = tiny_engine(tiny_folder, num_blocks=exact)
    with pytest.raises(PromptTooLongError, match=f"the pool has {exact}"):
        engine.submit(prompt, FOUR, **CHUNK)
    assert outcomes(ask(engine, prompt, FOUR, reuse=Reuse.AUTO)) == ["a:computed", "b:computed", "c:computed"]
    tight = tiny_engine(tiny_folder, num_blocks=exact + 3)
    tight.precompute(TEMPLATE, [A, B, C])
    assert len(ask(tight, prompt, FOUR, **CHUNK).token_ids) == 4
    check_settled(tight)


def test_passages_change_places_inside_their_groups_alone(engine):
    engine.generate([Prompt([TEMPLATE, B, A, C, QUESTION])], FOUR)
    result = answer(engine, A, B, C, groups=(2, 1), reuse=Reuse.EXACT, uncertified_repair=None)
    assert outcomes(result) == ["b:canonical", "a:path", "c:path"]
    fixed = answer(engine, A, B, C, groups=(1, 2), reuse=Reuse.EXACT, uncertified_repair=None)
    assert outcomes(fixed) == ["a:computed", "b:computed", "c:computed"]
    with pytest.raises(ConfigError, match=r"\(2,\)"):
        answer(engine, A, B, C, groups=(2,))


def test_a_forced_answer_has_the_log_probabilities_of_a_plain_one(engine):
    prompt = Prompt([TEMPLATE, A, QUESTION])
    greedy = ask(engine, prompt, SamplingParams(max_tokens=12, ignore_eos=True))
    forced = ask(engine, prompt, forced=greedy.token_ids)
    assert forced.token_ids == greedy.token_ids
    assert forced.forced_logprobs is not None
    assert forced.forced_logprobs.shape == (12, 97)
    assert forced.forced_logprobs.argmax(-1).tolist() == list(greedy.token_ids)
    assert torch.allclose(forced.forced_logprobs.exp().sum(-1), torch.ones(12), atol=1e-5)
    for n, token in enumerate(greedy.token_ids):
        longer = Prompt([TEMPLATE, A, tail((*QUESTION.tokens, *greedy.token_ids[:n]))])
        alone = ask(engine, longer, forced=[token])
        assert torch.allclose(alone.forced_logprobs[0], forced.forced_logprobs[n], atol=1e-4), f"token {n}"
    odd = ask(engine, prompt, forced=[5, 4, 3])
    assert odd.token_ids == (5, 4, 3), "whatever the model says"
    assert ask(engine, prompt, FOUR).forced_logprobs is None


def test_forced_answers_beside_others_are_the_same(engine):
    prompt = Prompt([TEMPLATE, A, QUESTION])
    alone = ask(engine, prompt, forced=range(30, 50))
    other = engine.submit(Prompt([TEMPLATE, B, QUESTION]), SamplingParams(max_tokens=30, ignore_eos=True))
    together = ask(engine, prompt, forced=range(30, 50))
    assert together.token_ids == alone.token_ids
    assert torch.allclose(together.forced_logprobs, alone.forced_logprobs, atol=1e-4)
    collect(engine.stream(other))


def test_background_requests_run_while_nobody_asks(tiny_folder):
    engine = tiny_engine(tiny_folder, max_num_batched_tokens=16)
    nothing = SamplingParams(max_tokens=0)
    background = [engine.submit(Prompt([TEMPLATE, p]), nothing, background=True) for p in (A, B, C)]
    engine.step()
    asked = engine.submit(Prompt([TEMPLATE, SHORT, QUESTION]), SamplingParams(max_tokens=10, ignore_eos=True))
    before = [request.admission.num_computed_tokens if request.admission else 0 for request in background]
    while asked.state is not RequestState.FINISHED:
        engine.step()
        assert [r.admission.num_computed_tokens if r.admission else 0 for r in background] == before
    for request in background:
        collect(engine.stream(request))
    collect(engine.stream(asked))
    assert engine.missing(TEMPLATE, [A, B, C]) == []
    check_settled(engine)


@pytest.mark.parametrize("seqs", [1, 2])
def test_background_requests_yield_places_and_blocks(tiny_folder, seqs):
    engine = tiny_engine(tiny_folder, num_blocks=9, max_num_seqs=seqs, max_num_batched_tokens=16)
    background = engine.submit(Prompt([TEMPLATE, C]), SamplingParams(max_tokens=0), background=True)
    engine.step()
    answer = ask(engine, Prompt([TEMPLATE, A, QUESTION]), SamplingParams(max_tokens=30, ignore_eos=True))
    assert len(answer.token_ids) == 30
    collect(engine.stream(background))
    check_settled(engine)


def test_purged_passages_leave_the_device(engine):
    answer(engine, A, B, conversation="1")
    ask(engine, Prompt([TEMPLATE, A, C, QUESTION]), FOUR)
    assert engine.purge("", [A.tokens])
    assert engine.missing(TEMPLATE, [A, B]) == [0]
    assert not engine.cache.is_cached("", [TEMPLATE, A, C])
    assert not engine.runner.kv_cache.data[engine.cache.pool.free_blocks].any()
    held = {block for tree in engine.cache._all_trees() for node in tree.nodes() for block in node.blocks}
    assert len(held) == engine.stats().cached_blocks == 2 + 2, "the template and B"


def test_a_purge_waits_for_those_who_read(engine):
    request = engine.submit(Prompt([TEMPLATE, A, QUESTION]), SamplingParams(max_tokens=20, ignore_eos=True))
    for _ in range(5):
        engine.step()
    assert not engine.purge("", [A.tokens])
    collect(engine.stream(request))
    assert engine.missing(TEMPLATE, [A]) == [0], "it publishes nothing any more"
    assert engine.purge("", [A.tokens])
    assert engine.purge("", [B.tokens]), "what was never there is gone"


def test_who_waits_brings_nothing_back(engine):
    prompt = Prompt([TEMPLATE, A, QUESTION])
    waiting = engine.submit(prompt, FOUR)
    assert not engine.purge("", [A.tokens])
    collect(engine.stream(waiting))
    assert engine.missing(TEMPLATE, [A]) == [0]
    later = engine.submit(prompt, FOUR)
    engine.drop_namespace("")
    collect(engine.stream(later))
    assert engine.stats().cached_blocks == 0


def test_a_conversation_over_approximate_context_reads_its_own_turns_once(engine):
    engine.precompute(TEMPLATE, [A, B, C])
    mine = {"principal": "ann", "conversation": "1"}
    first = ask(
        engine, Prompt([TEMPLATE, A, B, C, QUESTION]), SamplingParams(max_tokens=30, ignore_eos=True), **CHUNK, **mine
    )
    longer = tail((*QUESTION.tokens, *first.token_ids, 8, 9))
    fresh = answer(engine, A, B, C, question=longer)
    again = answer(engine, A, B, C, question=longer, **mine)
    assert again.token_ids == fresh.token_ids
    assert again.cache.segments[-1].hit_tokens == (7 + 29) // BLOCK * BLOCK
    assert fresh.cache.segments[-1].hit_tokens == 0
    for options in ({"principal": "bob", "conversation": "1"}, {"principal": "ann", "conversation": "2"}):
        assert answer(engine, A, B, C, question=longer, **options).cache.segments[-1].hit_tokens == 0
    assert answer(engine, B, A, C, question=longer, **mine).cache.segments[-1].hit_tokens == 0, "other runs"


def test_what_is_read_in_the_background_holds_nobody_up(tiny_folder):
    """A background request waits for its passages, and no question waits for those."""
    engine = tiny_engine(tiny_folder, max_num_batched_tokens=16)
    prompt = Prompt([TEMPLATE, A, B, C, QUESTION])
    background = engine.submit(prompt, FOUR, background=True, **CHUNK)
    other = engine.submit(Prompt([TEMPLATE, SHORT, QUESTION]), SamplingParams(max_tokens=60, ignore_eos=True))
    asked = engine.submit(prompt, FOUR, **CHUNK)
    result = collect(engine.stream(asked))
    assert other.state is not RequestState.FINISHED
    assert background.state is RequestState.WAITING
    assert outcomes(result) == ["a:computed", "b:computed", "c:computed"]
    collect(engine.stream(other))
    assert outcomes(collect(engine.stream(background)))[1:] == ["b:computed", "c:computed"]
    engine.cache.clear()
    alone = engine.submit(prompt, FOUR, background=True, **CHUNK)
    engine.step()
    assert alone.state is RequestState.WAITING, "its passages are read first"
    collect(engine.stream(alone))
    assert [str(placement.outcome) for placement in alone.first_admission[2:4]] == ["shifted", "shifted"]
    cancelled = engine.submit(Prompt([TEMPLATE, B, A, C, tail([5])]), FOUR, background=True, **CHUNK)
    engine.forget(cancelled)
    while engine.scheduler.has_work:
        engine.step()
    check_settled(engine)


def test_passages_that_nobody_waits_for_any_more_are_not_read(tiny_folder):
    engine = tiny_engine(tiny_folder, max_num_seqs=1)
    running = engine.submit(Prompt([TEMPLATE, SHORT, QUESTION]), SamplingParams(max_tokens=40, ignore_eos=True))
    engine.step()
    prompts = [Prompt([TEMPLATE, A, B, tail([n])]) for n in (1, 2)] + [Prompt([TEMPLATE, A, C, QUESTION])]
    asked = [engine.submit(prompt, FOUR, **CHUNK) for prompt in prompts]
    assert len(engine.scheduler.waiting) == 3 + 2
    engine.forget(asked[0])
    assert len(engine.scheduler.waiting) == 2 + 2, "the second one still waits for B"
    engine.forget(asked[2])
    assert len(engine.scheduler.waiting) == 1 + 1
    engine.forget(asked[1])
    assert not engine.scheduler.waiting
    collect(engine.stream(running))
    check_settled(engine)
