"""Answers with drafts are those without: greedy and seeded, batched, cut short, preempted, cancelled."""

import random

import pytest
import torch
from engine_helpers import BLOCK, ask, check_settled, collect, passage, random_tokens, tail, template, tiny_engine

from engine import Engine, FinishReason, Generation, Prompt, SamplingParams
from engine.drafts import Drafts
from engine.request import Request
from engine.sampler import Sampler, sample_rows

pytestmark = pytest.mark.usefixtures("one_thread")

GENERATOR = random.Random(12)
TEMPLATE = template(random_tokens(GENERATOR, 18))
PASSAGES = [passage(random_tokens(GENERATOR, n)) for n in (40, 25, 33)]


class Guesses(Drafts):
    """Drafts that know the answer a request will give, with wrong tokens by chance."""

    def __init__(self) -> None:
        super().__init__(0)
        self.answers: dict[Request, tuple[int, ...]] = {}
        self.random = random.Random(5)

    def propose(self, request: Request, limit: int, decode_rows: int) -> tuple[int, ...]:
        at = len(request.output_tokens)
        right = self.answers[request][at : at + self.random.randint(0, max(limit, 0))]
        return tuple(token if self.random.random() < 0.85 else self.random.randrange(97) for token in right)

    def forget(self, request: Request) -> None:
        self.answers.pop(request, None)


def drafting(folder, **settings) -> Engine:
    engine = tiny_engine(folder, **settings)
    engine.scheduler.drafts = Guesses()
    return engine


def plain(folder, **settings) -> Engine:
    return tiny_engine(folder, max_draft_tokens=0, **settings)


def submit(engine: Engine, prompt: Prompt, sampling: SamplingParams, answer: Generation, **settings) -> Request:
    """Queue a prompt whose answer, or the beginning of it, is known."""
    request = engine.submit(prompt, sampling, **settings)
    engine.scheduler.drafts.answers[request] = answer.token_ids
    return request


def random_prompt(generator: random.Random) -> Prompt:
    chosen = generator.sample(PASSAGES, generator.randint(0, 2))
    ending = [tail(random_tokens(generator, generator.randint(1, 20)))] if generator.random() < 0.8 else []
    return Prompt([TEMPLATE, *chosen, *ending])


def random_sampling(generator: random.Random) -> SamplingParams:
    seeded = {"temperature": generator.choice([0.3, 1.0]), "top_p": 0.95, "seed": generator.randrange(9)}
    return SamplingParams(max_tokens=generator.randint(1, 60), **generator.choice([{}, {}, seeded]))


@pytest.fixture(scope="module")
def asked(tiny_folder):
    """Prompts, ways of sampling, and the answers without drafts."""
    generator, engine = random.Random(3), plain(tiny_folder)
    pairs = [(random_prompt(generator), random_sampling(generator)) for _ in range(16)]
    cases = [(*pair, ask(engine, *pair)) for pair in pairs]
    assert engine.stats().totals.drafted_tokens == engine.stats().totals.accepted_tokens == 0
    return cases


def test_alone(tiny_folder, asked):
    engine = drafting(tiny_folder)
    for case in asked:
        result = collect(engine.stream(submit(engine, *case)))
        assert (result.token_ids, result.text) == (case[2].token_ids, case[2].text)
    totals = engine.stats().totals
    assert 0 < totals.accepted_tokens < totals.drafted_tokens
    assert totals.output_tokens == sum(len(answer.token_ids) for _, _, answer in asked)
    assert totals.steps == totals.output_tokens - totals.accepted_tokens
    check_settled(engine)


@pytest.mark.parametrize(
    "settings", [{}, {"num_blocks": 14}, {"max_num_batched_tokens": 24, "max_num_seqs": 3}], ids=str
)
def test_together(tiny_folder, asked, settings):
    engine = drafting(tiny_folder, **settings)
    requests = [submit(engine, *case) for case in asked]
    while engine.scheduler.has_work:
        engine.step()
        engine.check_invariants()
    for request, (_, _, answer) in zip(requests, asked, strict=True):
        assert collect(engine.stream(request)).token_ids == answer.token_ids
    assert engine.stats().totals.accepted_tokens > 20
    assert (engine.stats().preemptions > 0) == ("num_blocks" in settings)
    check_settled(engine)


def test_cancelled_at_any_step(tiny_folder, asked):
    generator, engine, running = random.Random(8), drafting(tiny_folder, num_blocks=16), {}
    for _ in range(150):
        if generator.random() < 0.3:
            case = generator.choice(asked)
            running[submit(engine, *case)] = case[2]
        if running and generator.random() < 0.1:
            engine.cancel(generator.choice(list(running)))
        engine.step()
        engine.check_invariants()
        for request in [r for r in running if r.state == "finished"]:
            result, expected = collect(engine.stream(request)), running.pop(request)
            assert result.token_ids == expected.token_ids[: len(result.token_ids)]
            assert result.finish_reason in (expected.finish_reason, FinishReason.CANCELLED)
    for request in running:
        engine.forget(request)
    assert engine.stats().totals.accepted_tokens > 20
    assert engine.stats().preemptions > 0
    assert not engine.scheduler.drafts.answers
    check_settled(engine)


def test_answers_end_inside_a_draft_as_without(tiny_folder):
    engine, other = drafting(tiny_folder), plain(tiny_folder)
    prompt = random_prompt(random.Random(2))
    answer = ask(other, prompt, SamplingParams(max_tokens=60))
    late = [token for token in answer.token_ids if answer.token_ids.index(token) > 2]
    words = answer.text.split()
    endings = [{"max_tokens": n} for n in range(1, 61, 3)]
    endings += [{"max_tokens": 60, "stop_token_ids": [token]} for token in late[::5]]
    endings += [{"max_tokens": 60, "stop": [" ".join(words[i : i + 2])]} for i in range(0, 55, 7)]
    for ending in endings:
        expected = ask(other, prompt, SamplingParams(**ending))
        result = collect(engine.stream(submit(engine, prompt, SamplingParams(**ending), answer)))
        assert result.token_ids == expected.token_ids
        assert (result.text, result.finish_reason) == (expected.text, expected.finish_reason)
    assert engine.stats().totals.accepted_tokens > 100
    check_settled(engine)


def test_a_conversation_finds_as_much_of_its_answer_as_without(tiny_folder):
    prompt = random_prompt(random.Random(2))
    answer = ask(plain(tiny_folder), prompt, SamplingParams(max_tokens=60))
    engine = drafting(tiny_folder)
    *head, last = prompt.segments
    for count in range(25, 60, 3):
        alice = {"principal": "alice", "conversation": str(count)}
        history = (*last.tokens, *answer.token_ids[:count])
        endings = [SamplingParams(max_tokens=count), SamplingParams(max_tokens=99, stop_token_ids=[history[-1]])]
        sampling = endings[history[-1] not in history[:-1]]
        first = collect(engine.stream(submit(engine, prompt, sampling, answer, **alice)))
        assert (*last.tokens, *first.token_ids) == history
        second = engine.submit(Prompt([*head, tail((*history, 1))]), SamplingParams(max_tokens=0), **alice)
        assert collect(engine.stream(second)).cache.segments[-1].hit_tokens == (len(history) - 1) // BLOCK * BLOCK
    assert engine.stats().totals.accepted_tokens > 100
    check_settled(engine)


def test_a_text_that_repeats_itself_is_drafted_by_the_engine_itself(tiny_folder, monkeypatch):
    """Its own drafts, with a model that has learned one song."""
    song, engine = [5, 6, 7, 8, 9], tiny_engine(tiny_folder)

    def sing(batch):
        logits = torch.zeros(len(batch.logit_rows), 97)
        logits[range(len(logits)), [song[(i + 1) % 5] for i in batch.positions[batch.logit_rows].tolist()]] = 1
        return logits

    monkeypatch.setattr(engine.runner, "run", sing)
    answer = ask(engine, song * 4, SamplingParams(max_tokens=50))
    assert answer.token_ids == tuple(song * 10)
    assert engine.stats().totals.accepted_tokens > 30
    check_settled(engine)


def test_a_question_is_answered_in_the_same_steps_each_time(tiny_folder):
    """Drafts follow from the tokens alone, not from how long steps took: so the answer is the same in any numbers."""
    engine = tiny_engine(tiny_folder, dtype="float16", backend="auto")
    shapes: list[list[int]] = []
    answers = []
    run = engine.runner.run

    def spy(batch):
        shapes[-1].append(len(batch.token_ids))
        return run(batch)

    engine.runner.run = spy
    for _ in range(4):
        shapes.append([])
        answers.append(ask(engine, [5, 6, 7, 8] * 6, SamplingParams(max_tokens=40, ignore_eos=True)).token_ids)
    assert engine.stats().totals.drafted_tokens > 0
    assert shapes[1] == shapes[2] == shapes[3]
    assert answers[1] == answers[2] == answers[3]
    check_settled(engine)


@pytest.mark.parametrize("settings", [{"temperature": 1.0}, {"temperature": 2.0, "top_k": 5, "top_p": 0.9}, {}])
def test_rows_are_sampled_as_without_drafts(settings):
    """Right or wrong drafts of any length change neither the tokens nor the random numbers that follow."""
    generator, torch_generator = random.Random(1), torch.Generator().manual_seed(3)
    for seed in range(60):
        logits = torch.randn(12, 7, generator=torch_generator)
        params = SamplingParams(seed=seed, **settings)
        one_by_one = Sampler(params)
        expected = [one_by_one.sample(row) for row in logits]
        sampler, tokens = Sampler(params), list[int]()
        while len(tokens) < 12:
            length = generator.randint(0, 11 - len(tokens))
            at = len(tokens)
            draft = [t if generator.random() < 0.8 else generator.randrange(7) for t in expected[at : at + length]]
            (chosen,) = sample_rows(logits[at : at + length + 1], [sampler], [draft])
            right = next((i for i, t in enumerate(draft) if t != expected[at + i]), length)
            assert len(chosen) == right + 1
            tokens += chosen
        assert tokens == expected


def test_each_request_takes_its_own_rows():
    logits = torch.eye(6)
    samplers = [Sampler(SamplingParams()) for _ in range(3)]
    assert sample_rows(logits, samplers, [[], [4, 2], [3]]) == [[0], [1], [4]]
    assert sample_rows(logits, samplers, [[], [1, 2], [4]]) == [[0], [1, 2, 3], [4, 5]]
    assert sample_rows(logits, samplers, [[0, 1, 3], [], []]) == [[0, 1, 2], [4], [5]]
