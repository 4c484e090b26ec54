"""Answers are what their grammar says, whatever the model would like to write: a tiny random one knows no JSON."""

import asyncio
import json
import random
import re
import threading

import jsonschema_rs
import pytest
import torch
from engine_helpers import check_settled, collect
from rag_helpers import make_chat_model, make_tokenizer
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.decoders import ByteFallback, Fuse, Replace, Sequence
from tokenizers.models import BPE, WordLevel

from engine import (
    Engine,
    EngineConfig,
    EngineWorker,
    FinishReason,
    JsonObject,
    JsonSchema,
    Lark,
    Regex,
    SamplingParams,
)
from engine.constraint import Grammars
from engine.errors import ConfigError, GrammarError
from engine.tokenizer import Tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", 'b"', "ü"]}, "minItems": 1, "maxItems": 3},
        "home": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/place"}]},
    },
    "required": ["name", "age", "tags", "home"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"at": {"type": "string", "pattern": "^[0-9]{2}-[A-Z]$"}, "flat": {"type": "boolean"}},
            "required": ["at"],
            "additionalProperties": False,
        }
    },
}
SCHEMAS = {
    "person": PERSON,
    "array": {"type": "array", "items": {"type": "integer", "minimum": -3, "maximum": 99}, "maxItems": 5},
    "const": {"const": {"a": [1, None, "x"]}},
    "either": {"anyOf": [{"type": "boolean"}, {"type": "string", "minLength": 2, "maxLength": 4}]},
    "format": {"type": "string", "format": "date"},
    "tree": {
        "type": "object",
        "properties": {"left": {"$ref": "#"}},
        "additionalProperties": False,
    },
}
BAD = [
    (JsonSchema("{"), "JSON schema cannot be used: EOF"),
    (JsonSchema("true"), "JSON schema cannot be used: Expecting object"),
    (JsonSchema('{"$ref": "#"}'), "no answer can satisfy it"),
    (JsonSchema('{"type": "integer", "minimum": 5, "maximum": 3}'), "Unsatisfiable"),
    (Regex(r"[^\s\S]"), "no answer can satisfy it"),
    (JsonSchema('{"type": "strin"}'), "Invalid type: strin"),
    (JsonSchema('{"type": "array", "uniqueItems": true}'), "uniqueItems"),
    (JsonSchema('{"oneOf": [{"type": "object"}, {"type": "object", "properties": {"a": {}}}]}'), "oneOf"),
    (JsonSchema('{"$ref": "https://example.org/schema.json"}'), "example.org"),
    (JsonSchema('{"type": "string", "pattern": "(?=a)"}'), "look-ahead"),
    (Regex("(a"), "unclosed group"),
    (Lark('begin: "a"'), "no start rule"),
    (Lark("start: unknown"), "unknown"),
]


def as_grammar(schema: object) -> JsonSchema:
    return JsonSchema(json.dumps(schema))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_chat_model(tmp_path_factory.mktemp("bytes"))


def make_engine(folder, **settings) -> Engine:
    config = {"dtype": "float32", "backend": "reference", "kv_cache_bytes": 1 << 22, **settings}
    return Engine.from_pretrained(folder, EngineConfig(**config))


@pytest.fixture(scope="module")
def engine(folder, one_thread):
    return make_engine(folder)


def tokens(engine: Engine, text: str) -> list[int]:
    return engine.tokenizer.encode(text)


def ask(engine: Engine, grammar, prompt: str = "Say:", **settings):
    params = SamplingParams(**{"max_tokens": 150, "temperature": 1.0, "grammar": grammar, **settings})
    return collect(engine.stream(engine.submit(tokens(engine, prompt), params)))


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_ends_by_itself_is_valid(name, engine):
    validator = jsonschema_rs.validator_for(SCHEMAS[name], validate_formats=True)
    grammar = as_grammar(SCHEMAS[name])
    samplings = [SamplingParams(max_tokens=150, temperature=1.5, seed=seed, grammar=grammar) for seed in range(16)]
    requests = [engine.submit([5, 6, 7], sampling) for sampling in samplings]
    answers = [collect(engine.stream(request)) for request in requests]
    whole = [answer for answer in answers if answer.finish_reason is FinishReason.STOP]
    assert len(whole) >= 14, "too few answers came to their end to say anything"
    for answer in whole:
        validator.validate(json.loads(answer.text))
    assert len({answer.text for answer in whole}) >= (1 if name == "const" else 4), "the model chooses what is open"
    check_settled(engine)


def test_whether_it_is_held_to_the_schema_makes_the_difference(engine):
    texts = [ask(engine, None, seed=seed, max_tokens=20).text for seed in range(5)]
    assert not any(text.startswith("{") and text.endswith("}") for text in texts)


def test_any_object(engine):
    """Made likely to end: a random model would go on and on."""
    likely = dict.fromkeys(tokens(engine, '}]"'), 3.0)
    texts = [ask(engine, JsonObject(), seed=seed, max_tokens=120, logit_bias=likely) for seed in range(12)]
    whole = [json.loads(one.text) for one in texts if one.finish_reason is FinishReason.STOP]
    assert len(whole) >= 6
    assert all(isinstance(value, dict) for value in whole)
    assert any(whole), "not all are empty"


def test_white_space_between_the_parts_is_bounded(engine):
    """However much a model likes line feeds."""
    feed = tokens(engine, "\n")[0]
    answer = ask(engine, as_grammar(PERSON), temperature=0.0, logit_bias={feed: 100, tokens(engine, " ")[0]: 100})
    assert answer.finish_reason is FinishReason.STOP
    assert "\n\n" in answer.text
    assert "\n\n\n" not in answer.text
    assert max(map(len, re.findall(" +", answer.text))) <= 20
    jsonschema_rs.validate(PERSON, json.loads(answer.text))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_expressions_and_grammars(engine, temperature):
    for seed in range(8):
        answer = ask(engine, Regex(r"[A-F]{2,5}-\d{3}(é|ü)"), temperature=temperature, seed=seed)
        assert re.fullmatch(r"[A-F]{2,5}-\d{3}(é|ü)", answer.text)
        assert answer.finish_reason is FinishReason.STOP
    sums = Lark('start: sum\nsum: NUMBER | sum "+" NUMBER\nNUMBER: /[1-9]/')
    for seed in range(8):
        answer = ask(engine, sums, temperature=temperature, seed=seed, max_tokens=40)
        assert re.fullmatch(r"[1-9](\+[1-9])*\+?", answer.text)
        if answer.finish_reason is FinishReason.STOP:
            assert not answer.text.endswith("+")


def test_an_answer_ends_when_nothing_can_be_added(engine):
    """Without an end token, whatever is asked about ends; and where more may follow, only by one."""
    for settings in ({}, {"ignore_eos": True}, {"min_tokens": 30}):
        answer = ask(engine, Regex("abc"), **settings)
        assert (answer.text, answer.finish_reason) == ("abc", FinishReason.STOP)
        assert answer.token_ids == tuple(tokens(engine, "abc"))
    assert ask(engine, Regex("abc"), max_tokens=3).finish_reason is FinishReason.STOP
    assert ask(engine, Regex("abc"), max_tokens=2).finish_reason is FinishReason.LENGTH
    (end,) = engine.tokenizer.eos_token_ids
    open_ended = ask(engine, Regex("abc*"), logit_bias={end: 100})
    assert open_ended.token_ids == (*tokens(engine, "ab"), end)
    longer = ask(engine, Regex("abc*"), logit_bias={end: 100}, min_tokens=6)
    assert longer.token_ids == (*tokens(engine, "abcccc"), end)
    ignored = ask(engine, Regex("abc*"), logit_bias={end: 100}, ignore_eos=True)
    assert (ignored.text, ignored.finish_reason) == ("ab", FinishReason.STOP)


def test_stop_strings_and_tokens_still_end_it(engine):
    assert ask(engine, Regex("a{9}bc"), stop=["ab"]).text == "a" * 8
    assert ask(engine, Regex("a{9}bc"), stop_token_ids=tokens(engine, "b")).text == "a" * 9


def test_logprobs_are_the_models_own_and_finite(engine):
    answer = ask(engine, as_grammar(PERSON), seed=3, logprobs=5)
    free = ask(engine, None, max_tokens=1, logprobs=5, seed=3)
    assert [one.token_id for one in answer.logprobs] == list(answer.token_ids)
    assert all(-60 < value < 0 for one in answer.logprobs for _, value in (*one.top, (0, one.logprob)))
    assert answer.logprobs[0].top == free.logprobs[0].top


@pytest.mark.parametrize(("grammar", "reason"), BAD, ids=lambda value: str(value)[:40])
def test_what_cannot_be_followed_is_refused_with_the_reason(engine, grammar, reason):
    with pytest.raises(GrammarError, match=reason) as caught:
        engine.submit([1, 2, 3], SamplingParams(grammar=grammar))
    assert "<" not in str(caught.value), "no inner state"
    with pytest.raises(GrammarError, match=reason):
        engine.grammars.prepare(grammar)
    check_settled(engine)


def test_something_else_than_a_grammar_is_refused():
    with pytest.raises(ConfigError, match=r"grammar is .*JsonSchema"):
        SamplingParams(grammar='{"type": "object"}')


def test_a_model_without_an_end_cannot_be_held_to_a_grammar(tmp_path):
    make_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    grammars = Grammars(Tokenizer(tmp_path), 258)
    with pytest.raises(GrammarError, match="no token that ends an answer"):
        grammars.constraint(Regex("a"))


def test_every_kind_of_tokenizer_of_language_models(tmp_path):
    """One of pieces with single bytes as a fallback, as Llama 2 has it; one of whole words has no bytes to go by."""
    pieces = ["<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"abc", "ab", "\u2581a"]
    fast = FastTokenizer(
        BPE({piece: i for i, piece in enumerate(pieces)}, [("a", "b"), ("\u2581", "a")], byte_fallback=True)
    )
    fast.decoder = Sequence([Replace("\u2581", " "), ByteFallback(), Fuse()])
    fast.add_special_tokens(["<s>", "</s>"])
    fast.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    tokenizer = Tokenizer(tmp_path)
    for seed in range(5):
        way, chosen, generator = Grammars(tokenizer, 300).constraint(Regex("(ab|c) aé")), [], random.Random(seed)
        while not way.is_complete:
            scores = torch.zeros(300)
            way.apply(scores)
            chosen.append(generator.choice(scores.isfinite().nonzero().flatten().tolist()))
            way.accept(chosen[-1])
        assert tokenizer.decode(chosen) in ("ab aé", "c aé")

    FastTokenizer(WordLevel({"<s>": 0, "</s>": 1, "word": 2}, unk_token="<s>")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(GrammarError, match="kind of tokenizer"):
        Grammars(Tokenizer(tmp_path), 300).prepare(Regex("a"))


def test_what_becomes_too_complex_ends_alone(engine):
    """A grammar that its library gives up on in the middle of an answer costs that answer, not those beside it."""
    good = engine.submit(tokens(engine, "Say:"), SamplingParams(max_tokens=40, grammar=Regex("[ab]{30}")))
    bad = engine.submit(tokens(engine, "Say:"), SamplingParams(max_tokens=40, grammar=Regex("[ab]{30}")))
    for _ in range(4):
        engine.step()
    constraint = engine._answers[bad].sampler._constraint
    constraint._matcher.consume_token(tokens(engine, "?")[0])  # what it refuses puts it out of order
    with pytest.raises(GrammarError, match="cannot be held to its grammar any further"):
        collect(engine.stream(bad))
    assert collect(engine.stream(good)).finish_reason is FinishReason.STOP
    check_settled(engine)


def test_a_grammar_is_compiled_once(engine, monkeypatch):
    seen = []
    compile_one = Grammars._compile
    monkeypatch.setattr(Grammars, "_compile", lambda self, one: seen.append(one) or compile_one(self, one))
    grammars = Grammars(engine.tokenizer, 258)
    first, second = (grammars.constraint(Regex("a[bc]")) for _ in range(2))
    first.accept(tokens(engine, "a")[0])
    first.accept(tokens(engine, "b")[0])
    assert seen == [Regex("a[bc]")]
    assert first.is_complete
    assert not second.is_complete, "each answer has a way of its own"


def test_more_grammars_than_are_kept_are_not_compiled_between_steps(engine, monkeypatch):
    """They are compiled by those who ask, and none again by the engine's thread when its turn comes."""
    monkeypatch.setattr("engine.constraint.MOST_COMPILED", 1)
    threads = []
    compile_one = Grammars._compile
    monkeypatch.setattr(
        Grammars,
        "_compile",
        lambda self, one: threads.append(threading.current_thread().name) or compile_one(self, one),
    )
    worker = EngineWorker(Engine(engine.runner, engine.tokenizer, engine.config)).start()
    prompt, gate = tokens(engine, "Say:"), threading.Event()

    async def answer(letter):
        handle = await worker.submit(prompt, SamplingParams(max_tokens=9, grammar=Regex(f"{letter}{{3}}")))
        return collect([event async for event in worker.stream(handle)]).text

    async def answers():
        worker.call(lambda _: gate.wait(10))
        asking = [asyncio.create_task(answer(letter)) for letter in "abc"]
        async with asyncio.timeout(10):
            while len(threads) < 3:
                await asyncio.sleep(0.001)
        gate.set()
        return await asyncio.gather(*asking)

    assert asyncio.run(answers()) == ["aaa", "bbb", "ccc"]
    in_thread = worker.submit_sync(prompt, SamplingParams(max_tokens=9, grammar=Regex("d{3}")))
    assert collect(worker.stream_sync(in_thread)).text == "ddd"
    worker.close()
    assert len(threads) == 4
    assert "engine" not in threads


@pytest.mark.model
def test_a_real_model_fills_in_a_schema(smollm2):
    """What is drafted from the prompt, and computed with 8-bit weights, keeps to it too."""
    engine = Engine.from_pretrained(smollm2, EngineConfig(kv_cache_bytes=1 << 27))
    question = "Ada is 36 and lives at 12-B. Answer with her name, age, tags and home as JSON."
    chat = engine.tokenizer.render_chat([{"role": "user", "content": question}])
    prompt = engine.tokenizer.encode(chat, special_tokens=True)
    samplings = [{"temperature": 0.0}, {"temperature": 1.0, "seed": 1}]
    params = [SamplingParams(max_tokens=120, grammar=as_grammar(PERSON), **one) for one in samplings]
    answers = [collect(engine.stream(engine.submit(prompt, one))) for one in params]
    for answer in answers:
        assert answer.finish_reason is FinishReason.STOP
        jsonschema_rs.validate(PERSON, json.loads(answer.text))
    assert engine.stats().totals.drafted_tokens
