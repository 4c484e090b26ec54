"""What computing evicted tokens anew costs is measured once, when nothing runs, and kept."""

import logging

import pytest

from engine import Engine, EngineConfig
from engine import recompute_profile as profile
from engine.eviction import Pgdsf
from engine.recompute_profile import counted_cost, recompute_cost


@pytest.fixture
def profiles(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.profile.default_profiles_dir", lambda: tmp_path)
    return tmp_path


def load(folder, eviction="pgdsf") -> Engine:
    config = EngineConfig(kv_cache_bytes=1 << 20, dtype="float32", weights="full", eviction=eviction)
    return Engine.from_pretrained(folder, config)


def test_counted_first_then_measured_and_kept(tiny_folder, profiles):
    engine = load(tiny_folder)
    policy = engine._policy
    assert isinstance(policy, Pgdsf)
    assert policy.cost == counted_cost(engine.runner.model.config)
    assert list(profiles.iterdir()) == [], "a start measures nothing"
    engine.calibrate()
    measured = policy.cost
    assert measured != counted_cost(engine.runner.model.config)
    assert measured.cached[0] == 0
    assert measured.per_token(0, measured.new[0]) == pytest.approx(1)
    assert all(time > 0 for row in measured.times for time in row)
    assert len(list(profiles.iterdir())) == 1
    assert load(tiny_folder)._policy.cost == measured, "the next start knows it"


def test_only_the_policy_that_weighs_it_has_it_measured(tiny_folder, profiles):
    load(tiny_folder, "lfu").calibrate()
    assert list(profiles.iterdir()) == []


def test_what_grows_with_the_context_costs_more(tiny_folder):
    cost = counted_cost(load(tiny_folder).runner.model.config)
    assert cost.per_token(0, 1) < cost.per_token(0, 64) < cost.per_token(128, 64)
    assert 0.5 < cost.per_token(0, 1) < 2


def test_a_damaged_profile_is_measured_again(tiny_folder, profiles, caplog):
    runner = load(tiny_folder).runner
    _, measured = recompute_cost(runner, measure=True)
    assert measured
    (path,) = profiles.iterdir()
    path.write_text('{"cached": [0], "new": [1], "times": []}')
    with caplog.at_level(logging.WARNING):
        assert recompute_cost(runner, measure=False) == (counted_cost(runner.model.config), False)
    assert "measured again" in caplog.text
    assert recompute_cost(runner, measure=True)[1]


def test_a_slow_model_is_measured_for_short_contexts_alone(tiny_folder, profiles, monkeypatch):
    runner = load(tiny_folder).runner
    monkeypatch.setattr(profile, "CACHED", (0, 8, 16))
    assert len(recompute_cost(runner, measure=True)[0].cached) == 3
    (path,) = profiles.iterdir()
    path.unlink()
    monkeypatch.setattr(profile, "BUDGET_SECONDS", 0.0)
    assert recompute_cost(runner, measure=True)[0].cached == (0,)
