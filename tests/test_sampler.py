"""The next token: greedy, and distributions against a naive reference."""

import math

import pytest
import torch

from engine.config import SamplingParams
from engine.sampler import Sampler, sample_rows

DRAWS = 4000


def naive_probabilities(logits: torch.Tensor, params: SamplingParams) -> list[float]:
    """Temperature, then the k most likely, then the fewest whose sum reaches top_p; in float64, one by one."""
    scores = [value / params.temperature for value in logits.tolist()]
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    kept = order[: params.top_k or len(order)]
    peak = scores[order[0]]
    weights = {i: math.exp(scores[i] - peak) for i in kept}
    total, reached, nucleus = sum(weights.values()), 0.0, []
    for i in kept:
        nucleus.append(i)
        reached += weights[i] / total
        if reached >= params.top_p:
            break
    left = sum(weights[i] for i in nucleus)
    return [weights[i] / left if i in nucleus else 0.0 for i in range(len(scores))]


def draws(logits: torch.Tensor, params: SamplingParams, count: int = DRAWS) -> list[int]:
    sampler = Sampler(params)
    return [sampler.sample(logits) for _ in range(count)]


def test_greedy_is_argmax():
    logits = torch.randn(50, 301, generator=torch.Generator().manual_seed(1))
    assert sample_rows(logits, [Sampler(SamplingParams())] * 50) == logits.argmax(-1)[:, None].tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 3.0, "top_k": 4},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 2.0, "top_k": 7, "top_p": 0.8},
        {"temperature": 1.0, "top_k": 100, "top_p": 0.999},
    ],
    ids=str,
)
def test_distribution_equals_a_naive_reference(settings):
    params = SamplingParams(seed=11, **settings)
    logits = 2 * torch.randn(12, generator=torch.Generator().manual_seed(5))
    expected = naive_probabilities(logits, params)
    counts = torch.bincount(torch.tensor(draws(logits, params)), minlength=12).tolist()
    impossible = [i for i, p in enumerate(expected) if p == 0 and counts[i]]
    assert not impossible, f"tokens {impossible} were drawn, which are cut off"
    cells = [(n, DRAWS * p) for n, p in zip(counts, expected, strict=True) if DRAWS * p >= 5]
    cells.append(
        (DRAWS - sum(n for n, _ in cells), max(DRAWS - sum(e for _, e in cells), 1.0))
    )  # the rare ones together
    chi_square = sum((n - e) ** 2 / e for n, e in cells)
    # mean of chi-square is its degrees of freedom; five standard deviations above never happens by chance
    freedom = len(cells) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * max(freedom, 1)) + 1, (counts, expected)


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.97])
@pytest.mark.parametrize("peak", [0.5, 9.0], ids=["flat", "steep"])
def test_a_nucleus_of_any_size(top_p, peak):
    logits = peak * torch.randn(4000, generator=torch.Generator().manual_seed(3))
    params = SamplingParams(temperature=1.0, top_p=top_p, seed=1)
    expected = torch.tensor(naive_probabilities(logits, params))
    found = Sampler(params)._cut_off(logits)
    assert (found.isfinite() != (expected > 0)).sum() <= 1  # the last one's sum may round either way
    assert torch.equal(found[found.isfinite()], logits[found.isfinite()])


def test_scores_that_are_no_numbers_give_no_token():
    for logits in (torch.full((9,), torch.nan), torch.full((9,), -torch.inf)):
        with pytest.raises(AssertionError, match="not numbers"):
            Sampler(SamplingParams(temperature=1.0)).sample(logits)


def test_every_token_is_where_its_random_numbers_are(monkeypatch):
    """At both ends of the numbers too, and never one without a probability."""
    logits = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0]).log()
    sampler, found = Sampler(SamplingParams(temperature=1.0)), []
    for number in (0.0, 0.249, 0.251, 0.749, 0.751, 1 - 2**-53, 1.0):
        monkeypatch.setattr(torch, "rand", lambda *a, number=number, **k: torch.tensor([number], dtype=torch.float64))
        found.append(sampler.sample(logits))
    assert found == [1, 1, 3, 3, 4, 4, 4]


def test_the_reference_can_tell_distributions_apart():
    logits = torch.tensor([1.0, 0.5, 0.0, -0.5])
    a = naive_probabilities(logits, SamplingParams(temperature=1.0))
    b = naive_probabilities(logits, SamplingParams(temperature=1.3))
    assert sum((DRAWS * (x - y)) ** 2 / (DRAWS * y) for x, y in zip(a, b, strict=True)) > 20


def test_top_p_keeps_the_token_that_reaches_it_and_no_more():
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    assert set(draws(logits, SamplingParams(temperature=1.0, top_p=0.5, seed=1), 300)) == {0}
    assert set(draws(logits, SamplingParams(temperature=1.0, top_p=0.51, seed=1), 300)) == {0, 1}
    assert set(draws(logits, SamplingParams(temperature=1.0, top_p=0.75, seed=1), 300)) == {0, 1}
    assert set(draws(logits, SamplingParams(temperature=1.0, top_p=1.0, seed=1), 300)) == {0, 1, 2, 3}


@pytest.mark.parametrize("settings", [{"top_p": 1e-9}, {"top_k": 1}, {"temperature": 1e-5}, {"temperature": 1e-300}])
def test_extreme_settings_are_greedy(settings):
    logits = 300 * torch.randn(40, generator=torch.Generator().manual_seed(2))
    params = SamplingParams(**{"temperature": 1.0, "seed": 3, **settings})
    assert set(draws(logits, params, 30)) == {int(logits.argmax())}


def test_masked_logits_are_never_drawn():
    logits = torch.zeros(6)
    logits[[1, 4]] = -torch.inf
    assert set(draws(logits, SamplingParams(temperature=1.0, seed=0), 300)) == {0, 2, 3, 5}
    assert set(draws(logits, SamplingParams(temperature=1.0, seed=0, top_p=0.99, top_k=5), 300)) <= {0, 2, 3, 5}


def test_logits_are_left_as_they_were():
    logits = torch.randn(2, 9)
    before = logits.clone()
    sample_rows(logits, [Sampler(SamplingParams(temperature=1.0, top_k=2, top_p=0.5))] * 2)
    assert torch.equal(logits, before)


def test_a_seed_repeats_and_rows_do_not_disturb_each_other():
    logits = torch.randn(64, generator=torch.Generator().manual_seed(8))
    params = SamplingParams(temperature=1.5, seed=42)
    alone = draws(logits, params, 20)
    assert alone == draws(logits, params, 20)
    assert alone != draws(logits, SamplingParams(temperature=1.5, seed=43), 20)
    ours, others = Sampler(params), [Sampler(SamplingParams(temperature=1.0)) for _ in range(3)]
    assert alone == [sample_rows(logits.expand(4, -1), [*others[:2], ours, others[2]])[2][0] for _ in range(20)]


def test_without_a_seed_two_requests_differ():
    logits = torch.zeros(1000)
    params = SamplingParams(temperature=1.0)
    assert draws(logits, params, 20) != draws(logits, params, 20)
