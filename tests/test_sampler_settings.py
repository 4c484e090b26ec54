"""What requests may ask of sampling, against transformers' processors and a naive reading of each rule."""

import math
import random

import pytest
import torch
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.config import SamplingParams
from engine.errors import ConfigError
from engine.logprobs import TokenLogprob
from engine.penalties import adjustments
from engine.sampler import Sampler, sample_rows

VOCAB = 40
DRAWS = 1500


def rows(seed: int, count: int = 1, vocab: int = VOCAB) -> torch.Tensor:
    return 3 * torch.randn(count, vocab, generator=torch.Generator().manual_seed(seed))


def a_sampler(params: SamplingParams, prompt=(), ends=(), said=()) -> Sampler:
    """A sampler that has chosen some tokens already."""
    wanted = adjustments(params, prompt, ends, VOCAB)
    for token in said:
        for one in wanted:
            one.accept(token)
    return Sampler(params, wanted)


def scores_of(params: SamplingParams, logits: torch.Tensor, prompt=(), ends=(), said=()) -> torch.Tensor:
    """What is left of logits [vocab] when everything that the parameters ask for has been done to them."""
    seen = []

    class Watched(Sampler):
        def _cut_off(self, scores):
            seen.append(super()._cut_off(scores))
            return seen[-1]

    sampler = a_sampler(params, prompt, ends, said)
    sampler.__class__ = Watched
    sampler.sample(logits)
    return seen[0]


def theirs(logits: torch.Tensor, prompt, said, *processors) -> torch.Tensor:
    ids, scores = torch.tensor([[*prompt, *said]]), logits[None].clone()
    for processor in processors:
        scores = processor(ids, scores)
    return scores[0]


@pytest.mark.parametrize("penalty", [0.5, 1.3, 4.0])
@pytest.mark.parametrize("seed", range(3))
def test_repetition_penalty_is_that_of_transformers(penalty, seed):
    generator = random.Random(seed)
    prompt, said = ([generator.randrange(VOCAB) for _ in range(n)] for n in (9, 7))
    params = SamplingParams(temperature=1.0, seed=1, repetition_penalty=penalty)
    ours = scores_of(params, rows(seed)[0], prompt, said=said)
    assert torch.allclose(ours, theirs(rows(seed)[0], prompt, said, RepetitionPenaltyLogitsProcessor(penalty)))


def test_biases_are_those_of_transformers():
    biases = {3: 5.0, 17: -100.0, 39: 0.25}
    ours = scores_of(SamplingParams(temperature=1.0, seed=1, logit_bias=biases), rows(1)[0])
    processor = SequenceBiasLogitsProcessor([[[token], bias] for token, bias in biases.items()])
    assert torch.allclose(ours, theirs(rows(1)[0], [0], [], processor))


@pytest.mark.parametrize("count", range(4))
def test_ends_that_come_too_early_are_those_of_transformers(count):
    prompt, said, ends = [5, 6], [7] * count, [0, 11]
    ours = scores_of(SamplingParams(temperature=1.0, seed=1, min_tokens=2), rows(2)[0], prompt, ends, said)
    processor = MinNewTokensLengthLogitsProcessor(len(prompt), 2, ends)
    assert torch.equal(ours, theirs(rows(2)[0], prompt, said, processor))
    assert (ours[11] == -torch.inf) == (count < 2)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("settings", [{"min_p": 0.05}, {"min_p": 0.3}, {"min_p": 1.0}, {"min_p": 1e-30}], ids=str)
def test_min_p_is_that_of_transformers(settings, seed):
    ours = scores_of(SamplingParams(temperature=0.7, seed=1, **settings), rows(seed)[0])
    expected = theirs(rows(seed)[0], [0], [], TemperatureLogitsWarper(0.7), MinPLogitsWarper(settings["min_p"]))
    assert torch.allclose(ours, expected)


@pytest.mark.parametrize("seed", range(6))
def test_the_order_is_that_of_vllm(seed):
    """Penalties before temperature, then min-p, top-k, top-p; presence and frequency, which transformers has not, by
    hand."""
    generator = random.Random(seed)
    prompt, said = ([generator.randrange(VOCAB) for _ in range(n)] for n in (9, 7))
    params = SamplingParams(
        temperature=0.6,
        top_k=8,
        top_p=0.7,
        min_p=0.1,
        repetition_penalty=1.4,
        presence_penalty=0.7,
        frequency_penalty=-0.3,
        logit_bias={2: 4.0, said[0]: 1.0},
        min_tokens=9,
        seed=0,
    )
    ours = scores_of(params, rows(seed)[0], prompt, [2, 30], said)
    biases = SequenceBiasLogitsProcessor([[[token], bias] for token, bias in params.logit_bias.items()])
    first = (MinNewTokensLengthLogitsProcessor(len(prompt), 9, [2, 30]), biases, RepetitionPenaltyLogitsProcessor(1.4))
    middle = theirs(rows(seed)[0], prompt, said, *first)
    for token in set(said):
        middle[token] -= 0.7 - 0.3 * said.count(token)
    last = (TemperatureLogitsWarper(0.6), MinPLogitsWarper(0.1), TopKLogitsWarper(8), TopPLogitsWarper(0.7))
    assert torch.allclose(ours, theirs(middle, prompt, said, *last), atol=1e-5)


def test_min_p_before_top_p_leaves_fewer_tokens_than_after_it():
    logits = torch.tensor([0.5, 0.25, 0.1, 0.1, 0.05]).log()
    ours = scores_of(SamplingParams(temperature=1.0, seed=1, min_p=0.4, top_p=0.65), logits)
    assert ours.isfinite().tolist() == [True, False, False, False, False]
    after = theirs(logits, [0], [], TopPLogitsWarper(0.65), MinPLogitsWarper(0.4))
    assert after.isfinite().tolist() == [True, True, False, False, False]


def test_the_answer_is_penalised_and_the_prompt_is_not():
    logits = torch.zeros(VOCAB)
    ours = scores_of(
        SamplingParams(temperature=1.0, seed=1, presence_penalty=1.0, frequency_penalty=0.5),
        logits,
        [1, 2],
        said=[2, 3, 3],
    )
    assert ours[:5].tolist() == [0.0, 0.0, -1.5, -2.0, 0.0]


@pytest.mark.parametrize(
    "settings",
    [{"repetition_penalty": 1e-9}, {"repetition_penalty": 100}, {"frequency_penalty": 2, "presence_penalty": 2}],
    ids=str,
)
def test_extreme_settings_leave_finite_scores(settings):
    params = SamplingParams(max_tokens=30, temperature=1.0, seed=4, **settings)
    sampler = a_sampler(params, prompt=range(10))
    assert all(0 <= sampler.sample(row) < VOCAB for row in rows(3, 30))


def test_greedy_answers_follow_penalties_and_biases():
    logits = torch.zeros(VOCAB)
    logits[[4, 7]] = torch.tensor([1.0, 0.5])
    greedy = a_sampler(SamplingParams(frequency_penalty=0.2))
    assert [greedy.sample(logits) for _ in range(8)] == [4, 4, 4, 7, 4, 7, 4, 7]
    assert a_sampler(SamplingParams(logit_bias={9: 1.01})).sample(logits) == 9
    assert a_sampler(SamplingParams(logit_bias={4: -100}, min_tokens=1), ends=[7]).sample(logits) == 0


def test_an_early_end_is_allowed_where_nothing_else_is():
    only_the_end = torch.full((VOCAB,), -torch.inf)
    only_the_end[6] = -3.0
    assert a_sampler(SamplingParams(min_tokens=3), ends=[6]).sample(only_the_end) == 6


@pytest.mark.parametrize("greedy", [True, False], ids=["greedy", "drawn"])
@pytest.mark.parametrize("seed", range(8))
def test_drafts_change_nothing(greedy, seed):
    """Whatever is guessed, and however much of it is right, tokens and log-probabilities are those of single steps."""
    generator = random.Random(seed)
    params = SamplingParams(
        max_tokens=30,
        temperature=0.0 if greedy else 1.0,
        seed=seed,
        min_p=0.02,
        repetition_penalty=1.5,
        presence_penalty=0.5,
        frequency_penalty=0.5,
        logit_bias={3: 2.0},
        min_tokens=12,
        logprobs=3,
    )
    logits, prompt = rows(seed, 30), [generator.randrange(VOCAB) for _ in range(6)]
    alone = a_sampler(params, prompt, [8])
    expected = [alone.sample(row) for row in logits]
    drafted, answer = a_sampler(params, prompt, [8]), list[int]()
    while len(answer) < len(expected):
        length = generator.randint(0, min(6, len(expected) - len(answer) - 1))
        draft = expected[len(answer) : len(answer) + length]
        if draft and generator.random() < 0.5:
            draft[generator.randrange(length)] = generator.randrange(VOCAB)
        given = logits[len(answer) : len(answer) + length + 1]
        answer += sample_rows(given, [drafted], [draft])[0]
    assert answer == expected
    assert drafted.logprobs == alone.logprobs


def test_a_distribution_under_everything_at_once():
    params = SamplingParams(
        temperature=1.3, seed=2, min_p=0.05, top_k=6, repetition_penalty=1.2, logit_bias={1: 1.0}, frequency_penalty=1.0
    )
    logits = rows(5)[0]
    expected = scores_of(params, logits, [1, 2, 3], said=[4, 4, 5]).softmax(-1)
    counts = torch.zeros(VOCAB)
    for seed in range(DRAWS):
        one = SamplingParams(**{name: getattr(params, name) for name in params.__slots__} | {"seed": seed})
        counts[a_sampler(one, [1, 2, 3], said=[4, 4, 5]).sample(logits)] += 1
    assert set(counts.nonzero().flatten().tolist()) <= set(expected.nonzero().flatten().tolist())
    likely = expected > 5 / DRAWS
    chi_square = float(((counts - DRAWS * expected) ** 2 / (DRAWS * expected))[likely].sum())
    freedom = int(likely.sum()) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom) + 1


@pytest.mark.parametrize("settings", [{}, {"temperature": 2.0, "seed": 1}, {"logit_bias": {3: 100}}], ids=str)
def test_logprobs_are_the_models_own(settings):
    """Whatever is done to choose, they are the log-softmax of the logits as they came."""
    logits = rows(6, 5)
    sampler = a_sampler(SamplingParams(logprobs=4, **settings))
    tokens = [sampler.sample(row) for row in logits]
    expected = logits.double().log_softmax(-1)
    for token, row, found in zip(tokens, expected, sampler.logprobs, strict=True):
        assert found.token_id == token
        assert found.logprob == pytest.approx(float(row[token]), abs=1e-5)
        order = sorted(range(VOCAB), key=lambda i: -row[i])[:4]
        assert [i for i, _ in found.top] == order
        assert [value for _, value in found.top] == pytest.approx([float(row[i]) for i in order], abs=1e-5)


def test_logprobs_without_alternatives_and_with_more_than_there_are():
    logits = torch.tensor([0.0, math.log(3.0)])
    assert TokenLogprob.of(logits, 0, 0).top == ()
    assert [token for token, _ in TokenLogprob.of(logits, 0, 20).top] == [1, 0]
    assert TokenLogprob.of(logits, 0, 0).logprob == pytest.approx(math.log(0.25))
    plain = a_sampler(SamplingParams())
    plain.sample(rows(1)[0])
    assert plain.logprobs == []


def test_biases_of_unknown_tokens_are_refused():
    with pytest.raises(ConfigError, match=r"\[40, 900\].*below 40"):
        adjustments(SamplingParams(logit_bias={3: 1.0, 40: 1.0, 900: -1.0}), [], [], VOCAB)


def test_a_plain_request_has_no_adjustments():
    assert adjustments(SamplingParams(temperature=1.0, top_k=3, top_p=0.5, min_p=0.1, seed=1), [1], [2], VOCAB) == []
