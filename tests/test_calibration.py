"""8-bit weights serve only rows whose KV nobody else will read, in steps where a measured profile says that it pays."""

import logging

import pytest
import torch

from engine import Engine, EngineConfig, Prompt, SamplingParams, Segment, SegmentKind
from engine.calibration import STEP_ROWS, UNMEASURED_LEAN_ROWS
from kernels.cpu_library import unavailable_reason

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason="8-bit weights need the C++ kernels")


@pytest.fixture
def profiles(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.profile.default_profiles_dir", lambda: tmp_path)
    return tmp_path


def load(folder, **settings) -> Engine:
    return Engine.from_pretrained(folder, EngineConfig(kv_cache_bytes=1 << 20, **settings))


def spy(engine: Engine, monkeypatch) -> list[tuple[str, int]]:
    """Record (full or lean, rows) of every step."""
    steps: list[tuple[str, int]] = []
    for name, model in (("full", engine.runner.model), ("lean", engine.runner.lean)):
        stack = model.stack

        def run(hidden, *rest, name=name, stack=stack):
            steps.append((name, len(hidden)))
            return stack(hidden, *rest)

        object.__setattr__(model, "stack", run)
    return steps


def prompt(*parts: tuple[SegmentKind, int]) -> Prompt:
    return Prompt([Segment(tuple(range(1, 1 + n)), kind) for kind, n in parts])


def test_only_private_rows_run_with_8_bit_weights(tiny_folder, profiles, monkeypatch):
    engine = load(tiny_folder, max_draft_tokens=0)
    engine.runner.lean_rows = 8
    steps = spy(engine, monkeypatch)
    greedy = SamplingParams(max_tokens=3, ignore_eos=True)
    engine.generate([prompt((SegmentKind.TEMPLATE, 4), (SegmentKind.TAIL, 4))], greedy)
    assert steps == [("full", 8), ("lean", 1), ("lean", 1)]  # the template is shared
    steps.clear()
    engine.generate([prompt((SegmentKind.TEMPLATE, 4), (SegmentKind.TAIL, 4))], greedy)
    assert steps == [("lean", 4), ("lean", 1), ("lean", 1)]
    steps.clear()
    engine.generate([prompt((SegmentKind.TEMPLATE, 4), (SegmentKind.TAIL, 9))], greedy)
    assert steps == [("full", 9), ("lean", 1), ("lean", 1)]  # more rows than pay
    steps.clear()
    engine.generate([prompt((SegmentKind.TEXT, 5))], greedy)
    assert steps == [("full", 5), ("lean", 1), ("lean", 1)]  # other texts may share its blocks
    steps.clear()
    request = engine.submit(prompt((SegmentKind.TAIL, 5)), greedy, principal="p", conversation="c")
    list(engine.stream(request))
    assert steps == [("full", 5), ("lean", 1), ("lean", 1)]  # the conversation's next turn reads the prompt alone


def test_a_step_with_one_shared_row_runs_in_full(tiny_folder, profiles, monkeypatch):
    engine = load(tiny_folder, max_draft_tokens=0)
    steps = spy(engine, monkeypatch)
    engine.submit(prompt((SegmentKind.TAIL, 2)), SamplingParams(max_tokens=4, ignore_eos=True))
    engine.step()
    engine.submit(prompt((SegmentKind.TEXT, 3)), SamplingParams(max_tokens=1))
    engine.step()
    assert steps == [("lean", 2), ("full", 4)]


@pytest.mark.parametrize(
    ("settings", "lean"),
    [
        ({}, True),
        ({"weights": "full"}, False),
        ({"weights": "int8", "dtype": "float32"}, True),
        ({"dtype": "float32"}, False),
        ({"dtype": "float16"}, True),
        ({"backend": "reference"}, False),
    ],
)
def test_the_setting_says_whether_there_are_8_bit_weights(tiny_folder, profiles, settings, lean):
    engine = load(tiny_folder, **settings)
    assert (engine.runner.lean is not None) == lean
    if settings.get("weights") == "int8":
        assert engine.runner.lean_rows is None


def test_a_profile_is_measured_once(tiny_folder, profiles):
    engine = load(tiny_folder)
    assert engine.runner.lean_rows == UNMEASURED_LEAN_ROWS
    assert not list(profiles.iterdir())
    engine.calibrate()
    assert engine.runner.lean_rows in (UNMEASURED_LEAN_ROWS, *STEP_ROWS)
    (kept,) = profiles.iterdir()
    kept.write_text('{"lean_rows": 33}')
    other = load(tiny_folder)
    assert other.runner.lean_rows == 33
    other.calibrate()
    assert kept.read_text() == '{"lean_rows": 33}'


def test_a_damaged_profile_is_measured_again(tiny_folder, profiles, caplog):
    load(tiny_folder).calibrate()
    (kept,) = profiles.iterdir()
    kept.write_text("{")
    with caplog.at_level(logging.WARNING):
        engine = load(tiny_folder)
    assert str(kept) in caplog.text
    assert engine.runner.lean_rows == UNMEASURED_LEAN_ROWS
    engine.calibrate()
    assert "lean_rows" in kept.read_text()


def test_a_disk_that_refuses_costs_only_a_measurement(tiny_folder, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("engine.profile.default_profiles_dir", lambda: tmp_path / "file" / "folder")
    engine = load(tiny_folder)
    with caplog.at_level(logging.WARNING):
        engine.calibrate()
    assert "measured again" in caplog.text
    assert engine.runner.lean_rows >= UNMEASURED_LEAN_ROWS


def test_8_bit_answers_are_those_of_the_weights(tiny_folder, profiles):
    """Greedy answers of both formats agree on most tokens: the lean model is the same model."""
    tokens = torch.randint(1, 90, (24,), generator=torch.Generator().manual_seed(3)).tolist()
    sampling = SamplingParams(max_tokens=1, ignore_eos=True)
    prompts = [Prompt([Segment(tuple(tokens[i : i + 6]), SegmentKind.TAIL)]) for i in range(18)]
    answers = [
        [g.token_ids for g in load(tiny_folder, weights=weights).generate(prompts, sampling)]
        for weights in ("full", "int8")
    ]
    agreeing = sum(a == b for a, b in zip(*answers, strict=True))
    assert agreeing >= 0.8 * len(prompts)
