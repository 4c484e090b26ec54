"""The benchmark of drafts: what its prompts are made of, and a whole run over a tiny model."""

import pytest
from rag_helpers import make_chat_model, make_tokenizer, run_cli

from data.corpora import load_corpus
from engine.prompt import SegmentKind
from rag.bench.draft_cases import KINDS, OPENING, make_cases
from rag.bench.drafts import DraftsBenchConfig
from rag.bench.drafts_report import DraftsReport
from rag.errors import InvalidRequestError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_prompts_of_every_kind(tokenizer):
    cases = make_cases(tokenizer, load_corpus("python-topics"), KINDS, 3, seed=1)
    assert [case.kind for case in cases] == [kind for kind in KINDS for _ in range(3)]
    assert cases == make_cases(tokenizer, load_corpus("python-topics"), KINDS, 3, seed=1)
    for case in cases:
        text = tokenizer.decode(case.prompt.tokens)
        kinds = [segment.kind for segment in case.prompt.segments]
        if case.kind in ("question", "quote"):
            assert kinds == [SegmentKind.TEMPLATE, *[SegmentKind.PASSAGE] * 4, SegmentKind.TAIL]
            tail = tokenizer.decode(case.prompt.segments[-1].tokens)
            assert ("word for word" in tail) == (case.kind == "quote")
        else:
            assert kinds == [SegmentKind.TEXT]
        assert text.count(text[-OPENING:]) >= 2 or case.kind != "copy"
        assert (case.temperature > 0) == (case.kind == "sampled story")


def test_a_run(tmp_path, capsys):
    output = tmp_path / "report.json"
    options = ["--prompts", 2, "--batch", 2, "--repeats", 2, "--max-tokens", 12, "--kinds", "story,copy"]
    ran = run_cli(
        capsys,
        [
            "--model",
            make_chat_model(tmp_path / "tiny", max_position_embeddings=8192),
            "bench",
            "drafts",
            *options,
            "--output",
            output,
        ],
    )
    assert ran.code == 0, ran.err
    assert "times faster" in ran.out
    report = DraftsReport.model_validate_json(output.read_text())
    assert [result.kind for result in report.kinds] == ["story", "copy"]
    for result in report.kinds:
        assert result.speedup is not None
        (answer,) = result.answers
        assert answer.without > 0
        assert answer.with_drafts > 0
        assert answer.accepted <= answer.drafted
        assert answer.tokens <= 24


@pytest.mark.parametrize("wrong", [{"prompts": 0}, {"batch": 0}, {"repeats": 0}, {"corpus": "no"}, {"kinds": ("no",)}])
def test_what_cannot_be_measured(wrong):
    with pytest.raises(InvalidRequestError, match=next(iter(wrong))):
        DraftsBenchConfig(**wrong)
