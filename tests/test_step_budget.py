"""What a step may compute beside decodes, on made-up machines whose times are known."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.step_budget import StepBudget

FLOOR = 32


def machine(
    decode_rows: int, prefill_tokens: int, *, fixed: float = 8.0, row: float = 0.5, token: float = 0.3
) -> float:
    return fixed + row * decode_rows + token * prefill_tokens


def budget_after(steps: list[tuple[int, int]], *, slowdown: float = 3.0, seconds=machine) -> StepBudget:
    budget = StepBudget(1024, FLOOR, slowdown)
    for rows, tokens in steps:
        budget.record(rows, tokens, seconds(rows, tokens))
    return budget


def test_without_decodes_there_is_no_limit_but_the_configured_one() -> None:
    assert budget_after([]).tokens(0) == 1024
    assert budget_after([(0, 500), (1, 0)]).tokens(0) == 1024


@pytest.mark.parametrize("steps", [[], [(1, 0)], [(0, 1024)]])
def test_the_least_before_both_times_are_known(steps: list[tuple[int, int]]) -> None:
    assert budget_after(steps).tokens(4) == 4 + FLOOR


def test_a_small_budget_holds_beside_decodes_too() -> None:
    assert StepBudget(20, FLOOR, 3.0).tokens(4) == 20


@pytest.mark.parametrize("rows", [1, 3, 16])
@pytest.mark.parametrize("slowdown", [2.0, 3.0, 8.0])
def test_a_step_takes_as_long_as_it_may(rows: int, slowdown: float) -> None:
    """Sixty steps of a busy engine: decodes, and now and then a prompt of as many tokens as the budget gives."""
    budget = budget_after([(0, 700), (rows, 0)], slowdown=slowdown)
    generator = random.Random(rows)
    for _ in range(60):
        tokens = budget.tokens(rows) - rows if generator.random() < 0.7 else 0
        budget.record(rows, tokens, machine(rows, tokens) * generator.uniform(0.9, 1.1))
    longest = slowdown * machine(rows, 0)
    granted = budget.tokens(rows) - rows
    assert granted > FLOOR or machine(rows, FLOOR) > 0.85 * longest
    if granted > FLOOR:
        assert 0.8 * longest < machine(rows, granted) < 1.2 * longest


def test_answers_that_have_always_run_beside_prefills() -> None:
    """No step had decodes alone; the prefill's part is taken off, and the budget still leaves the least."""
    budget = budget_after([(0, 1000)] + [(2, FLOOR)] * 3)
    assert FLOOR < budget.tokens(2) - 2 < 3 * machine(2, 0) / 0.3


def test_one_stray_step_moves_nothing() -> None:
    steps = [(0, 700)] + [(2, 0)] * 5 + [(2, 64)] * 5
    budget = budget_after(steps)
    before = budget.tokens(2)
    budget.record(2, 0, 500.0)
    budget.record(2, 64, 900.0)
    assert abs(budget.tokens(2) - before) <= 0.1 * before


def test_it_follows_a_machine_that_became_slower() -> None:
    budget = budget_after([(0, 700), (2, 0), (2, 64)] * 8)
    before = budget.tokens(2)
    for _ in range(8):
        budget.record(2, 64, machine(2, 64, token=0.6))
    assert budget.tokens(2) < 0.7 * before


def test_no_slowdown_allowed_leaves_the_least() -> None:
    assert budget_after([(0, 700), (2, 0), (2, 64)] * 3, slowdown=1.0).tokens(2) == 2 + FLOOR


def test_the_nearest_number_of_rows_stands_for_one_that_was_not_seen() -> None:
    budget = budget_after([(1, 0), (8, 0)])
    assert budget.decode_seconds(5) == machine(1, 0), "fewer rows: rather too cautious"
    assert budget.decode_seconds(40) == machine(8, 0)
    assert budget_after([(8, 0)]).decode_seconds(1) == machine(8, 0)
    assert budget_after([]).decode_seconds(1) is None


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 64), st.floats(0, 1e6)), max_size=40),
    st.integers(0, 20),
    st.floats(1, 1e9),
)
def test_whatever_was_measured_the_budget_has_bounds(
    steps: list[tuple[int, int, float]], rows: int, slowdown: float
) -> None:
    budget = StepBudget(64, 8, slowdown)
    for decode_rows, tokens, seconds in steps:
        if decode_rows + tokens:
            budget.record(decode_rows, tokens, seconds)
    assert min(64, rows + 8) <= budget.tokens(rows) <= 64
