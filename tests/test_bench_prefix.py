"""The prefix benchmark: its figures are right, its modes are what they say, and it can fail."""

import json
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_models import SIZES
from typer.testing import CliRunner

from data.corpora import Corpus, load_corpus
from data.questions import Gold, Question
from rag.bench import prefix, stream
from rag.bench.prefix import PrefixBenchConfig, run
from rag.bench.report import AskedQuestion, Mode, PrefixReport, Record
from rag.bench.statistics import median_ratio, ratio_of_means, summarise
from rag.bench.stream import gold_rank
from rag.bench.summary import find_problems, recall_at, summaries_of
from rag.bench.table import render
from rag.cli.main import app
from rag.config import RagConfig
from rag.errors import InvalidRequestError
from retriever.hash_embedder import HashEmbedder

CHAT_TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}<assistant>"
DOCUMENTS = 6
QUESTIONS = 8


def make_model(folder):
    """Save a random model whose tokens are bytes, with a chat template."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    torch.manual_seed(0)
    sizes = {**SIZES, "vocab_size": 256, "max_position_embeddings": 4096}
    config = transformers.LlamaConfig(**sizes, eos_token_id=None, bos_token_id=None)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))


@pytest.fixture(scope="module")
def small_corpus():
    whole = load_corpus("python-topics")
    documents = sorted(whole.documents, key=lambda document: len(document.text))[10 : 10 + DOCUMENTS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix, "load_corpus", lambda name: Corpus(name, whole.source, whole.licence, tuple(documents)))
        yield documents


@pytest.fixture(scope="module")
def config(tmp_path_factory, small_corpus):
    import torch

    folder = tmp_path_factory.mktemp("tiny")
    make_model(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield RagConfig(
        data_dir=folder / "the-users-own",
        models_dir=folder / "models",
        model=str(folder),
        embedder=str(folder),  # never loaded: every run is given one
        engine={"dtype": "float32", "kv_cache_bytes": 64 << 20},
        retriever={"passage_tokens": 200},
    )
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def measure(config, work_dir):
    """Run the benchmark with other settings than the default ones."""

    def run_with(progress=lambda event: None, **settings):
        bench = PrefixBenchConfig(**{"questions": QUESTIONS, "k": 3, "max_tokens": 2, "work_dir": work_dir, **settings})
        return run(config, bench, progress, embedder=HashEmbedder())

    return run_with


@pytest.fixture(scope="module")
def report(measure):
    return measure()


def of(report, mode):
    return [record for record in report.records if record.mode is mode]


def test_modes_use_the_cache_as_they_say(report, config):
    off, cold, warm = (report.summaries.modes[mode] for mode in Mode)
    assert off.cached_tokens == off.hit_rate == off.passage_hit_rate == 0
    assert off.hit_tokens == {}
    assert set(off.passage_outcomes) == {"computed"}
    assert 0 < cold.cached_tokens < warm.cached_tokens
    assert warm.passage_hit_rate == 1
    assert sum(warm.hit_tokens.values()) == warm.cached_tokens
    first = next(record for record in of(report, Mode.COLD) if record.index == 0)
    assert first.cached_tokens == 0, "the cold cache was not empty at the start"
    assert report.problems == []
    assert not config.data_dir.exists(), "the user's own data directory was used"


def test_every_question_is_measured_once_a_mode(report):
    assert len(report.records) == 3 * QUESTIONS == 3 * report.summaries.measured
    for index in range(QUESTIONS):
        trio = [record for record in report.records if record.index == index]
        assert {record.mode for record in trio} == set(Mode)
        assert sorted(record.turn for record in trio) == [0, 1, 2]
        assert len({record.prompt for record in trio}) == 1
        for record in trio:
            parts = record.embed_ms + record.search_ms + record.queue_ms + record.prefill_ms
            assert 0 < record.prefill_ms < parts < record.ttft_ms <= record.total_ms
    assert len({tuple(r.mode for r in report.records[i : i + 3]) for i in range(0, len(report.records), 3)}) > 1


def test_answers_in_float32_do_not_depend_on_the_cache(report):
    assert all(len(record.answer_tokens) == 2 for record in report.records)
    assert [(c.compared, c.differing) for c in report.summaries.answers.values()] == [(QUESTIONS, 0)] * 2


def test_report_survives_json_and_is_enough_to_compute_its_figures_again(report):
    again = PrefixReport.model_validate_json(report.model_dump_json())
    assert again == report
    figures = summaries_of(again.records, again.questions, k=again.setting.k, seed=again.setting.seed)
    assert figures == report.summaries
    plain = json.loads(report.model_dump_json())
    assert set(plain["records"][0]) == set(Record.model_fields)
    assert plain["setting"]["dtype"] == "float32"
    assert plain["environment"]["cores"] >= 1
    assert plain["environment"]["torch"]


def test_table_shows_the_figures(report):
    printed = render(report)
    assert f"{report.summaries.modes[Mode.COLD].hit_rate:.1%}" in printed
    assert f" {report.summaries.modes[Mode.OFF].ttft_ms.median:.0f} " in printed
    assert "INTERRUPTED" not in printed
    assert "FAILED" not in printed


def test_same_seed_same_prompts(report, measure):
    prompts = [(r.index, r.mode, r.turn, r.prompt) for r in report.records]
    assert [(r.index, r.mode, r.turn, r.prompt) for r in measure().records] == prompts
    other = measure(seed=1)
    assert [r.prompt for r in of(other, Mode.OFF)] != [r.prompt for r in of(report, Mode.OFF)]


def test_saved_workload_is_replayed(report, measure, tmp_path):
    saved = tmp_path / "new" / "workload.jsonl"
    measure(questions=4, zipf_s=0.5, save_workload=saved)
    replayed = measure(workload=saved, seed=9)
    assert (replayed.setting.questions, replayed.setting.zipf_s, replayed.setting.workload_seed) == (4, 0.5, 0)
    straight = measure(questions=4, zipf_s=0.5)
    assert [r.prompt for r in of(replayed, Mode.OFF)] == [r.prompt for r in of(straight, Mode.OFF)]


def test_repeats_start_with_a_cold_cache_each(measure):
    report = measure(questions=3, repeats=2)
    assert len(report.records) == 18
    firsts = [r for r in of(report, Mode.COLD) if r.index == 0]
    assert [r.cached_tokens for r in firsts] == [0, 0]
    assert report.summaries.measured == 3


def test_reuse_in_the_off_mode_is_a_problem(measure, monkeypatch):
    monkeypatch.setattr(stream, "cache_of", lambda mode, repeat, index: "one for all")
    monkeypatch.setattr(stream.QuestionStream, "_drop", lambda *args: None)
    report = measure(questions=2)
    assert any("with the cache off, 2 answers had cached tokens" in problem for problem in report.problems)
    assert "FAILED SELF-CHECK" in render(report)


def test_no_kv_is_stored(measure, work_dir):
    measure()
    assert list(work_dir.rglob("*.sqlite3"))
    assert not list(work_dir.rglob("kv"))


def test_evictions_are_told(measure, config, work_dir):
    blocks = 150
    small = config.model_copy(
        update={"engine": config.engine.model_copy(update={"kv_cache_bytes": blocks * 2 * 3 * 2 * 8 * 16 * 4})}
    )
    bench = PrefixBenchConfig(questions=QUESTIONS, k=3, max_tokens=2, work_dir=work_dir)
    report = run(small, bench, lambda event: None, embedder=HashEmbedder())
    assert report.setting.kv_blocks == blocks
    assert report.evicted_blocks > 0
    assert any("were evicted" in warning for warning in report.warnings)
    assert report.problems == []


def interrupt_after(count):
    def progress(event):
        if event.stage == "measure" and event.done == count:
            raise KeyboardInterrupt

    return progress


def test_interruption_keeps_complete_questions(measure):
    report = measure(interrupt_after(8))
    assert report.interrupted
    assert len(report.records) == 6
    assert report.summaries.measured == 2
    assert "INTERRUPTED: 6 of 24" in render(report)


def test_interruption_before_the_first_question_is_complete(measure):
    with pytest.raises(KeyboardInterrupt):
        measure(interrupt_after(2))


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"questions": 0}, "questions"), ({"k": 0}, "k is 0"), ({"corpus": "x"}, "'x'"), ({"popularity": "y"}, "'y'")],
)
def test_settings_that_cannot_work(settings, named):
    with pytest.raises(InvalidRequestError, match=named):
        PrefixBenchConfig(**settings)


def hit(uri, text):
    return SimpleNamespace(passage=SimpleNamespace(uri=uri, text=text))


def test_gold_rank():
    question = Question("What is a newt?", (Gold("a", "uri:a", 0, 21, "A newt is an\n amphibian."),))
    wrong_text, right = hit("uri:a", "A newt."), hit("uri:a", "So: A newt is an amphibian. Yes.")
    wrong_document = hit("uri:b", "A newt is an amphibian.")
    assert gold_rank(question, [wrong_text, wrong_document, right]) == 3
    assert gold_rank(question, [right, right]) == 1
    assert gold_rank(question, [wrong_text, wrong_document]) is None


def test_recall():
    ranks = [1, 2, None, 4, 1]
    assert recall_at(ranks, 4) == {1: 2 / 5, 3: 3 / 5, 4: 4 / 5}
    assert recall_at(ranks, 2) == {1: 2 / 5, 2: 3 / 5}
    assert recall_at([None], 1) == {1: 0}


def make_record(mode, index, question=0, **fields):
    plain = {
        "repeat": 0, "turn": 0, "ttft_ms": 10.0, "embed_ms": 1, "search_ms": 1, "queue_ms": 1, "prefill_ms": 5.0,
        "total_ms": 20, "prompt": "p", "prompt_tokens": 100, "passage_tokens": 80, "cached_tokens": 0,
        "passage_hit_tokens": 0, "hit_tokens": {}, "passage_outcomes": {}, "answer_tokens": [1],
        "finish_reason": "stop",
    }  # fmt: skip
    return Record(mode=mode, index=index, question=question, **{**plain, **fields})


def test_figures_of_hand_made_records():
    questions = [
        AskedQuestion(text="a", gold_uris=["u"], gold_rank=2, passage_ids=["1", "2"], scores=[1, 0.5]),
        AskedQuestion(text="b", gold_uris=["u"], gold_rank=None, passage_ids=["2", "3"], scores=[1, 0.5]),
    ]
    warm = {"cached_tokens": 90, "passage_hit_tokens": 80, "hit_tokens": {"path": 90}}
    records = []
    for index, question, off, cold in [(0, 0, 40, 40), (1, 0, 60, 20), (2, 1, 80, 40)]:
        records += [
            make_record("off", index, question, ttft_ms=off, prompt=str(question)),
            make_record("cold", index, question, ttft_ms=cold, prompt=str(question), answer_tokens=[index]),
            make_record("warm", index, question, ttft_ms=10, prompt=str(question), **warm),
        ]
    figures = summaries_of(records, questions, k=2, seed=0)
    assert (figures.measured, figures.distinct_questions, figures.distinct_passages) == (3, 2, 3)
    assert figures.off_over[Mode.COLD].ttft.value == 2
    assert figures.off_over[Mode.COLD].mean_ttft.value == pytest.approx(180 / 100)
    assert figures.off_over[Mode.WARM].ttft.value == 6
    assert (figures.modes[Mode.WARM].hit_rate, figures.modes[Mode.WARM].passage_hit_rate) == (0.9, 1)
    assert figures.answers[Mode.COLD].records == [(0, 0), (0, 2)]
    assert figures.recall.distinct == {1: 0, 2: 1 / 2}
    assert figures.recall.stream == {1: 0, 2: 2 / 3}
    assert find_problems(records, evicted_blocks=0) == []


def test_problems():
    leak = make_record("off", 4, cached_tokens=16, hit_tokens={"computed": 16})
    assert "1 answers had cached tokens (number 4" in find_problems([leak], evicted_blocks=0)[0]
    cold_again = make_record("warm", 0, passage_hit_tokens=64)
    assert "computed passage tokens again" in find_problems([cold_again], evicted_blocks=0)[0]
    assert find_problems([cold_again], evicted_blocks=1) == []
    unequal = [make_record("off", 0), make_record("cold", 0, prompt="q")]
    assert "same prompts for questions [0]" in find_problems(unequal, evicted_blocks=0)[0]


def test_summary_against_other_implementations():
    values = np.random.default_rng(5).exponential(size=83).tolist()
    found = summarise(values)
    assert found.median == pytest.approx(statistics.median(values))
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.p90 == pytest.approx(statistics.quantiles(values, n=10, method="inclusive")[-1])
    assert (found.least, found.most, found.n) == (min(values), max(values), 83)
    assert summarise([7.0]).p90 == 7


def test_ratios_against_scipy():
    from scipy.stats import bootstrap

    generator = np.random.default_rng(3)
    numerators = generator.lognormal(1.0, 0.5, 501)
    denominators = generator.lognormal(0.0, 0.2, 501)
    found = median_ratio(numerators.tolist(), denominators.tolist())
    ratios = numerators / denominators
    assert found.value == pytest.approx(np.median(ratios))
    other = bootstrap((ratios,), np.median, n_resamples=10_000, method="percentile", rng=generator)
    assert found.low == pytest.approx(other.confidence_interval.low, rel=0.03)
    assert found.high == pytest.approx(other.confidence_interval.high, rel=0.03)
    assert median_ratio(numerators.tolist(), denominators.tolist()) == found
    of_means = ratio_of_means(numerators.tolist(), denominators.tolist())
    other = bootstrap(
        (numerators, denominators),
        lambda a, b, axis: a.mean(axis) / b.mean(axis),
        n_resamples=10_000, method="percentile", paired=True, vectorized=True, rng=generator,
    )  # fmt: skip
    assert of_means.value == pytest.approx(numerators.mean() / denominators.mean())
    assert of_means.low == pytest.approx(other.confidence_interval.low, rel=0.01)
    assert of_means.high == pytest.approx(other.confidence_interval.high, rel=0.01)
    certain = median_ratio([4.0, 6.0], [2.0, 3.0])
    assert (certain.low, certain.value, certain.high) == (2, 2, 2)


@pytest.mark.parametrize(
    ("changes", "code"), [({}, 0), ({"problems": ["it leaks"]}, 1), ({"interrupted": True}, 130)], ids=str
)
def test_command(report, monkeypatch, tmp_path, changes, code):
    made = report.model_copy(update=changes)
    asked = []
    monkeypatch.setattr(prefix, "run", lambda config, bench, progress: asked.append(bench) or made)
    path = tmp_path / "new" / "report.json"
    arguments = ["bench", "prefix", "--questions", "7", "--zipf", "1.5", "-k", "2", "--output", str(path)]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == code
    assert asked == [PrefixBenchConfig(questions=7, zipf_s=1.5, k=2)]
    assert PrefixReport.model_validate_json(path.read_text()) == made
    assert PrefixReport.model_validate_json(result.stdout) == made
    assert "passage hits" in result.stderr


def test_command_refuses_an_output_that_cannot_be_written_before_it_measures(monkeypatch, tmp_path):
    monkeypatch.setattr(prefix, "run", lambda *args: pytest.fail("it was measured"))
    result = CliRunner().invoke(app, ["bench", "prefix", "--output", str(tmp_path)])
    assert result.exit_code == 2
    assert "name a file" in result.stderr
