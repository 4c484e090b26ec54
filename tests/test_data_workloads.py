import itertools
import json
import math
import re
from collections import Counter
from dataclasses import replace

import pytest

from data.errors import WorkloadError
from data.questions import Gold, Question
from data.workloads import Workload, zipf_workload


def question(number, document=None):
    gold = Gold(document or f"d{number}", f"made:{number}", 0, 4, "göld")
    return Question(f"Question {number}?", (gold,))


QUESTIONS = [question(number) for number in range(200)]


def draw(**changes):
    return zipf_workload(QUESTIONS, **{"corpus": "made", "count": 20_000, "s": 1.0, "seed": 3, **changes})


@pytest.mark.parametrize("s", [0.6, 1.0, 1.4])
def test_frequencies_fall_as_a_power_of_the_rank(s):
    counts = Counter(arrival.question.text for arrival in draw(s=s).arrivals)
    total = sum(rank**-s for rank in range(1, len(QUESTIONS) + 1))
    for rank, (_, count) in enumerate(counts.most_common(10), start=1):
        expected = 20_000 * rank**-s / total
        assert count == pytest.approx(expected, abs=5 * math.sqrt(expected))


def test_exponent_zero_is_even():
    counts = Counter(arrival.question.text for arrival in draw(s=0.0).arrivals)
    assert len(counts) == 200
    assert max(counts.values()) < 100 + 5 * 10


def test_the_seed_decides_everything():
    assert draw(rate=2.0) == draw(rate=2.0)
    assert draw(rate=2.0).arrivals != draw(rate=2.0, seed=4).arrivals
    favourite = {Counter(a.question.text for a in draw(seed=seed).arrivals).most_common(1)[0][0] for seed in range(5)}
    assert len(favourite) > 1


def test_gaps_are_exponential():
    times = [arrival.time for arrival in draw(rate=4.0).arrivals]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert min(gaps) >= 0
    assert mean == pytest.approx(0.25, rel=0.03)
    # an exponential's deviation equals its mean; even or batched arrivals would be far from it
    assert math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) == pytest.approx(mean, rel=0.05)


def test_without_a_rate_all_come_at_once():
    assert {arrival.time for arrival in draw(rate=None).arrivals} == {0.0}


def test_document_popularity_varies_the_words():
    questions = [question(number, document=f"d{number % 20}") for number in range(200)]
    workload = zipf_workload(questions, corpus="made", count=5000, s=1.2, popularity="document", seed=1)
    documents = Counter(arrival.question.gold_document_id for arrival in workload.arrivals)
    top = documents.most_common(1)[0][0]
    assert documents[top] > 3 * documents.most_common(5)[-1][1]
    assert len({a.question.text for a in workload.arrivals if a.question.gold_document_id == top}) == 10


def test_a_saved_workload_comes_back_equal(tmp_path):
    workload = replace(draw(count=50, rate=2.0), settings={"k": 4})
    workload.save(tmp_path / "workload.jsonl")
    assert Workload.load(tmp_path / "workload.jsonl") == workload
    assert [path.name for path in tmp_path.iterdir()] == ["workload.jsonl"]


@pytest.mark.parametrize(
    ("line", "content", "why"),
    [
        (1, '{"format": "other"}', "format is not"),
        (1, "{}", "KeyError"),
        (1, "[]", "TypeError"),
        (3, "nonsense", "JSONDecodeError"),
        (3, '{"time": 1}', "KeyError"),
        (3, '{"time": -1, "text": "a", "golds": []}', "before the line above it"),
        (3, '{"time": NaN, "text": "a", "golds": []}', "time is nan"),
        (3, '{"time": 1, "text": "a", "golds": [{}]}', "KeyError"),
        (3, '{"time": 1, "text": "a", "golds": [5]}', "TypeError"),
        (3, '{"time": 1, "text": "a", "golds": {}}', "golds is {}"),
        (3, '{"time": 1, "text": 7, "golds": []}', "text is 7"),
        (3, '{"time": "1", "text": "a", "golds": []}', "time is '1'"),
        (3, '{"time": Infinity, "text": "a", "golds": []}', "time is inf"),
        (3, "[]", "TypeError"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, content, why):
    path = tmp_path / "workload.jsonl"
    draw(count=4).save(path)
    lines = path.read_text("utf-8").splitlines()
    lines[line - 1] = content
    path.write_text("\n".join(lines), "utf-8")
    with pytest.raises(WorkloadError, match=rf"workload\.jsonl:{line}: .*{why}"):
        Workload.load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("corpus", 5),
        ("settings", [1]),
        ("seed", "0"),
        ("seed", True),
        ("s", math.inf),
        ("s", "1"),
        ("rate", [2.0]),
        ("rate", math.nan),
        ("popularity", "fame"),
        ("popularity", []),
    ],
    ids=str,
)
def test_a_bad_setting_is_named(tmp_path, name, value):
    path = tmp_path / "workload.jsonl"
    draw(count=2).save(path)
    head, *lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text(json.dumps({**json.loads(head), name: value}) + "\n" + "".join(lines), "utf-8")
    with pytest.raises(WorkloadError, match=rf"workload\.jsonl:1: .*{name} is {re.escape(repr(value))}"):
        Workload.load(path)


def test_a_workload_without_questions_is_refused(tmp_path):
    path = tmp_path / "workload.jsonl"
    draw(count=2).save(path)
    path.write_text(path.read_text("utf-8").splitlines()[0] + "\n", "utf-8")
    with pytest.raises(WorkloadError, match="holds no question"):
        Workload.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WorkloadError, match=r"gone\.jsonl cannot be read"):
        Workload.load(tmp_path / "gone.jsonl")


@pytest.mark.parametrize(
    "changes", [{"count": 0}, {"s": -1.0}, {"s": math.nan}, {"rate": 0.0}, {"rate": math.inf}], ids=str
)
def test_impossible_settings_are_refused(changes):
    with pytest.raises(WorkloadError, match=next(iter(changes))):
        draw(**changes)


def test_no_questions_are_refused():
    with pytest.raises(WorkloadError, match="at least one question"):
        zipf_workload([], corpus="made", count=1)
