"""When requests come: rates and bursts are as asked for, and the seed decides."""

import itertools
import math
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.arrivals import bursty_times, poisson_times, recorded_times
from data.errors import WorkloadError

MANY = 40_000


def gaps_of(times):
    return [later - earlier for earlier, later in itertools.pairwise((0.0, *times))]


@pytest.mark.parametrize("rate", [0.25, 4.0])
def test_poisson_gaps_are_exponential(rate):
    gaps = gaps_of(poisson_times(MANY, rate, seed=1))
    assert fmean(gaps) == pytest.approx(1 / rate, rel=0.03)
    assert pstdev(gaps) == pytest.approx(1 / rate, rel=0.05)
    for share in (0.1, 0.5, 0.9):  # not only its first two moments
        below = sum(gap < -math.log(1 - share) / rate for gap in gaps) / MANY
        assert below == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / MANY))


@pytest.mark.parametrize("cv", [0.5, 3.0])
def test_bursts_vary_as_asked_for(cv):
    gaps = gaps_of(bursty_times(MANY, 2.0, cv, seed=2))
    assert fmean(gaps) == pytest.approx(0.5, rel=0.08)
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(cv, rel=0.08)


def test_bursts_crowd_together():
    def most_in_a_second(times):
        return max(sum(1 for _ in group) for _, group in itertools.groupby(times, key=int))

    assert most_in_a_second(bursty_times(500, 1.0, 3.0, seed=0)) > 2 * most_in_a_second(poisson_times(500, 1.0, seed=0))


@given(st.integers(0, 60), st.floats(0.01, 100), st.floats(0.1, 5), st.integers())
def test_times_rise_and_the_seed_decides(count, rate, cv, seed):
    times = bursty_times(count, rate, cv, seed)
    assert len(times) == count
    assert list(times) == sorted(times)
    assert all(math.isfinite(time) and time >= 0 for time in times)
    assert times == bursty_times(count, rate, cv, seed)
    assert bursty_times(count, 2 * rate, cv, seed) == pytest.approx([time / 2 for time in times])
    if count and cv > 0.3:
        assert times != bursty_times(count, rate, cv, seed + 1)


def test_recorded_times_are_moved_and_stretched():
    assert recorded_times((5.0, 7.5, 7.5), start=5.0, scale=2.0) == (0.0, 5.0, 5.0)
    assert recorded_times((0.1, 0.7)) == (0.1, 0.7)
    assert recorded_times(()) == ()


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_impossible_rates_are_refused(value):
    with pytest.raises(WorkloadError, match="rate is"):
        poisson_times(3, value, seed=0)
    with pytest.raises(WorkloadError, match="cv is"):
        bursty_times(3, 1.0, value, seed=0)
    with pytest.raises(WorkloadError, match="scale is"):
        recorded_times((1.0,), scale=value)


@pytest.mark.parametrize("cv", [1e200, 1e-200, 0.005, 101.0])
def test_bursts_beyond_measure_are_refused(cv):
    with pytest.raises(WorkloadError, match=r"cv is .*: give a number from 0\.01 to 100"):
        bursty_times(3, 1.0, cv, seed=0)


@pytest.mark.parametrize("cv", [0.01, 100.0])
def test_the_utmost_bursts_have_times(cv):
    times = bursty_times(500, 1.0, cv, seed=0)
    assert list(times) == sorted(times)
    assert all(map(math.isfinite, times))


def test_times_beyond_all_numbers_are_refused():
    with pytest.raises(WorkloadError, match=r"rate is 5e-324: requests would never come"):
        poisson_times(3, 5e-324, seed=0)
    with pytest.raises(WorkloadError, match=r"scale is 1e\+308: requests would never come"):
        recorded_times((1e9,), scale=1e308)
