"""Made-up traffic: popularity, tails and orders of the drawn streams are those of the papers."""

import itertools
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import WorkloadError
from data.traffic import SHAPES, Traffic, draw_traffic, skew_of

KINDS = tuple(SHAPES)


def draw(kind, count=300, **changes):
    return draw_traffic(Traffic(kind=kind, count=count, **changes)).requests


def uses(requests):
    return Counter(part.id for request in requests for part in request.passages)


def share_of_top(counts, items):
    return sum(count for _, count in counts.most_common(items)) / counts.total()


@pytest.mark.parametrize(("pool", "k"), [(1000, 2), (400, 1), (300, 5)])
def test_three_percent_of_the_documents_are_sixty_percent_of_those_that_requests_name(pool, k):
    counts = uses(draw("documents", 6000, pool=pool, k=k, seed=5))
    assert share_of_top(counts, round(0.03 * pool)) == pytest.approx(0.6, abs=0.02)


def test_most_requests_for_two_documents_have_a_popular_one():
    requests = draw("documents", 2000, seed=1)
    hot = {number for number, _ in uses(requests).most_common(30)}
    assert fmean(any(part.id in hot for part in one.passages) for one in requests) == pytest.approx(0.85, abs=0.03)


def test_documents_are_long_and_of_different_lengths():
    requests = draw("documents", 200, length=1000)
    lengths = {part.id: part.num_tokens for request in requests for part in request.passages}
    assert fmean(lengths.values()) == pytest.approx(1000, rel=0.15)
    assert min(lengths.values()) < 500
    assert 1800 < max(lengths.values()) <= 2000
    assert {len(request.passages) for request in requests} == {2}


@pytest.mark.parametrize("skew", [0.6, 0.7, 0.8])
def test_popularity_of_passages_falls_as_a_power_of_the_rank(skew):
    counts = uses(draw("passages", 8_000, k=1, pool=120, skew=skew))
    total = sum(rank**-skew for rank in range(1, 121))
    for rank, (_, count) in enumerate(counts.most_common(8), start=1):
        expected = 8_000 * rank**-skew / total
        assert count == pytest.approx(expected, abs=5 * math.sqrt(expected))


@pytest.mark.parametrize("count", [40, 200])
def test_passages_have_a_long_tail_of_one_offs(count):
    requests = draw("passages", count, seed=2)
    counts = uses(requests)
    assert 0.5 < sum(one == 1 for one in counts.values()) / len(counts) < 0.7
    assert 0.35 < 1 - len(counts) / counts.total() < 0.65, "about half are repeated, however long the stream"
    assert {len(request.passages) for request in requests} == {6}


def test_fusion_takes_long_passages_in_any_order_from_a_pool():
    requests = draw("fusion", 600)
    assert {part.num_tokens for request in requests for part in request.passages} == {512}
    counts = uses(requests)
    assert len(counts) == 24
    assert max(counts.values()) < 1.5 * min(counts.values())
    first = Counter(request.passages[0].id for request in requests)
    assert len(first) == 24
    assert max(first.values()) < 3 * 600 / 24


def test_even_skewed_fusion_is_in_random_order():
    popular = uses(requests := draw("fusion", 600, skew=2.0)).most_common(1)[0][0]
    asked = [[part.id for part in request.passages] for request in requests]
    places = Counter(ids.index(popular) for ids in asked if popular in ids)
    assert max(places.values()) < 1.6 * min(places.values())


def test_no_order_comes_twice():
    requests = draw("orders", 720)  # all there are
    orders = {tuple(part.id for part in request.passages) for request in requests}
    assert len(orders) == 720
    assert len({frozenset(order) for order in orders}) == 1
    with pytest.raises(WorkloadError, match="count is 721: 6 of 6 passages have 720 orders"):
        draw("orders", 721)
    assert len(draw("orders", 721, pool=7)) == 721


@pytest.mark.parametrize(
    "changes", [{"count": 5040, "pool": 7, "k": 7}, {"count": 720, "pool": 7, "skew": 10.0}], ids=str
)
def test_new_orders_are_found_to_the_last(changes):
    requests = draw("orders", **changes)
    assert len({request.passages for request in requests}) == changes["count"]


def test_popularity_of_what_is_in_every_request_is_refused():
    for count, k, skew in ((24, 4, 8.0), (720, 6, 3.0)):
        with pytest.raises(WorkloadError, match=f"skew is {skew:g}: all {k} passages are in every request"):
            draw("orders", count, k=k, skew=skew)
    assert len(draw("orders", 24, k=4, skew=0.0)) == 24


def found_by_prefix(requests):
    """Share of the passages that a cache of whole beginnings without limit has."""
    seen, found = set(), 0
    for request in requests:
        beginnings = [request.passages[: n + 1] for n in range(len(request.passages))]
        found += sum(one in seen for one in beginnings)
        seen.update(beginnings)
    return found / sum(len(request.passages) for request in requests)


@pytest.mark.parametrize(("count", "share"), [(16, 0.13), (40, 0.24)])
def test_new_orders_begin_alike(count, share):
    shares = [found_by_prefix(draw("orders", count, seed=seed)) for seed in range(8)]
    assert fmean(shares) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("skew", [0.0, 0.7, 3.0, 10.0])
def test_passages_of_a_request_are_drawn_one_after_the_other(skew):
    weights = [rank**-skew for rank in range(1, 6)]
    chances = [
        first / sum(weights) * second / (sum(weights) - first) for first, second in itertools.permutations(weights, 2)
    ]
    drawn = Counter(request.passages for request in draw("passages", 8000, k=2, pool=5, skew=skew))
    counts = [*drawn.values(), *[0] * (20 - len(drawn))]
    for count, chance in zip(sorted(counts), sorted(chances), strict=True):
        assert count == pytest.approx(8000 * chance, abs=5 * math.sqrt(8000 * chance) + 1)


def test_everything_is_drawn_where_all_is_asked_for():
    assert {len(uses(draw("passages", 3, k=60, pool=60, skew=skew))) for skew in (0.0, 1.0, 10.0)} == {60}


def test_long_streams_are_drawn_from_large_pools():
    assert uses(draw("passages", 3000, skew=10.0)).total() == 18_000
    counts = uses(draw("passages", 3000))
    assert counts.total() == 18_000
    assert 0.5 < sum(one == 1 for one in counts.values()) / len(counts) < 0.7


def test_conversations_keep_their_passages_and_grow_by_what_was_said():
    requests = draw("conversations", 40, turns=4, question_tokens=9, output_tokens=5)
    talks = {name: [one for one in requests if one.session_id == name] for name in {r.session_id for r in requests}}
    assert {len(turns) for turns in talks.values()} == {4}
    for turns in talks.values():
        assert len({turn.passages for turn in turns}) == 1
        for number, (turn, after) in enumerate(itertools.pairwise(turns)):
            assert len(turn.history) == 2 * number
            assert after.history[:-1] == (*turn.history, *turn.user_input)
            assert after.history[-1].num_tokens == 5
    assert len({turn.user_input for turn in requests}) == 40
    sessions = [request.session_id for request in requests]
    assert len(set(sessions[:12])) > 1, "they are interleaved"


@st.composite
def traffics(draw):
    k = draw(st.integers(1, 5))
    return Traffic(
        kind=draw(st.sampled_from(KINDS)),
        count=draw(st.integers(1, 30)),
        seed=draw(st.integers()),
        k=k,
        length=draw(st.integers(1, 3000)),
        pool=draw(st.integers(k + 4, 60)),
        skew=draw(st.floats(0, 10)),
        turns=draw(st.integers(1, 5)),
        question_tokens=draw(st.integers(1, 50)),
        output_tokens=draw(st.integers(1, 50)),
    )


@settings(max_examples=80, deadline=None)
@given(traffics())
def test_whatever_is_drawn_is_a_trace(traffic):
    traffic = replace(traffic, count=1) if traffic.kind == "orders" and traffic.k == 1 else traffic
    requests = draw_traffic(traffic).requests
    assert len(requests) == traffic.count
    lengths = {}
    for request in requests:
        ids = [part.id for part in request.passages]
        assert len(ids) == len(set(ids)) == traffic.k
        assert all(0 <= number < traffic.pool for number in ids)
        assert request.timestamp == 0.0
        assert request.output_length == traffic.output_tokens
        pieces = (*request.passages, *request.history, *request.user_input)
        assert request.input_length == sum(part.num_tokens for part in pieces)
        for part in pieces:
            assert part.num_tokens >= 1
            assert lengths.setdefault(part.id, part.num_tokens) == part.num_tokens
    questions = [request.user_input[0].id for request in requests]
    assert len(set(questions)) == len(questions)
    assert min(questions) >= traffic.pool


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_and_nothing_else(kind):
    assert draw(kind, 40, seed=3) == draw(kind, 40, seed=3)
    assert [r.passages for r in draw(kind, 40, seed=3)] != [r.passages for r in draw(kind, 40, seed=4)]
    popular = {uses(draw(kind, 60, seed=seed, pool=60, skew=1.5)).most_common(1)[0][0] for seed in range(6)}
    assert len(popular) > 1, "popularity does not depend on the number"


def test_two_processes_draw_the_same():
    code = (
        "from data.traffic import *\n"
        "for kind in SHAPES: print(draw_traffic(Traffic(kind=kind, count=20, seed=9)).requests)"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0].count("TraceRequest(") == 20 * len(KINDS)


@given(st.integers(60, 800), st.integers(1, 3))
@settings(max_examples=8, deadline=None)
def test_the_exponent_is_one_of_a_power_law(pool, k):
    try:
        exponent = skew_of(pool, k)
    except WorkloadError:
        assert round(0.03 * pool) < 0.6 * k / 0.9, "only a pool that is too small has none"
    else:
        assert 0.8 < exponent < 8
        assert k > 1 or sum(rank**-exponent for rank in range(1, round(0.03 * pool) + 1)) == pytest.approx(
            0.6 * sum(rank**-exponent for rank in range(1, pool + 1)), rel=0.1
        )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kind": "questions"}, "kind is 'questions': choose one of documents, passages"),
        ({"count": 0}, "count is 0"),
        ({"k": 0}, "k is 0"),
        ({"length": -1}, "length is -1"),
        ({"pool": 0}, "pool is 0"),
        ({"turns": 0}, "turns is 0"),
        ({"question_tokens": 0}, "question_tokens is 0"),
        ({"output_tokens": 0}, "output_tokens is 0"),
        ({"skew": -0.1}, "skew is -0.1"),
        ({"skew": math.nan}, "skew is nan"),
        ({"kind": "documents", "skew": 400.0}, "skew is 400.0: the Zipf exponent is a number from 0 to 10"),
        ({"pool": 5}, "pool is 5: 6 different passages"),
        ({"kind": "documents", "pool": 20}, "pool is 20: 3% of so few"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(changes, named):
    with pytest.raises(WorkloadError, match=named):
        draw_traffic(Traffic(**{"kind": "passages", "count": 5, **changes}))
