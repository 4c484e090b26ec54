"""Use and costs as reports, and usage patterns: exact against naive ones, and against the engine's own cache."""

import csv
import io
import json
import random
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.eviction import lru
from engine.models.config import ModelConfig
from engine.prompt import Prompt, Reuse, Segment, SegmentKind
from rag.bench.trace_simulation import SimulatedEngine
from rag.errors import InvalidRequestError
from rag.ledger import Account, Ledger, Tokens
from rag.patterns import Owner, usage_patterns
from rag.prices import PriceBook
from rag.retrieval_log import Read, RetrievalLog
from rag.schemas.usage import UsagePatterns, UsageReport, UsageRequest
from rag.stack_distance import stack_distances
from rag.usage import as_csv, usage_report
from retriever.store import Store

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
BOOK = PriceBook.model_validate(
    {"currency": "EUR", "models": {"small": {"prompt": "1", "cached": "0.25", "output": "2"}}}
)
MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 258, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path):
    store = Store(tmp_path / "library.sqlite3")
    yield store
    store.close()


@pytest.fixture
def ledger(store: Store) -> Ledger:
    """Two keys, two models, three days."""
    now = [NOON.timestamp()]
    ledger = Ledger(store, clock=lambda: now[0])
    for day in range(3):
        for hour in range(2):
            now[0] = NOON.timestamp() + 86400 * day + 3600 * hour
            ledger.add(Account("k1", "docs", "rag", "small"), Tokens(1, 1000, 800, 10))
            ledger.add(Account("k2", "=docs", "rag", "small"), Tokens(1, 500, 0, 20))
        ledger.add(Account("k1", "", "embeddings", "tiny"), Tokens(1, 7))
    return ledger


def report(ledger: Ledger, **asked: object) -> UsageReport:
    wanted = UsageRequest.model_validate({"since": date(2026, 3, 1), "until": date(2026, 3, 3), **asked})
    return usage_report(ledger, wanted, prices=BOOK, key_names={"k1": "page", "k2": "robot"})


def test_rows_add_up_whatever_is_told_apart(ledger: Ledger) -> None:
    whole = report(ledger).total
    assert (whole.answers, whole.prompt_tokens, whole.cached_tokens, whole.output_tokens) == (15, 9021, 4800, 180)
    assert whole.cost == pytest.approx((9000 - 4800) * 1e-6 + 4800 * 0.25e-6 + 180 * 2e-6)
    assert whole.saved == pytest.approx(4800 * 0.75e-6)
    assert whole.unpriced_tokens == 21
    for by in (["day"], ["key"], ["day", "collection"], ["model", "pipeline"], []):
        found = report(ledger, by=by)
        assert found.total == whole
        for name in ("answers", "prompt_tokens", "cached_tokens", "output_tokens", "unpriced_tokens"):
            assert sum(getattr(row, name) for row in found.rows) == getattr(whole, name)
    assert len(report(ledger, by=["day"]).rows) == 3
    assert len(report(ledger).rows) == 9, "hours of a day are one row"


def test_rows_have_what_was_asked_for_and_nothing_else(ledger: Ledger) -> None:
    row, *_ = report(ledger, by=["key", "model"], key="k1").rows
    assert (row.key_id, row.key_name, row.model, row.day, row.collection) == ("k1", "page", "small", None, None)
    assert row.prompt_tokens == 6000
    assert {row.key_id for row in report(ledger, key="k2").rows} == {"k2"}
    assert report(ledger, collection="docs").total.prompt_tokens == 6000
    assert report(ledger, since=date(2026, 3, 2), until=date(2026, 3, 2)).total.prompt_tokens == 3007
    assert report(ledger, since=date(2027, 1, 1), until=date(2027, 1, 1)).rows == []
    with pytest.raises(InvalidRequestError, match="is before"):
        report(ledger, since=date(2026, 3, 4))


def test_without_prices_there_are_no_costs(ledger: Ledger) -> None:
    wanted = UsageRequest(since=date(2026, 3, 1), until=date(2026, 3, 3))
    found = usage_report(ledger, wanted, prices=None, key_names={})
    assert (found.currency, found.total.cost, found.total.saved) == (None, None, None)
    assert found.total.unpriced_tokens == 9201
    assert all(row.cost is None and row.key_name is None for row in found.rows)


def test_a_table_has_every_row_and_no_formula(ledger: Ledger) -> None:
    found = report(ledger)
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert len(rows) == len(found.rows)
    assert sum(int(row["prompt_tokens"]) for row in rows) == found.total.prompt_tokens
    assert {row["collection"] for row in rows} == {"docs", "'=docs", ""}
    assert rows[0]["day"] == "2026-03-01"


def naive_distances(things: list[int], sizes: dict[int, int]) -> list[int]:
    stack: list[int] = []
    found = []
    for thing in things:
        at = stack.index(thing) if thing in stack else None
        found.append(-1 if at is None else sum(sizes[one] for one in stack[: at + 1]))
        if at is not None:
            del stack[at]
        stack.insert(0, thing)
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=80), st.lists(st.integers(1, 50), min_size=13, max_size=13))
def test_stack_distances_are_those_of_a_stack(things: list[int], sizes: list[int]) -> None:
    weights = np.array([sizes[thing] for thing in things], np.int64)
    found = stack_distances(np.array(things, np.int64), weights)
    assert found.tolist() == naive_distances(things, dict(enumerate(sizes)))


def patterns(reads: list[Read], *, block_size: int = 1, cache_tokens: int | None = None) -> UsagePatterns:
    def owners(passages):
        return {passage: Owner(f"d{passage // 2}", "docs") for passage in passages if passage < 100}

    return usage_patterns(reads, owners, block_size=block_size, cache_tokens=cache_tokens)


def reads_of(*questions: list[int], tokens: int = 10) -> list[Read]:
    return [Read(7, 1000 + i, tuple((p, tokens) for p in question)) for i, question in enumerate(questions)]


def test_patterns_of_a_log_that_can_be_counted_by_hand() -> None:
    found = patterns(reads_of([1, 2], [3], [1], [200], [1, 3]), cache_tokens=30)
    assert (found.answers, found.reads, found.passages, found.tokens) == (5, 7, 4, 40)
    assert [(one.uri, one.reads) for one in found.top] == [("d0", 3), ("d1", 3), (None, 1)]
    assert [(point.documents, point.share) for point in found.popularity] == [(1, 0.428571), (2, 0.857143), (3, 1.0)]
    # 1 again after {2, 3}, 1 again after {200}, 3 again after {1, 200}
    assert [(point.tokens, point.share) for point in found.reuse_distance] == [(0, 0.0), (64, 1.0)]
    rates = {point.cache_tokens: point.hit_rate for point in found.forecast}
    assert rates == {40: 0.428571, 30: 0.428571, 20: 0.142857}, "20 are the tokens of one question"
    assert found.best_hit_rate == 0.428571
    assert [point.cache_tokens for point in found.forecast if point.is_current] == [30]
    assert (found.since, found.until) == ("1970-01-01T00:16:40+00:00", "1970-01-01T00:16:44+00:00")


def test_no_log_has_patterns_too() -> None:
    found = patterns([], cache_tokens=64)
    assert (found.answers, found.reads, found.best_hit_rate, found.since) == (0, 0, 0.0, None)
    assert found.popularity == found.top == found.reuse_distance == []
    assert [(point.cache_tokens, point.hit_rate) for point in found.forecast] == [(64, 0.0)]


def test_a_larger_cache_never_finds_less() -> None:
    rng = random.Random(0)
    found = patterns(
        reads_of(*([int(rng.paretovariate(0.7)) % 90 for _ in range(4)] for _ in range(300))), block_size=16
    )
    rates = [point.hit_rate for point in found.forecast]
    assert rates == sorted(rates)
    assert rates[-1] == found.best_hit_rate
    shares = [point.share for point in found.reuse_distance]
    assert shares == sorted(shares)
    assert shares[-1] > 0.9


def test_the_forecast_is_what_the_engines_own_cache_finds(tmp_path: Path) -> None:
    """Intake, prefix cache and eviction are the real ones; what differs is that a question's passages go together."""
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    model = ModelConfig.from_folder(tmp_path)
    rng = random.Random(1)
    block, tokens, num_passages, k = 4, 16, 120, 3
    template = Segment((1, 2, 3, 4), SegmentKind.TEMPLATE)
    texts = [
        Segment(tuple(rng.randrange(10, 250) for _ in range(tokens)), SegmentKind.PASSAGE, str(i))
        for i in range(num_passages)
    ]
    drawn = ([int(rng.paretovariate(0.6)) % num_passages for _ in range(k)] for _ in range(400))
    questions = [list(dict.fromkeys(question)) for question in drawn]
    log = [Read(1, 0, tuple((p, tokens) for p in question)) for question in questions]
    for room in (24, 48, 96):
        forecast = next(p for p in patterns(log, block_size=block, cache_tokens=room * tokens).forecast if p.is_current)
        others = 2  # blocks of the template and of a tail, which the forecast leaves out
        config = EngineConfig(block_size=block, max_draft_tokens=0)
        engine = SimulatedEngine(model, config, room * tokens // block + others, lru, None)
        found = 0
        for number, question in enumerate(questions):
            tail = Segment((5, number % 200 + 10, 7), SegmentKind.TAIL)
            prompt = Prompt([template, *(texts[p] for p in question), tail])
            answer = engine.answer(prompt, reuse=Reuse.CHUNK, repair=0, namespace="c")
            found += sum(answer.hits)
        assert found / sum(len(q) * tokens for q in questions) == pytest.approx(forecast.hit_rate, abs=0.01)


def test_the_log_keeps_the_latest_answers_alone(store: Store) -> None:
    with store.write() as writer:
        writer.connection.execute("INSERT INTO collections (id, name, settings) VALUES (7, 'docs', '{}')")
    log = RetrievalLog(store, 3)
    for number in range(5):
        log.note(7, [(number, 10)])
        log.flush()
    assert [read.passages[0][0] for read in log.latest(10)] == [2, 3, 4]
    assert [read.passages[0][0] for read in log.latest(2)] == [3, 4]
    off = RetrievalLog(store, 0)
    off.note(7, [(9, 10)])
    assert len(off.latest(10)) == 3
