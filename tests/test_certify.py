"""The test of chunk reuse, run over a tiny model: what it measures, writes, keeps and refuses."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from certify_helpers import a_row
from engine_helpers import passage, tail, template
from rag_helpers import make_chat_model
from typer.testing import CliRunner

from data.corpora import Corpus, load_corpus
from engine import Engine, Prompt, Reuse
from engine.certificate import Certificate
from rag.bench.environment import RunClock
from rag.certify import config as certify_config
from rag.certify import probes
from rag.certify.answers import score_answer, token_f1
from rag.certify.config import CertifyConfig
from rag.certify.figures import FiguresFile, SetFigures, WayFigures
from rag.certify.folders import certificates_of, own_certificates
from rag.certify.measurements import Measurements
from rag.certify.probes import Probe
from rag.certify.questions import Asked, ask_corpus, ask_file, ask_passages
from rag.certify.report import CertifyReport, CertifySetting
from rag.certify.run import run
from rag.certify.scorer import Scorer, draw_orders, figures_of
from rag.certify.table import render
from rag.cli.main import app
from rag.config import RagConfig
from rag.errors import InvalidRequestError
from rag.model_hub import ModelHub
from rag.service import Service
from retriever.document import TextSource
from retriever.hash_embedder import HashEmbedder

pytestmark = pytest.mark.usefixtures("one_thread")

WAY = WayFigures(kl=0.1, agreement=0.9, first_kl=0.2)
WHOLE = 512  # a repair that leaves nothing to reuse


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = make_chat_model(tmp_path_factory.mktemp("models") / "tiny")
    return RagConfig(
        data_dir=folder / "data", models_dir=folder / "none", model=str(folder), embedder=str(folder),
        engine={"dtype": "float32", "backend": "reference", "kv_cache_bytes": 8 << 20},
        retriever={"passage_tokens": 120},
    )  # fmt: skip


@pytest.fixture(scope="module")
def corpus():
    whole = load_corpus("python-topics")
    documents = tuple(sorted(whole.documents, key=lambda document: len(document.text))[10:16])
    return Corpus(whole.name, whole.source, whole.licence, documents)


@pytest.fixture
def small(monkeypatch, corpus, tmp_path):
    """Makes runs of two sets a stage over a small corpus, each test with a work folder of its own."""
    monkeypatch.setattr(certify_config, "FEWEST_SETS", 2)
    monkeypatch.setattr(probes, "load_corpus", lambda name: corpus)

    def make(**changed) -> CertifyConfig:
        fields = {"corpus": corpus.name, "sets": 2, "ks": (2,), "max_tokens": 2, "orders": 1, "repairs": (WHOLE,)}
        return CertifyConfig(**(fields | {"work_dir": tmp_path / "work"} | changed))

    return make


def certify(config, wanted, progress=lambda event: None) -> CertifyReport:
    return run(config, wanted, progress, embedder=HashEmbedder())


@pytest.fixture(scope="module")
def engine(config):
    return Engine.from_pretrained(config.model, config.engine.build())


def a_prompt(k: int) -> Prompt:
    passages = [passage(range(start, start + 48), str(start)) for start in range(20, 20 + 50 * k, 50)]
    return Prompt([template(range(30)), *passages, tail(range(5))])


def test_log_probabilities_compared():
    full = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]).log()
    other = torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6]]).log()
    figures = figures_of(full, other)
    assert figures.first_kl == pytest.approx(0.25 * math.log(2))
    assert figures.kl == pytest.approx(0.125 * math.log(2))
    assert figures.agreement == 0.5


@pytest.mark.parametrize(("k", "expected"), [(2, 1), (3, 4), (10, 4)])
def test_orders_are_distinct_and_not_the_one_that_is_there(k, expected):
    orders = draw_orders(4, k, "a seed")
    assert len(set(orders)) == len(orders) == expected
    assert all(sorted(order) == list(range(k)) and order != tuple(range(k)) for order in orders)
    assert draw_orders(4, k, "a seed") == orders
    assert draw_orders(4, 10, "another") != draw_orders(4, 10, "a seed")


def test_reuse_of_nothing_moves_nothing_and_reuse_moves_something(engine):
    scorer = Scorer(engine, (0, 16, 48), max_tokens=6, orders=4)
    found = scorer.measure({2: a_prompt(2), 4: a_prompt(4)}, seed="s")
    for k, figures in found.items():
        assert figures.passage_tokens == (48,) * k
        assert figures.answer_tokens == 6
        assert figures.chunk[48].kl < 1e-9, "every passage is computed whole"
        assert figures.chunk[48].agreement == 1
        assert figures.chunk[0].kl > figures.chunk[16].kl > 1e-9
        assert figures.reordered.kl > 1e-9
        assert figures.no_passages.kl > figures.chunk[16].kl
        assert not figures.answers
    assert engine.stats().cached_blocks == 0, "nothing is left behind"


def test_without_the_template_reuse_is_worse(engine):
    prompts = {3: a_prompt(3)}
    good, bad = (Scorer(engine, (0,), 6, 1, template=kept).measure(prompts, seed="s")[3] for kept in (True, False))
    assert bad.chunk[0].kl > 2 * good.chunk[0].kl
    assert bad.reordered == good.reordered, "full prefill keeps its template"


def test_free_answers_are_scored(engine):
    answer = engine.generate([a_prompt(2)])[0].text
    scorer = Scorer(engine, (0, 48), max_tokens=8, orders=1)
    scores = scorer.answer({2: a_prompt(2)}, (answer[:3],), seed="s")[2]
    assert set(scores) == {"full", "another order", "no passages", "repair 0", "repair 48"}
    assert scores["full"].f1_full == scores["repair 48"].f1_full == 1


def test_a_repair_that_passes_is_certified_and_chunk_reuse_is_allowed(config, small):
    events = []
    report = certify(config, small(ks=(2, 3)), events.append)
    assert [(band.max_passages, band.repair) for band in report.bands] == [(2, WHOLE), (3, WHOLE)]
    assert [(row.stage, row.passages) for row in report.rows] == [
        ("screening", 2), ("confirmation", 2), ("screening", 3), ("confirmation", 3)
    ]  # fmt: skip
    assert {event.stage for event in events} == {"ingest", "retrieve", "screening", "confirmation"}
    certificates = certificates_of(ModelHub(config.models_dir), config.model)
    engine = Engine.from_pretrained(config.model, config.engine.build(), certificates=certificates)
    head = layout_head(config)
    found = certificates.find(engine.identity, head.tokens)
    assert found is not None
    assert (found.repairs, found.min_passages, found.max_passages) == ((WHOLE, WHOLE), 2, 3)
    assert found.rows == report.rows
    assert report.certificate is not None
    assert Certificate.model_validate_json(Path(report.certificate).read_text()) == found
    length = found.min_passage_tokens
    covered = Prompt([head, *(passage(range(40, 40 + length), name) for name in "ab"), tail(range(5))])
    engine.submit(covered, reuse=Reuse.CHUNK)
    assert not config.data_dir.exists(), "the user's own data directory was used"


def layout_head(config):
    with Service(config, embedder=HashEmbedder()) as service:
        return service.components.layout().head


def test_what_was_measured_is_not_measured_again(config, small):
    first = certify(config, small())
    again = certify(config, small())
    assert (first.measured, again.measured) == (4, 0)
    assert again.rows == first.rows
    more = certify(config, small(ks=(2, 3)))
    assert more.measured == 4
    assert [row for row in more.rows if row.passages == 2] == list(first.rows), "of these only k 3 was measured"
    spoken = certify(config, small(answers=True))
    assert spoken.measured == 2, "the free answers of the questions that choose the repair"
    assert spoken.answers
    assert spoken.rows == first.rows
    assert certify(config, small(answers=True)).measured == certify(config, small()).measured == 0


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"sets": 9}, True),
        ({"ks": (2, 5)}, True),
        ({"repairs": (16,)}, False),
        ({"max_tokens": 3}, False),
        ({"orders": 2}, False),
        ({"seed": 1}, False),
        ({"answers": True}, True),
        ({"template": False}, False),
    ],
)
def test_figures_are_used_again_only_where_they_would_be_the_same(small, changed, same):
    probe = Probe(Asked("Why?", ("gold",)), {2: a_prompt(2)})
    figures = SetFigures(passage_tokens=(48, 48), answer_tokens=2, reordered=WAY, no_passages=WAY, chunk={WHOLE: WAY})
    measured = []

    class FakeScorer:
        def measure(self, prompts, *, seed):
            measured.append(list(prompts))
            return dict.fromkeys(prompts, figures)

        def answer(self, prompts, golds, *, seed):
            return {k: {"full": score_answer("gold", "gold", golds)} for k in prompts}

    for settings in ({}, changed):
        wanted = replace(small(**settings), ks=(2,))
        measurements = Measurements(None, wanted, "key", [probe, probe], lambda event: None)
        measurements._scorer = FakeScorer()
        found = measurements.screening()[2]
        assert [one.model_copy(update={"answers": {}}) for one in found] == [figures] * min(2, wanted.sets)
    assert measured == [[2]] if same else [[2], [2]]


def test_an_interrupted_run_goes_on_where_it_ended(config, small):
    def interrupt(event):
        if event.stage == "screening":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        certify(config, small(), interrupt)
    assert certify(config, small()).measured == 3


def test_reuse_that_moves_answers_too_far_is_refused(config, small, monkeypatch):
    def measure(self, prompts, *, seed):
        far, near = (WayFigures(kl=kl, agreement=0.9, first_kl=kl) for kl in (0.06, 0.05))
        blind = WayFigures(kl=0.4, agreement=0.7, first_kl=0.4)
        return {
            k: SetFigures(
                passage_tokens=(30,) * k, answer_tokens=4, reordered=near, no_passages=blind,
                chunk=dict.fromkeys(self.repairs, far),
            )
            for k in prompts
        }  # fmt: skip

    monkeypatch.setattr(Scorer, "measure", measure)
    before = set(own_certificates(ModelHub(config.models_dir), config.model).glob("*"))
    report = certify(config, small(ks=(2, 3), repairs=(0, 16)))
    assert report.bands == ()
    assert report.certificate is None
    assert {row.stage for row in report.rows} == {"screening"}, "nothing to confirm"
    assert [(row.passages, row.passes) for row in report.rows] == [(2, False)] * 2
    printed = render(report)
    assert "REFUSED" in printed
    assert "screening, 2 passages, repair 16: it may move answers more than another order does" in printed
    assert set(own_certificates(ModelHub(config.models_dir), config.model).glob("*")) == before


def test_without_the_template_no_certificate_is_written(config, small):
    report = certify(config, small(template=False))
    assert [band.repair for band in report.bands] == [WHOLE]
    assert report.certificate is None
    assert "without the template there is no certificate" in render(report)


def test_the_users_own_collection_with_questions_from_its_passages_or_a_file(config, small, corpus, tmp_path):
    config = config.model_copy(update={"data_dir": tmp_path / "data"})
    with Service(config, embedder=HashEmbedder()) as service:
        service.ingest("mine", [TextSource(d.uri, d.text, d.title, d.media_type) for d in corpus.documents])
    own = certify(config, small(corpus=None, collection="mine", answers=True))
    assert own.setting.corpus == "mine"
    assert {row.way for row in own.answers} >= {"full", "another order", f"repair {WHOLE}"}
    assert "free answers" in render(own)
    questions = tmp_path / "questions.txt"
    questions.write_text("What is a list?\n\nWhat is a dict?\nWhat is a list?\nWhy?\n")
    with pytest.raises(InvalidRequestError, match="gives 3 questions, and 2 sets need 4"):
        certify(config, small(corpus=None, collection="mine", questions=questions))
    with pytest.raises(InvalidRequestError, match="lower --k"):
        certify(config, small(corpus=None, collection="mine", ks=(2, 99)))


def test_questions(corpus, tmp_path):
    asked = ask_corpus(corpus, seed=0)
    golds = [one.golds[0] for one in asked]
    assert len(set(golds)) == len(golds) > 4, "two questions about one text"
    assert [one.question for one in asked] != [one.question for one in ask_corpus(corpus, seed=1)]
    assert ask_passages([], seed=0) == []
    with pytest.raises(InvalidRequestError, match=r"nothing\.txt"):
        ask_file(tmp_path / "nothing.txt")


def test_a_cut_line_is_measured_again_and_spoils_no_other(tmp_path, caplog):
    path = tmp_path / "work" / "figures.jsonl"
    a, b, c = (
        SetFigures(passage_tokens=(n,), answer_tokens=n, reordered=WAY, no_passages=WAY, chunk={0: WAY})
        for n in (1, 2, 3)
    )
    FiguresFile(path).add("a", a)
    FiguresFile(path).add("b", b)
    path.write_bytes(path.read_bytes()[:-5])
    file = FiguresFile(path)
    assert "line 2" in caplog.text
    file.add("c", c)
    again = FiguresFile(path)
    assert (again.get("a"), again.get("b"), again.get("c")) == (a, None, c)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [("a b c", "A, b! c", 1), ("a b", "b c", 0.5), ("a a b", "a", 0.5), ("", "a", 0), ("", "", 1)],
)
def test_token_f1(answer, reference, expected):
    assert token_f1(answer, reference) == pytest.approx(expected)


def test_containment_looks_past_white_space_and_case():
    score = score_answer("It says: Return\n the  list.", "It says", ["other", "return the list"])
    assert score.has_gold
    assert score.f1_gold == pytest.approx(0.75)
    assert not score_answer("no", "no", []).has_gold


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"corpus": "x"}, "'x'"),
        ({"sets": 3}, "sets is 3"),
        ({"ks": (1, 5)}, "k is 1,5"),
        ({"ks": (5, 2)}, "k is 5,2"),
        ({"repairs": ()}, "repairs is empty"),
        ({"orders": 0}, "orders"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"corpus": "python-topics", "questions": "x"}, "from a file"),
    ],
)
def test_settings_that_cannot_work(settings, named):
    with pytest.raises(InvalidRequestError, match=named):
        CertifyConfig(**settings)


@pytest.fixture
def refused():
    row = a_row().model_copy(update={"failures": ("too far",), "stage": "screening"})
    setting = CertifySetting(
        model="tiny", compute_mode="float32", kv_dtype="float32", corpus="mine", sets=16, ks=(2,), repairs=(32,),
        max_tokens=64, orders=4, seed=0, template=True,
    )  # fmt: skip
    return CertifyReport(
        setting=setting, environment=RunClock().environment(), rows=(row,), answers=(), bands=(), certificate=None,
        seconds=1.0, measured=32,
    )  # fmt: skip


def test_command(refused, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("rag.certify.run.run", lambda config, wanted, progress: asked.append(wanted) or refused)
    path = tmp_path / "report.json"
    arguments = ["certify", "--corpus", "python-topics", "--sets", "20", "--k", "2, 4", "--repairs", "0", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--no-template", "--answers", "--output", str(path)])
    assert result.exit_code == 1, "a refusal is a failure"
    assert asked == [
        CertifyConfig(corpus="python-topics", sets=20, ks=(2, 4), repairs=(0,), template=False, answers=True)
    ]
    assert CertifyReport.model_validate_json(result.stdout) == refused
    assert CertifyReport.model_validate_json(path.read_text()) == refused
    assert "REFUSED" in result.stderr
    assert "too far" in result.stderr


def test_command_interrupted(monkeypatch, tmp_path):
    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("rag.certify.run.run", interrupted)
    result = CliRunner().invoke(app, ["certify", "--output", str(tmp_path / "report.json")])
    assert result.exit_code == 130
    assert "goes on" in result.stderr


def test_a_number_that_is_none_is_named():
    result = CliRunner().invoke(app, ["certify", "--k", "2,x"])
    assert result.exit_code == 2
    assert "'2,x'" in result.stderr
