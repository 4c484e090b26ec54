"""The fidelity benchmark: answers are dictated through the engine itself, and its figures are right."""

import math

import pytest
import torch
from rag_helpers import make_chat_model
from tiny_models import make_engine_folder
from typer.testing import CliRunner

from data.corpora import Corpus, load_corpus
from engine import Engine, EngineConfig, Prompt, Segment, SegmentKind
from kernels.backend import available_backends
from rag.bench import fidelity
from rag.bench.fidelity import FidelityBenchConfig, compare, run, summary_of
from rag.bench.fidelity_report import AnswerFidelity, FidelityReport
from rag.bench.fidelity_table import render
from rag.bench.teacher import NAMESPACE, Dictated, Teacher
from rag.cli.main import app
from rag.config import RagConfig
from rag.errors import InvalidRequestError
from retriever.hash_embedder import HashEmbedder

needs_compiler = pytest.mark.skipif(
    available_backends().get("cpu", "missing") is not None, reason="8-bit weights need the compiled kernels"
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return folder, make_engine_folder(folder, "llama-tied")


def a_teacher(folder, **settings) -> Teacher:
    settings = {"dtype": "float32", "backend": "reference", "kv_cache_bytes": 4 << 20, **settings}
    return Teacher(Engine.from_pretrained(folder, EngineConfig(**settings, max_draft_tokens=0)))


def a_prompt():
    return Prompt(
        [
            Segment(tuple(range(5)), SegmentKind.TEMPLATE),
            Segment(tuple(range(20, 60)), SegmentKind.PASSAGE),
            Segment(tuple(range(60, 67)), SegmentKind.TAIL),
        ]
    )


def oracle(hf, prompt, answer):
    """Transformers' logits before each token of the answer, from one pass over everything."""
    ids = torch.tensor([[*prompt.tokens, *answer]])
    with torch.no_grad():
        return hf(ids).logits[0, prompt.num_tokens - 1 : -1].float()


def test_dictated_logits_are_those_of_an_independent_forward_pass(model):
    folder, hf = model
    teacher, answer = a_teacher(folder), (3, 90, 3, 41, 96)
    dictated = teacher.dictate(a_prompt(), answer)
    assert dictated.tokens == answer
    torch.testing.assert_close(dictated.logits, oracle(hf, a_prompt(), answer), rtol=1e-4, atol=1e-4)
    assert dictated.lean_rows == 0
    again = teacher.dictate(a_prompt(), answer[:3])
    torch.testing.assert_close(again.logits, dictated.logits[:3])
    assert not teacher.engine.cache.is_cached(NAMESPACE, a_prompt().segments[:1]), "an answer leaves no cache behind"
    assert teacher.engine.stats().running == 0


def test_free_answers_are_greedy(model):
    folder, hf = model
    answered = a_teacher(folder).answer(a_prompt(), max_tokens=6)
    assert len(answered.tokens) == 6
    assert oracle(hf, a_prompt(), answered.tokens).argmax(-1).tolist() == list(answered.tokens)
    assert answered.logits.argmax(-1).tolist() == list(answered.tokens)


def test_every_row_of_an_answer_is_its_own_decode_step(model, monkeypatch):
    teacher = a_teacher(model[0])
    rows = []
    original = type(teacher.engine.runner).run
    monkeypatch.setattr(
        type(teacher.engine.runner), "run",
        lambda runner, batch: rows.append((len(batch.token_ids), batch.private)) or original(runner, batch),
    )  # fmt: skip
    teacher.dictate(a_prompt(), (1, 2, 3))
    assert rows == [(45, False), (7, True), (1, True), (1, True)], "passages, the question, then token by token"


@needs_compiler
def test_private_rows_are_computed_with_8_bit_weights_where_that_is_asked(model):
    folder, hf = model
    answer = (3, 90, 3, 41)
    full = a_teacher(folder, backend="cpu", weights="full").dictate(a_prompt(), answer)
    lean = a_teacher(folder, backend="cpu", weights="int8").dictate(a_prompt(), answer)
    assert (full.lean_rows, lean.lean_rows) == (0, 4)
    exact = Dictated(answer, oracle(hf, a_prompt(), answer), 0)
    assert max(compare(exact, full).kl) < 1e-6
    assert 1e-6 < max(compare(exact, lean).kl) < 1


def test_comparison_of_hand_made_distributions():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
    found = compare(Dictated((0, 1), torch.stack([p, p]).log() + 3, 0), Dictated((0, 1), torch.stack([p, q]).log(), 0))
    assert found.kl == pytest.approx([0, 0.5 * math.log(2) - 0.25 * math.log(2)], abs=1e-7)
    assert found.agrees == [True, False]
    with pytest.raises(AssertionError, match="answers differ"):
        compare(Dictated((0,), p[None], 0), Dictated((1,), p[None], 0))


def test_summary_weighs_every_token_and_resamples_answers():
    answers = [AnswerFidelity(kl=[0.1, 0.3], agrees=[True, True]), AnswerFidelity(kl=[0.8], agrees=[False])]
    found = summary_of(answers, dtype="bfloat16", weights="full", backend="x", lean_rows=2, seed=0)
    assert found.mean_kl is not None
    assert found.agreement is not None
    assert found.mean_kl.value == pytest.approx(0.4)
    assert (found.mean_kl.low, found.mean_kl.high) == pytest.approx((0.2, 0.8)), "either answer twice"
    assert found.agreement.value == pytest.approx(2 / 3)
    assert found.max_kl == 0.8
    assert found.p99_kl == pytest.approx(0.79)
    assert found.first_kl == pytest.approx(0.45)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = make_chat_model(tmp_path_factory.mktemp("models") / "tiny")
    whole = load_corpus("python-topics")
    documents = tuple(sorted(whole.documents, key=lambda document: len(document.text))[10:14])
    corpus = Corpus(whole.name, whole.source, whole.licence, documents)
    config = RagConfig(
        data_dir=folder / "the-users-own", models_dir=folder / "none", model=str(folder), embedder=str(folder),
        engine={"dtype": "float32", "backend": "reference", "block_size": 32},
        retriever={"passage_tokens": 200},
    )  # fmt: skip
    bench = FidelityBenchConfig(
        questions=2, max_tokens=4, dtypes=("float32", "bfloat16"), work_dir=folder.parent / "work"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "load_corpus", lambda name: corpus)
        patch.setattr(fidelity, "KV_BYTES", 8 << 20)
        events = []
        made = run(config, bench, events.append, embedder=HashEmbedder())
    measured = [event for event in events if event.stage == "measure"]
    assert [event.done for event in measured] == list(range(1, 11))
    assert {event.total for event in measured} == {10}
    assert not config.data_dir.exists(), "the user's own data directory was used"
    return made


def test_the_reference_agrees_with_itself_and_others_do_not_quite(report):
    choices = {(choice.dtype, choice.weights): choice for choice in report.choices}
    same, rounded = choices["float32", "full"], choices["bfloat16", "full"]
    assert same.max_kl == 0
    assert same.agreement.value == 1
    assert 0 < rounded.mean_kl.value < 0.1
    assert [len(answer.kl) for answer in rounded.answers] == report.setting.answer_tokens
    assert "has no 8-bit weights" in choices["float32", "int8"].reason
    assert report.setting.configured == ["float32", "full"]
    assert len(report.setting.questions) == len(report.setting.prompt_tokens) == 2
    assert min(report.setting.prompt_tokens) > 100, "the prompts have no passages"


def test_report_survives_json_and_is_shown(report):
    assert FidelityReport.model_validate_json(report.model_dump_json()) == report
    printed = render(report)
    assert "float32, full (reference) *" in printed
    assert "bfloat16, full (reference) " in printed
    assert "not measured: float32, int8" in printed


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"questions": 0}, "questions"),
        ({"corpus": "x"}, "'x'"),
        ({"dtypes": ("f8",)}, "'f8'"),
        ({"weights": ("q",)}, "'q'"),
    ],
)
def test_settings_that_cannot_work(settings, named):
    with pytest.raises(InvalidRequestError, match=named):
        FidelityBenchConfig(**settings)


def test_command(report, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(fidelity, "run", lambda config, bench, progress: asked.append(bench) or report)
    path = tmp_path / "new" / "report.json"
    arguments = ["bench", "fidelity", "--questions", "3", "--dtype", "float16, bfloat16", "--weights", "int8"]
    result = CliRunner().invoke(app, [*arguments, "--output", str(path), "--json"])
    assert result.exit_code == 0
    assert asked == [FidelityBenchConfig(questions=3, dtypes=("float16", "bfloat16"), weights=("int8",))]
    assert FidelityReport.model_validate_json(path.read_text()) == report
    assert FidelityReport.model_validate_json(result.stdout) == report
    assert "mean KL" in result.stderr
