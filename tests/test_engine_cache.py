"""What requests find in the cache, and what their cache reports say."""

import random

import pytest
from engine_helpers import BLOCK, ask, check_settled, passage, random_tokens, tail, template, tiny_engine
from tiny_models import make_engine_folder

from engine import Prompt, SamplingParams

pytestmark = pytest.mark.usefixtures("one_thread")

GENERATOR = random.Random(9)
TEMPLATE = template(random_tokens(GENERATOR, 21))
PASSAGES = [passage(random_tokens(GENERATOR, n), f"p{n}") for n in (35, 48, 9, 17)]
QUESTION = tail(random_tokens(GENERATOR, 11))
SAMPLING = SamplingParams(max_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    make_engine_folder(folder, "qwen3-norms")
    return folder


@pytest.fixture
def engine(folder):
    engine = tiny_engine(folder)
    yield engine
    check_settled(engine)


def prompt_of(*order: int, question=QUESTION) -> Prompt:
    return Prompt([TEMPLATE, *(PASSAGES[i] for i in order), question])


def outcomes(result) -> list[str]:
    """The outcome of each segment, after checking that the report adds up."""
    report = result.cache
    assert sum(segment.num_tokens for segment in report.segments) == result.num_prompt_tokens
    assert report.cached_tokens == report.hit_tokens["device"] == sum(s.hit_tokens for s in report.segments)
    assert report.hit_tokens["disk"] == 0
    for segment in report.segments:
        assert segment.tier == ("device" if segment.hit_tokens else None)
        assert segment.outcome == "computed" or segment.hit_tokens == segment.num_tokens
    return [str(segment.outcome) for segment in report.segments]


def test_a_second_question_over_the_same_passages(engine):
    cold = ask(engine, prompt_of(0, 1, 2), SAMPLING)
    assert outcomes(cold) == ["computed"] * 5
    assert cold.cache.cached_tokens == 0
    assert [s.name for s in cold.cache.segments] == ["template", "p35", "p48", "p9", "tail"]
    assert [s.kind for s in cold.cache.segments] == ["template", "passage", "passage", "passage", "tail"]
    warm = ask(engine, prompt_of(0, 1, 2, question=tail([1, 2, 3])), SAMPLING)
    assert outcomes(warm) == ["path", "canonical", "path", "path", "computed"]
    assert warm.cache.cached_tokens == 21 + 35 + 48 + 9
    again = ask(engine, prompt_of(0, 1, 2), SAMPLING)
    assert again.token_ids == cold.token_ids
    assert engine.stats().totals.cached_tokens == 2 * (21 + 35 + 48 + 9)


def test_questions_at_once_over_the_same_passages(engine):
    """One computes the passages; the others wait for them and report them as found."""
    questions = [prompt_of(0, 1, question=tail([i])) for i in range(4)]
    requests = [engine.submit(question, SAMPLING) for question in questions]
    results = [list(engine.stream(request))[-1] for request in requests]
    assert outcomes(results[0]) == ["computed"] * 4
    for question, result in zip(questions[1:], results[1:], strict=True):
        assert outcomes(result) == ["path", "canonical", "path", "computed"]
        assert result.token_ids == ask(engine, question, SAMPLING).token_ids


def test_another_order(engine, folder):
    ask(engine, prompt_of(0, 1, 2), SAMPLING)
    other = ask(engine, prompt_of(1, 0, 2), SAMPLING)
    assert outcomes(other) == ["path", "computed", "computed", "computed", "computed"]
    assert other.cache.cached_tokens == 21
    seen_first = ask(engine, prompt_of(1, 2), SAMPLING)
    assert outcomes(seen_first) == ["path", "canonical", "computed", "computed"]
    assert seen_first.cache.cached_tokens == 21 + 48
    assert seen_first.token_ids == ask(tiny_engine(folder), prompt_of(1, 2), SAMPLING).token_ids


def test_a_block_in_common_is_a_partial_hit(engine):
    ask(engine, prompt_of(0), SAMPLING)
    variant = passage([*PASSAGES[0].tokens[:BLOCK], 5, 6, 7], "variant")
    result = ask(engine, Prompt([TEMPLATE, variant, QUESTION]), SAMPLING)
    assert outcomes(result) == ["path", "computed", "computed"]
    assert [s.hit_tokens for s in result.cache.segments] == [21, BLOCK, 0]


def test_precompute_makes_every_passage_canonical(engine, folder):
    assert engine.precompute(TEMPLATE, PASSAGES) == 4
    assert engine.precompute(TEMPLATE, PASSAGES) == 0
    steps = engine.stats().totals.steps
    assert engine.precompute(TEMPLATE, [PASSAGES[2], *PASSAGES]) == 0
    assert engine.stats().totals.steps == steps
    for first in range(4):
        second = (first + 1) % 4
        result = ask(engine, prompt_of(first, second), SAMPLING)
        assert outcomes(result)[:3] == ["path", "canonical", "computed"]
        assert result.token_ids == ask(tiny_engine(folder), prompt_of(first, second), SAMPLING).token_ids


def test_precompute_counts_what_it_computes(engine):
    twice = [PASSAGES[0], PASSAGES[1], passage(PASSAGES[0].tokens, "same tokens")]
    assert engine.precompute(TEMPLATE, twice) == 2
    assert engine.precompute(TEMPLATE, [*PASSAGES], namespace="other") == 4
    assert engine.precompute(TEMPLATE, PASSAGES) == 2
    assert engine.precompute(TEMPLATE, []) == 0
    assert engine.precompute(template([1, 2, 3]), PASSAGES[:1]) == 1


def test_precompute_beyond_the_pool_keeps_going(folder):
    engine = tiny_engine(folder, num_blocks=8)
    assert engine.precompute(TEMPLATE, PASSAGES) == 4
    assert engine.stats().evicted_blocks > 0
    assert outcomes(ask(engine, prompt_of(3), SAMPLING))[:2] == ["path", "canonical"]
    check_settled(engine)


def test_a_prompt_that_is_cached_whole_computes_its_last_block(engine):
    whole = Prompt([TEMPLATE, PASSAGES[0]])
    cold = ask(engine, whole, SAMPLING)
    warm = ask(engine, whole, SAMPLING)
    assert warm.token_ids == cold.token_ids
    assert outcomes(warm) == ["path", "computed"]
    assert [s.hit_tokens for s in warm.cache.segments] == [21, 32]
    text = PASSAGES[1].tokens  # a multiple of the block size
    assert ask(engine, text, SAMPLING).cache.cached_tokens == 0
    assert ask(engine, text, SAMPLING).cache.cached_tokens == len(text) - BLOCK
    assert ask(engine, [*text, 1], SAMPLING).cache.cached_tokens == len(text)


def test_namespaces_share_nothing(engine):
    ask(engine, prompt_of(0, 1), SAMPLING, namespace="a")
    assert outcomes(ask(engine, prompt_of(0, 1), SAMPLING, namespace="b")) == ["computed"] * 4
    assert outcomes(ask(engine, prompt_of(0, 1), SAMPLING)) == ["computed"] * 4
    assert outcomes(ask(engine, prompt_of(0, 1), SAMPLING, namespace="a"))[:3] == ["path", "canonical", "path"]
    engine.cache.drop_namespace("a")
    assert outcomes(ask(engine, prompt_of(0, 1), SAMPLING, namespace="a")) == ["computed"] * 4
    assert outcomes(ask(engine, prompt_of(0, 1), SAMPLING, namespace="b"))[:3] == ["path", "canonical", "path"]


ALICE = {"principal": "alice", "conversation": "c1"}


@pytest.mark.parametrize("passages", [(), (0,), (0, 2)])
def test_a_conversation_finds_its_own_tail_and_answer(engine, folder, passages):
    sampling = SamplingParams(max_tokens=30)
    first = ask(engine, prompt_of(*passages), sampling, **ALICE)
    history = (*QUESTION.tokens, *first.token_ids)
    second = prompt_of(*passages, question=tail((*history, 3, 1, 4)))
    for stranger in (
        {},
        {"principal": "alice"},
        {"principal": "alice", "conversation": "c2"},
        {"principal": "bob", "conversation": "c1"},
        {"conversation": "c1"},
        {"namespace": "elsewhere", **ALICE},
    ):
        found = ask(engine, second, SamplingParams(max_tokens=0), **stranger)
        assert found.cache.segments[-1].hit_tokens == 0, stranger
    result = ask(engine, second, sampling, **ALICE)
    # the last sampled token's KV was never needed, and only whole blocks are kept
    assert result.cache.segments[-1].hit_tokens == (len(history) - 1) // BLOCK * BLOCK > 0
    assert all(segment.hit_tokens == segment.num_tokens for segment in result.cache.segments[:-1])
    assert result.token_ids == ask(tiny_engine(folder), second, sampling).token_ids


def test_an_answer_of_8_bit_weights_is_not_kept(folder):
    """The next turn finds the prompt, and computes the answer in it anew."""
    engine = tiny_engine(folder, weights="int8", backend="cpu")
    prompt = prompt_of(0, question=tail(random_tokens(random.Random(4), 50)))
    first = ask(engine, prompt, SamplingParams(max_tokens=40), **ALICE)
    history = (*prompt.segments[-1].tokens, *first.token_ids)
    second = ask(engine, prompt_of(0, question=tail((*history, 3, 1, 4))), SAMPLING, **ALICE)
    assert second.cache.segments[-1].hit_tokens == 50 // BLOCK * BLOCK
    assert ask(engine, prompt, SAMPLING).cache.segments[-1].hit_tokens == 0, "nobody else's"


def test_turns_of_two_conversations_side_by_side(engine, folder):
    """They start with the same words and go apart; neither sees the other's blocks."""
    alone = tiny_engine(folder)
    histories = {"c1": QUESTION.tokens, "c2": QUESTION.tokens}
    for turn in range(3):
        for conversation, history in histories.items():
            prompt = prompt_of(0, question=tail(history))
            sampling = SamplingParams(max_tokens=14, temperature=1.0, seed=turn + 10 * int(conversation[1]))
            result = ask(engine, prompt, sampling, principal="alice", conversation=conversation)
            assert result.token_ids == ask(alone, prompt, sampling).token_ids
            expected = 0 if turn == 0 else (len(history) - 4) // BLOCK * BLOCK
            assert result.cache.segments[-1].hit_tokens == expected
            histories[conversation] = (*history, *result.token_ids, turn, 7, 8)


def test_a_plain_tail_is_never_found(engine):
    long = tail(random_tokens(random.Random(3), 50))
    for _ in range(3):
        result = ask(engine, prompt_of(0, question=long), SAMPLING)
        assert result.cache.segments[-1].hit_tokens == 0
    assert ask(engine, prompt_of(0, question=long), SAMPLING, **ALICE).cache.segments[-1].hit_tokens == 0


def test_text_of_a_conversation_is_its_own(engine):
    text = random_tokens(random.Random(5), 50)
    ask(engine, text, SAMPLING, **ALICE)
    assert ask(engine, text, SAMPLING).cache.cached_tokens == 0
    assert ask(engine, text, SAMPLING, principal="bob", conversation="c1").cache.cached_tokens == 48
    assert ask(engine, text, SAMPLING, **ALICE).cache.cached_tokens == 48


def test_the_report_is_of_the_first_admission(folder):
    """A request that was preempted finds its own passages when it comes back; that is no hit."""
    engine = tiny_engine(folder, num_blocks=13)
    sampling = SamplingParams(max_tokens=60)
    requests = [engine.submit(prompt_of(i), sampling) for i in (0, 3)]
    results = [list(engine.stream(request))[-1] for request in requests]
    assert results[1].num_preemptions > 0
    assert results[1].cache.cached_tokens == 0
    assert results[1].token_ids == ask(tiny_engine(folder), prompt_of(3), sampling).token_ids
    check_settled(engine)


def test_a_request_that_never_ran_has_an_empty_report(engine):
    request = engine.submit(prompt_of(0), SAMPLING)
    engine.cancel(request)
    (generation,) = engine.stream(request)
    assert generation.cache.segments == ()
    assert generation.cache.cached_tokens == 0
    assert generation.timings.first_scheduled is None
