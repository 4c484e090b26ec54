"""The engine's surface: what it refuses, how answers end, cancellation, batching, streams in any order."""

import json
import logging
import random
import shutil

import pytest
from engine_helpers import BLOCK, ask, check_settled, collect, passage, random_tokens, tail, template, tiny_engine

from engine import FinishReason, Prompt, Reuse, SamplingParams, Segment, SegmentKind
from engine.errors import (
    ConfigError,
    PromptError,
    PromptTooLongError,
    QueueFullError,
    ReuseNotCertifiedError,
    StepFailedError,
)

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = random_tokens(random.Random(1), 37)


@pytest.fixture
def engine(tiny_folder):
    engine = tiny_engine(tiny_folder)
    yield engine
    check_settled(engine)


@pytest.fixture(scope="module")
def answer(tiny_folder):
    """The greedy answer to PROMPT, 40 tokens."""
    return ask(tiny_engine(tiny_folder), PROMPT, SamplingParams(max_tokens=40))


def test_a_prompt_too_long_for_the_model(engine):
    assert engine.max_model_len == 256
    with pytest.raises(PromptTooLongError, match="256"):
        engine.submit(random_tokens(random.Random(0), 256), SamplingParams(max_tokens=1))
    with pytest.raises(PromptTooLongError, match="257"):
        engine.submit(random_tokens(random.Random(0), 257), SamplingParams(max_tokens=0))
    whole = ask(engine, random_tokens(random.Random(0), 256), SamplingParams(max_tokens=0))
    assert (whole.token_ids, whole.finish_reason) == ((), FinishReason.LENGTH)
    nearly = ask(engine, random_tokens(random.Random(0), 253), SamplingParams(max_tokens=10))
    assert (len(nearly.token_ids), nearly.finish_reason) == (3, FinishReason.LENGTH)


def test_max_model_len_limits_prompt_and_answer(tiny_folder):
    engine = tiny_engine(tiny_folder, max_model_len=40)
    assert len(ask(engine, PROMPT, SamplingParams(max_tokens=40)).token_ids) == 3
    with pytest.raises(PromptTooLongError, match="40"):
        engine.submit(range(40), SamplingParams(max_tokens=1))
    check_settled(engine)


def test_a_prompt_too_long_for_the_pool(tiny_folder):
    engine = tiny_engine(tiny_folder, num_blocks=4)
    with pytest.raises(PromptTooLongError, match="5 KV blocks and the pool has 4"):
        engine.submit(PROMPT, SamplingParams(max_tokens=64 - 37 + 1))
    assert len(ask(engine, PROMPT, SamplingParams(max_tokens=64 - 37)).token_ids) == 27
    short = Prompt([template([1]), passage([2]), passage([3]), passage([4])])
    with pytest.raises(PromptTooLongError, match="5 KV blocks"):
        engine.submit(short, SamplingParams(max_tokens=1))
    check_settled(engine)


@pytest.mark.parametrize("prompt", [[], Prompt.from_tokens])
def test_an_empty_prompt(engine, prompt):
    with pytest.raises(PromptError, match="no tokens"):
        engine.submit(prompt if isinstance(prompt, list) else prompt([]))
    with pytest.raises(PromptError, match="at least one segment"):
        Prompt([])


@pytest.mark.parametrize("token", [97, -1, 10**9])
def test_a_token_outside_the_vocabulary(engine, token):
    with pytest.raises(ConfigError, match=str(token)):
        engine.submit([1, token, 2])


TWO_PASSAGES = Prompt([template([1, 2, 3]), passage([4] * 20), passage([5] * 20), tail([6, 7])])


def test_chunk_reuse_is_refused_without_a_certificate(engine):
    with pytest.raises(ReuseNotCertifiedError, match="rag certify"):
        engine.submit(TWO_PASSAGES, reuse=Reuse.CHUNK)


def test_auto_reuse_runs_exact_and_warns_once(engine, caplog):
    exact = ask(engine, TWO_PASSAGES, SamplingParams(max_tokens=20))
    with caplog.at_level(logging.WARNING):
        results = [ask(engine, TWO_PASSAGES, SamplingParams(max_tokens=20), reuse=Reuse.AUTO) for _ in range(2)]
    assert [result.token_ids for result in results] == [exact.token_ids] * 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "exact" in caplog.text


def test_where_nothing_is_shifted_chunk_reuse_is_exact(engine, answer):
    assert ask(engine, PROMPT, SamplingParams(max_tokens=40), reuse=Reuse.CHUNK).token_ids == answer.token_ids


def test_a_full_queue(tiny_folder):
    engine = tiny_engine(tiny_folder, max_num_waiting=2, max_num_seqs=1)
    sampling = SamplingParams(max_tokens=3)
    accepted = [engine.submit(PROMPT, sampling) for _ in range(2)]
    with pytest.raises(QueueFullError, match="2 requests"):
        engine.submit(PROMPT, sampling)
    engine.step()
    accepted.append(engine.submit(PROMPT, sampling))
    with pytest.raises(QueueFullError):
        engine.submit(PROMPT, sampling)
    assert len({collect(engine.stream(request)).token_ids for request in accepted}) == 1
    check_settled(engine)


def test_an_idle_hour_does_not_count_when_the_queue_is_full(engine, monkeypatch):
    now = 100.0
    monkeypatch.setattr("engine.engine.perf_counter", lambda: now)
    ask(engine, PROMPT, SamplingParams(max_tokens=3))
    now += 3600.0
    monkeypatch.setattr(engine.scheduler, "_max_num_waiting", 4)
    requests = [engine.submit(PROMPT, SamplingParams(max_tokens=3)) for _ in range(4)]
    with pytest.raises(QueueFullError) as refused:
        engine.submit(PROMPT)
    assert refused.value.retry_after == 1.0
    assert len({collect(engine.stream(request)).token_ids for request in requests}) == 1


def test_what_fails_in_submit_leaves_nothing_queued(engine, monkeypatch):
    def fails(*args):
        raise RuntimeError("no stream")

    monkeypatch.setattr("engine.answers.OutputStream", fails)
    with pytest.raises(RuntimeError, match="no stream"):
        engine.submit(PROMPT)


def test_answers_end_at_max_tokens(engine, answer):
    for count in (1, 2, 17, 40):
        result = ask(engine, PROMPT, SamplingParams(max_tokens=count))
        assert result.token_ids == answer.token_ids[:count]
        assert result.finish_reason is FinishReason.LENGTH
        assert result.num_prompt_tokens == len(PROMPT)
    assert engine.stats().totals.output_tokens == 60


def test_times_are_in_order(engine):
    timings = ask(engine, PROMPT, SamplingParams(max_tokens=5)).timings
    assert timings.arrival < timings.first_scheduled < timings.first_token < timings.finished


def test_stats_are_a_snapshot(engine):
    before = engine.stats()
    ask(engine, PROMPT, SamplingParams(max_tokens=2))
    assert engine.stats().totals.requests == before.totals.requests + 1


def late_and_absent_token(answer) -> tuple[int, int]:
    """A token that first comes late in the answer, and one that never comes."""
    late = max(answer.token_ids, key=answer.token_ids.index)
    assert answer.token_ids.index(late) > 20
    return late, next(token for token in range(97) if token not in answer.token_ids)


def test_a_stop_token_ends_the_answer_and_is_not_in_its_text(engine, answer):
    stop, absent = late_and_absent_token(answer)
    at = answer.token_ids.index(stop)
    result = ask(engine, PROMPT, SamplingParams(max_tokens=40, stop_token_ids=[absent, stop]))
    assert result.token_ids == answer.token_ids[: at + 1]
    assert result.finish_reason is FinishReason.STOP
    assert result.text == engine.tokenizer.decode(answer.token_ids[:at])


def test_the_models_end_token(tiny_folder, tmp_path, answer):
    ending = shutil.copytree(tiny_folder, tmp_path / "ending")
    stop, absent = late_and_absent_token(answer)
    at = answer.token_ids.index(stop)
    (ending / "generation_config.json").write_text(json.dumps({"eos_token_id": [absent, stop]}))
    engine = tiny_engine(ending)
    ended = ask(engine, PROMPT, SamplingParams(max_tokens=40))
    assert (ended.token_ids, ended.finish_reason) == (answer.token_ids[: at + 1], FinishReason.STOP)
    ignoring = SamplingParams(max_tokens=40, ignore_eos=True)
    assert ask(engine, PROMPT, ignoring).token_ids == answer.token_ids
    named = SamplingParams(max_tokens=40, ignore_eos=True, stop_token_ids=[stop])
    assert ask(engine, PROMPT, named).token_ids == answer.token_ids[: at + 1]
    check_settled(engine)


def first_stop(text: str, stops: list[str]) -> str:
    ends = sorted((text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text)
    return text[: ends[0][1]] if ends else text


def test_stop_strings_anywhere_in_the_text(engine, answer):
    """Across tokens, several at once, some that never come: the text is cut as if it had come in one piece."""
    generator = random.Random(4)
    results = []
    for _ in range(60):
        stops = []
        for _ in range(generator.randint(1, 3)):
            at = generator.randrange(len(answer.text))
            stops.append(answer.text[at : at + generator.randint(1, 9)] + generator.choice(["", "", "x"]))
        result = ask(engine, PROMPT, SamplingParams(max_tokens=40, stop=stops))
        expected = first_stop(answer.text, stops)
        assert result.text == expected, stops
        assert result.token_ids == answer.token_ids[: len(result.token_ids)]
        stopped = any(stop in answer.text for stop in stops)
        assert result.finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
        if stopped:  # it ended as soon as it could
            assert not any(stop in engine.tokenizer.decode(result.token_ids[:-1]) for stop in stops)
        results.append(stopped)
    assert 10 < sum(results) < 60


def test_text_held_back_comes_when_it_did_not_become_a_stop_string(engine, answer):
    stop = answer.text[-12:] + "and more"
    *deltas, generation = engine.stream(engine.submit(PROMPT, SamplingParams(max_tokens=40, stop=[stop])))
    assert generation.text == answer.text
    assert generation.finish_reason is FinishReason.LENGTH
    assert deltas[-1].token_ids == ()
    assert deltas[-1].text == answer.text[-12:]


def test_seeds_repeat_alone_and_in_a_batch(engine):
    prompts = [random_tokens(random.Random(i), 20 + i) for i in range(6)]
    samplings = [SamplingParams(max_tokens=20, temperature=1.5, top_p=0.9, seed=i) for i in range(6)]
    alone = [ask(engine, *pair).token_ids for pair in zip(prompts, samplings, strict=True)]
    assert alone == [ask(engine, *pair).token_ids for pair in zip(prompts, samplings, strict=True)]
    batched = [engine.submit(*pair) for pair in zip(prompts, samplings, strict=True)]
    assert [collect(engine.stream(request)).token_ids for request in batched] == alone
    other = SamplingParams(max_tokens=20, temperature=1.5, top_p=0.9, seed=99)
    assert ask(engine, prompts[0], other).token_ids != alone[0]
    unseeded = SamplingParams(max_tokens=20, temperature=1.5)
    assert ask(engine, prompts[0], unseeded).token_ids != ask(engine, prompts[0], unseeded).token_ids


def test_cancelling_while_waiting_in_prefill_and_while_decoding(tiny_folder, answer):
    engine = tiny_engine(tiny_folder, max_num_seqs=3, max_num_batched_tokens=20)
    sampling = SamplingParams(max_tokens=40)
    kept = engine.submit(PROMPT, sampling)
    decoding = engine.submit(PROMPT[:10], sampling)
    for _ in range(4):
        engine.step()
    prefilling = engine.submit(random_tokens(random.Random(2), 90), sampling)
    engine.step()
    waiting = engine.submit(PROMPT, sampling)
    assert decoding.output_tokens
    assert 0 < prefilling.held.num_computed_tokens < 90
    assert next(iter(engine.scheduler.waiting)) is waiting
    for request in (waiting, prefilling, decoding):
        engine.cancel(request)
        engine.cancel(request)
        engine.check_invariants()
        generation = collect(engine.stream(request))
        assert generation.finish_reason is FinishReason.CANCELLED
        assert generation.token_ids == tuple(request.output_tokens)
        assert list(engine.stream(request)) == []
    assert engine.stats().running == 1
    assert collect(engine.stream(kept)).token_ids == answer.token_ids
    engine.cancel(kept)
    assert engine.stats().totals.cancelled == 3
    check_settled(engine)


def test_cancelling_everything_frees_every_block(tiny_folder):
    engine = tiny_engine(tiny_folder, max_num_batched_tokens=30)
    prompts = [Prompt([template(PROMPT), passage([i] * 20), tail([i])]) for i in range(5)]
    requests = [engine.submit(prompt, SamplingParams(max_tokens=9)) for prompt in prompts]
    for _ in range(6):
        engine.step()
    for request in requests:
        engine.forget(request)
    check_settled(engine)
    engine.cache.clear()
    assert engine.stats().free_blocks == engine.stats().num_blocks


def test_streams_taken_in_odd_orders(engine, answer):
    sampling = SamplingParams(max_tokens=40)
    requests = [engine.submit(PROMPT, sampling) for _ in range(4)]
    last = engine.stream(requests[3])
    next(last)
    assert collect(engine.stream(requests[1])).token_ids == answer.token_ids
    streams = [engine.stream(requests[0]), engine.stream(requests[2])]
    events = [[], []]
    for _ in range(41):
        for stream, taken in zip(streams, events, strict=True):
            taken.append(next(stream))
    assert [collect(taken).token_ids for taken in events] == [answer.token_ids] * 2
    assert [next(stream, None) for stream in streams] == [None, None]
    assert sum(1 for _ in last) == 40


def test_generate_takes_more_prompts_than_may_wait(tiny_folder, answer):
    engine = tiny_engine(tiny_folder, max_num_waiting=2, max_num_seqs=2)
    prompts = [PROMPT[i:] for i in range(11)]
    results = engine.generate(prompts, SamplingParams(max_tokens=5))
    assert [result.num_prompt_tokens for result in results] == [len(prompt) for prompt in prompts]
    assert results[0].token_ids == answer.token_ids[:5]
    assert results[7].token_ids == ask(tiny_engine(tiny_folder), prompts[7], SamplingParams(max_tokens=5)).token_ids
    assert engine.generate([]) == []
    check_settled(engine)


def test_generate_leaves_nothing_behind_when_a_prompt_is_refused(engine):
    with pytest.raises(ConfigError):
        engine.generate([PROMPT, PROMPT[:9], [500]], SamplingParams(max_tokens=5))


def test_generate_leaves_nothing_behind_when_a_step_fails(engine, answer, monkeypatch):
    def fails(batch):
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patched:
        patched.setattr(engine.runner, "run", fails)
        with pytest.raises(StepFailedError, match="out of luck"):
            engine.generate([PROMPT, PROMPT[:9]], SamplingParams(max_tokens=5))
    check_settled(engine)
    assert ask(engine, PROMPT, SamplingParams(max_tokens=40)).token_ids == answer.token_ids


def test_twins_in_a_pool_as_large_as_one_of_them(tiny_folder):
    """The longer twin keeps copies of blocks that the tree has too; alone, it must still come to its end."""
    engine = tiny_engine(tiny_folder, num_blocks=8)
    base = tuple(range(BLOCK))
    short = engine.submit([*base, 1], SamplingParams(max_tokens=1))
    prompt = [*base, *range(40, 88)]
    result = ask(engine, prompt, SamplingParams(max_tokens=64))
    collect(engine.stream(short))
    assert result.token_ids == ask(tiny_engine(tiny_folder), prompt, SamplingParams(max_tokens=64)).token_ids
    assert result.num_preemptions > 0
    check_settled(engine)


def random_prompt(generator: random.Random) -> Prompt:
    if generator.random() < 0.3:
        return Prompt.from_tokens(PROMPT[: generator.randint(1, 37)] + random_tokens(generator, 5))
    chosen = [passage([i] * (7 + 9 * i)) for i in generator.sample(range(5), generator.randint(0, 3))]
    ending = [tail(random_tokens(generator, generator.randint(1, 20)))] if generator.random() < 0.8 else []
    return Prompt([template(PROMPT[:20]), *chosen, *ending])


@pytest.mark.parametrize("seed", [2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 12))])
def test_random_traffic_with_cancellations_in_a_tight_pool(tiny_folder, seed):
    """Whatever is cancelled, preempted and evicted around it, every answer is the one it gives alone."""
    generator = random.Random(seed)
    engine = tiny_engine(tiny_folder, num_blocks=14, max_num_seqs=5, max_num_batched_tokens=24)
    reference = tiny_engine(tiny_folder)
    open_requests, finished = {}, 0
    for _ in range(250):
        if generator.random() < 0.25:
            prompt = random_prompt(generator)
            sampling = SamplingParams(max_tokens=generator.randint(0, 25))
            conversation = generator.choice([None, None, "a", "b"])
            request = engine.submit(prompt, sampling, namespace=generator.choice("xy"), conversation=conversation)
            open_requests[request] = (prompt, sampling)
        if open_requests and generator.random() < 0.04:
            engine.cancel(generator.choice(list(open_requests)))
        engine.step()
        engine.check_invariants()
        for request in [r for r in open_requests if r.state == "finished"]:
            result = collect(engine.stream(request))
            prompt, sampling = open_requests.pop(request)
            expected = ask(reference, prompt, sampling)
            assert result.token_ids == expected.token_ids[: len(result.token_ids)]
            assert result.finish_reason in (expected.finish_reason, FinishReason.CANCELLED)
            finished += 1
    for request in open_requests:
        engine.forget(request)
    assert finished > 15
    assert engine.stats().preemptions > 0
    assert engine.stats().evicted_blocks > 0
    check_settled(engine)


def test_prompts_out_of_order_are_refused():
    text = Segment((1,), SegmentKind.TEXT)
    for segments in ([passage([1]), template([2])], [tail([1]), passage([2])], [text, passage([1])], [text, text]):
        with pytest.raises(PromptError):
            Prompt(segments)
