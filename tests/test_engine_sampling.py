"""What requests ask of sampling, through the engine: settings, log-probabilities, least length; in any steps."""

import asyncio
import json
import math
import random

import pytest
import torch
from engine_helpers import ask, check_settled, collect
from rag_helpers import make_chat_model

from engine import (
    Engine,
    EngineConfig,
    EngineWorker,
    FinishReason,
    JsonObject,
    JsonSchema,
    Prompt,
    Regex,
    SamplingParams,
    Segment,
    SegmentKind,
    TokenLogprob,
)
from engine.errors import ConfigError, GrammarError
from engine.tokenizer import StopStrings

PROMPT = Prompt.from_tokens(range(70, 100))
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "ü"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
BAD = [
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("min_p", "0.1"),
    ("repetition_penalty", 0),
    ("repetition_penalty", -1.0),
    ("repetition_penalty", 101),
    ("repetition_penalty", math.nan),
    ("presence_penalty", 2.1),
    ("presence_penalty", math.nan),
    ("frequency_penalty", -2.1),
    ("frequency_penalty", True),
    ("logit_bias", {3: 101}),
    ("logit_bias", {3: math.nan}),
    ("logit_bias", {-1: 1.0}),
    ("logit_bias", {"3": 1.0}),
    ("logit_bias", [3]),
    ("logit_bias", None),
    ("min_tokens", -1),
    ("min_tokens", 257),
    ("min_tokens", 1.5),
    ("logprobs", -1),
    ("logprobs", 21),
    ("logprobs", True),
    ("grammar", "[0-9]+"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_chat_model(tmp_path_factory.mktemp("bytes"))


def make_engine(folder, **settings) -> Engine:
    config = {"dtype": "float32", "backend": "reference", "kv_cache_bytes": 1 << 22, "max_model_len": 512, **settings}
    return Engine.from_pretrained(folder, EngineConfig(**config))


@pytest.fixture(scope="module")
def engine(folder, one_thread) -> Engine:
    return make_engine(folder)


@pytest.fixture
def letter_a(engine) -> int:
    (token,) = engine.tokenizer.encode("a")
    assert token not in PROMPT.tokens
    return token


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_settings_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"^{name} is ") as caught:
        SamplingParams(**{name: value})
    assert repr(value) in str(caught.value)
    assert "it must be" in str(caught.value)


def test_the_limits_are_accepted():
    SamplingParams(min_p=0, repetition_penalty=1e-6, presence_penalty=-2, frequency_penalty=2, logprobs=20)
    SamplingParams(
        min_p=1, repetition_penalty=100, logit_bias={0: -100, 5: 100}, min_tokens=7, max_tokens=7, logprobs=0
    )


def test_a_bias_for_a_token_that_there_is_not_leaves_nothing_behind(engine):
    with pytest.raises(ConfigError, match="258"):
        engine.submit(PROMPT, SamplingParams(logit_bias={258: 1.0}))
    check_settled(engine)


def test_every_token_comes_with_its_logprob(engine):
    request = engine.submit(PROMPT, SamplingParams(max_tokens=12, logprobs=3, ignore_eos=True))
    *deltas, generation = engine.stream(request)
    for delta in deltas:
        assert [one.token_id for one in delta.logprobs] == list(delta.token_ids)
    assert [one for delta in deltas for one in delta.logprobs] == list(generation.logprobs)
    forced = ask(engine, PROMPT, forced=generation.token_ids).forced_logprobs
    assert forced is not None
    for row, token, one in zip(forced, generation.token_ids, generation.logprobs, strict=True):
        assert isinstance(one, TokenLogprob)
        assert one.top[0] == (token, one.logprob), "greedy takes the likeliest"
        best = row.topk(3)
        assert [found for found, _ in one.top] == best.indices.tolist()
        assert torch.allclose(torch.tensor([value for _, value in one.top]), best.values, atol=1e-4)


def test_nobody_is_told_what_he_did_not_ask_for(engine):
    *deltas, generation = engine.stream(engine.submit(PROMPT, SamplingParams(max_tokens=5)))
    assert generation.logprobs == ()
    assert not any(delta.logprobs for delta in deltas)
    counted = ask(engine, PROMPT, SamplingParams(max_tokens=5, logprobs=0))
    assert [one.top for one in counted.logprobs] == [()] * 5


def test_logprobs_reach_to_the_token_that_ends_the_answer(engine):
    free = ask(engine, PROMPT, SamplingParams(max_tokens=30, ignore_eos=True, temperature=3.0, seed=2))
    letter = next(c for c in free.text if c.isascii() and c.isprintable())
    for ending in ({"stop_token_ids": [free.token_ids[20]]}, {"stop": [letter]}):
        params = SamplingParams(max_tokens=30, ignore_eos=True, temperature=3.0, seed=2, logprobs=1, **ending)
        answer = ask(engine, PROMPT, params)
        assert answer.finish_reason is FinishReason.STOP
        assert [one.token_id for one in answer.logprobs] == list(answer.token_ids)


def test_no_token_ends_an_answer_too_early(engine):
    free = ask(engine, PROMPT, SamplingParams(max_tokens=40, ignore_eos=True)).token_ids
    first = free[0]
    short = ask(engine, PROMPT, SamplingParams(max_tokens=40, ignore_eos=True, stop_token_ids=[first]))
    assert short.token_ids == (first,)
    long = ask(engine, PROMPT, SamplingParams(max_tokens=40, ignore_eos=True, stop_token_ids=[first], min_tokens=10))
    assert first not in long.token_ids[:10]
    assert len(long.token_ids) > 10


def test_stop_strings_count_from_the_least_length_on(engine, letter_a):
    free = ask(engine, PROMPT, SamplingParams(max_tokens=60, ignore_eos=True, logit_bias={letter_a: 100}))
    assert free.text == "a" * 60
    for least in (0, 1, 7, 30):
        params = SamplingParams(
            max_tokens=60, ignore_eos=True, logit_bias={letter_a: 100}, min_tokens=least, stop=["aaa"]
        )
        answer = ask(engine, PROMPT, params)
        assert answer.finish_reason is FinishReason.STOP
        assert len(answer.token_ids) == max(least + 1, 3)


def test_a_stop_string_that_begins_too_early_counts_when_it_ends():
    stops = StopStrings(["END"])
    assert stops.push("xENDyE", armed=False) == ("xENDy", False)
    assert stops.push("ND more") == ("", True)
    assert StopStrings(["ab"]).push("ab", armed=False) == ("ab", False)


def test_penalties_count_the_answer_and_repetition_the_prompt_too(engine, letter_a):
    """By what greedy answers do once a bias has made one token the likeliest by far."""
    likely = {"logit_bias": {letter_a: 50.0}, "ignore_eos": True, "max_tokens": 4}
    assert ask(engine, PROMPT, SamplingParams(**likely)).text == "aaaa"
    assert set(ask(engine, PROMPT, SamplingParams(frequency_penalty=2.0, **likely)).text) == {"a"}
    once = ask(engine, PROMPT, SamplingParams(repetition_penalty=100.0, **likely)).token_ids
    assert once[0] == letter_a, "the prompt has no a"
    assert letter_a not in once[1:]
    with_a = Prompt.from_tokens([*PROMPT.tokens, letter_a])
    assert ask(engine, with_a, SamplingParams(repetition_penalty=100.0, **likely)).token_ids[0] != letter_a


def test_a_worker_refuses_a_bad_grammar_and_goes_on(engine):
    worker = EngineWorker(engine).start()
    try:
        with pytest.raises(GrammarError, match="unclosed"):
            worker.submit_sync(PROMPT, SamplingParams(grammar=Regex("(")))

        async def ask_both():
            with pytest.raises(GrammarError, match="unclosed"):
                await worker.submit(PROMPT, SamplingParams(grammar=Regex("(")))
            handle = await worker.submit(PROMPT, SamplingParams(grammar=Regex("[xy]{4}")))
            return [event async for event in worker.stream(handle)]

        answer = collect(asyncio.run(ask_both()))
        assert len(answer.text) == 4
        assert set(answer.text) <= {"x", "y"}
        worker.call(check_settled).result()
    finally:
        worker.close()


def songs(generator: random.Random) -> tuple[Prompt, SamplingParams]:
    """A prompt that an answer may copy from, and any way to sample."""
    text = json.dumps({"name": "Orrin", "age": 33, "tags": ["a", "ü"], "home": {"at": "12-B"}})
    head = Segment(tuple(text.encode()), SegmentKind.TEMPLATE, "head")
    end = Segment(tuple(generator.randrange(200) for _ in range(generator.randint(1, 30))), SegmentKind.TAIL)
    chosen = {"temperature": generator.choice([0.0, 0.7, 1.3]), "seed": generator.randrange(99)}
    wanted = {
        "repetition_penalty": generator.choice([1.0, 1.2]),
        "frequency_penalty": generator.choice([0.0, 0.1]),
        "min_p": generator.choice([0.0, 0.01]),
        "min_tokens": generator.choice([0, 20]),
        "logprobs": generator.choice([None, 2]),
        "logit_bias": generator.choice([{}, {34: 1.5}]),
        "grammar": generator.choice([None, JsonSchema(json.dumps(PERSON)), Regex("(na|ma|ba){3,30}"), JsonObject()]),
    }
    return Prompt([head, end]), SamplingParams(max_tokens=generator.randint(20, 80), **chosen, **wanted)


@pytest.fixture(scope="module")
def alone(folder, one_thread):
    """Requests and their answers one by one, without drafts."""
    generator, engine = random.Random(11), make_engine(folder, max_draft_tokens=0)
    pairs = [songs(generator) for _ in range(20)]
    return [(*pair, collect(engine.stream(engine.submit(*pair)))) for pair in pairs]


class Parrot:
    """Drafts the known answer, with mistakes."""

    def __init__(self) -> None:
        self.answers = {}
        self.random = random.Random(5)

    def propose(self, request, limit, decode_rows):
        at = len(request.output_tokens)
        right = self.answers[request][at : at + self.random.randint(0, max(limit, 0))]
        return tuple(token if self.random.random() < 0.85 else self.random.randrange(258) for token in right)

    def forget(self, request):
        self.answers.pop(request, None)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_batched_tokens": 40, "max_num_seqs": 5},
        {"kv_cache_bytes": 1 << 17},
        {"max_draft_tokens": 0, "kv_cache_bytes": 1 << 17},
    ],
    ids=["together", "in chunks", "preempted", "preempted without drafts"],
)
def test_answers_are_those_of_each_request_alone(settings, folder, alone):
    """In batches, with drafts, prefilled in chunks, preempted: tokens, ends and log-probabilities stay the same."""
    engine = make_engine(folder, **settings)
    if settings.get("max_draft_tokens", 1):
        engine.scheduler.drafts = Parrot()
    requests = [engine.submit(prompt, params) for prompt, params, _ in alone]
    for request, (_, _, expected) in zip(requests, alone, strict=True):
        if settings.get("max_draft_tokens", 1):
            engine.scheduler.drafts.answers[request] = expected.token_ids
    while engine.scheduler.has_work:
        engine.step()
        engine.check_invariants()
    for request, (_, params, expected) in zip(requests, alone, strict=True):
        answer = collect(engine.stream(request))
        assert answer.token_ids == expected.token_ids, params
        assert (answer.text, answer.finish_reason) == (expected.text, expected.finish_reason)
        assert [one.token_id for one in answer.logprobs] == [one.token_id for one in expected.logprobs]
        for one, other in zip(answer.logprobs, expected.logprobs, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
    totals = engine.stats()
    assert bool(totals.totals.accepted_tokens) == bool(settings.get("max_draft_tokens", 1))
    assert (totals.preemptions > 0) == ("kv_cache_bytes" in settings)
    check_settled(engine)
