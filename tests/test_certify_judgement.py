"""The test's statistics: bounds of known distributions, each condition alone, and the order of the procedure."""

import numpy as np
import pytest

from rag.certify import judgement
from rag.certify.figures import SetFigures, WayFigures
from rag.certify.judgement import choose_bands, estimate, judge, upper_bound

STAGES = ("screening", "confirmation")
NORMAL_95, NORMAL_975 = 1.6449, 1.96


def way(kl: float, agreement: float = 0.9) -> WayFigures:
    return WayFigures(kl=kl, agreement=agreement, first_kl=3 * kl)


def some_sets(chunk, reordered, no_passages=0.4, *, agreement=0.9) -> list[SetFigures]:
    """Sets with the given KL of each way; numbers stand for all sets."""
    columns = np.broadcast_arrays(np.atleast_1d(chunk), reordered, no_passages, agreement)
    return [
        SetFigures(
            passage_tokens=(100, 200),
            answer_tokens=40,
            reordered=way(theirs),
            no_passages=way(blind, 0.7),
            chunk={16: way(ours, agrees)},
        )
        for ours, theirs, blind, agrees in zip(*(column.tolist() for column in columns), strict=True)
    ]


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_bounds_are_those_of_the_central_limit_theorem(draw):
    values = getattr(np.random.default_rng(1), draw)(size=400)
    error = values.std() / 400**0.5
    assert upper_bound(values, seed=0) == pytest.approx(values.mean() + NORMAL_95 * error, abs=0.15 * error)
    found = estimate(values, seed=0)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - NORMAL_975 * error, abs=0.25 * error)
    assert found.high == pytest.approx(values.mean() + NORMAL_975 * error, abs=0.25 * error)


def test_the_bound_lies_above_the_true_mean_in_19_of_20_experiments(monkeypatch):
    monkeypatch.setattr(judgement, "RESAMPLES", 500)
    draws = np.random.default_rng(2).normal(0.3, 2.0, size=(600, 64))
    share = np.mean([upper_bound(values, seed=i) > 0.3 for i, values in enumerate(draws)])
    assert 0.92 < share < 0.98


def test_bounds_are_repeatable_and_exact_where_nothing_varies():
    values = np.random.default_rng(3).normal(size=30).tolist()
    assert upper_bound(values, seed=5) == upper_bound(values, seed=5) != upper_bound(values, seed=6)
    assert upper_bound([0.25] * 9, seed=0) == 0.25
    assert estimate([0.25], seed=0).high == 0.25


def test_pairs_decide_and_not_how_far_sets_differ_from_each_other():
    """Sets vary by 1, the pairs' difference is always -0.001: unpaired samples could not tell."""
    reordered = np.linspace(0.001, 1, 64)
    row = judge("screening", some_sets(reordered - 0.001, reordered, 9.0), 16, seed=0)
    assert row.upper_bound == pytest.approx(-0.001)
    assert row.passes
    assert row.chunk.kl.high > row.reordered.kl.low, "the means alone overlap"


@pytest.mark.parametrize(
    ("sets", "failure"),
    [
        (some_sets([0.04] * 16, 0.05), None),
        (some_sets([0.05] * 16, 0.05), None),
        (some_sets([0.051] * 16, 0.05), "+0.0010"),
        (some_sets([0.0, 0.12] * 8, 0.06), "more than another order"),
        (some_sets([0.04] * 16, 0.05, agreement=0.891), None),
        (some_sets([0.04] * 16, 0.05, agreement=0.889), "88.9%"),
        (some_sets([0.04] * 16, 0.05, 0.161), None),
        (some_sets([0.04] * 16, 0.05, 0.159), "a quarter"),
    ],
    ids=[
        "passes", "as far as another order", "farther", "not shown to be as near", "a point less agreement",
        "more than that", "a quarter of no passages", "above a quarter",
    ],
)  # fmt: skip
def test_each_condition_alone(sets, failure):
    row = judge("screening", sets, 16, seed=0)
    assert row.passes is (failure is None)
    assert len(row.failures) == (failure is not None)
    assert failure is None or failure in row.failures[0]


def test_a_row_has_its_figures():
    row = judge("confirmation", some_sets([0.02, 0.04], 0.05), 16, seed=0)
    assert (row.stage, row.passages, row.repair, row.sets, row.answer_tokens) == ("confirmation", 2, 16, 2, 80)
    assert row.chunk.kl.value == pytest.approx(0.03)
    assert row.chunk.first_kl.value == pytest.approx(0.09)
    assert row.difference.value == pytest.approx(-0.02)
    assert row.no_passages.agreement.value == pytest.approx(0.7)


def stage(name, passing, calls):
    """A stage that passes the given pairs of passages and repair."""

    def judged(k, repair):
        calls.append((name, k, repair))
        return judge(name, some_sets([0.04 if (k, repair) in passing else 0.06] * 4, 0.05), 16, seed=0)

    return judged


def test_repairs_are_tried_in_order_and_confirmed_on_fresh_sets():
    calls = []
    screen = stage("screening", {(2, 16), (2, 32), (2, 64)}, calls)
    bands, rows = choose_bands((2,), (0, 16, 32, 64), screen, stage("confirmation", {(2, 32), (2, 64)}, calls))
    assert [(band.min_passages, band.max_passages, band.repair) for band in bands] == [(2, 2, 32)], "16 failed fresh"
    assert calls == [
        ("screening", 2, 0), ("screening", 2, 16), ("confirmation", 2, 16), ("screening", 2, 32),
        ("confirmation", 2, 32),
    ]  # fmt: skip
    assert [row.passes for row in rows] == [False, True, False, True, True]


def test_each_number_of_passages_takes_the_repair_that_it_needs_and_no_less_than_fewer_do():
    calls = []
    passing = {(2, 16), (5, 0), (5, 16), (10, 64)}
    bands, _ = choose_bands((2, 5, 10), (0, 16, 32, 64), *(stage(name, passing, calls) for name in STAGES))
    assert [(band.min_passages, band.max_passages, band.repair) for band in bands] == [
        (2, 2, 16), (3, 5, 16), (6, 10, 64)
    ]  # fmt: skip
    assert ("screening", 5, 0) not in calls


@pytest.mark.parametrize(
    ("passing", "most"),
    [({(2, 0), (10, 0)}, [2]), ({(5, 0), (10, 0)}, []), (set(), [])],
    ids=["five fail", "two fail", "all fail"],
)
def test_what_is_above_a_number_of_passages_that_fails_is_not_certified(passing, most):
    calls = []
    bands, rows = choose_bands((2, 5, 10), (0, 16), *(stage(name, passing, calls) for name in STAGES))
    assert [band.max_passages for band in bands] == most
    assert not rows[-1].passes
    assert all(k <= 5 for _, k, _ in calls)
