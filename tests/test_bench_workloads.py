"""Workloads of the benchmark's suites: every kind gives prompts, the seed decides them, and a file replays them."""

import json
import os
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from rag_helpers import make_chat_model, run_cli

from data.corpora import Corpus, load_corpus
from data.errors import DataError
from data.folders import find_corpus
from data.traces import Trace
from engine.prompt import SegmentKind
from engine.tokenizer import Tokenizer
from rag.bench.suite import drawing, prompts
from rag.bench.suite.description import WorkloadReport, describe, render
from rag.bench.suite.drawing import draw, save_workload, saved_spec
from rag.bench.suite.experiment import Arrivals, WorkloadSpec
from rag.bench.suite.prompts import make_stream
from rag.components import Components
from rag.config import RagConfig
from rag.errors import InvalidRequestError
from retriever.hash_embedder import HashEmbedder

MADE_UP = ("documents", "passages", "fusion", "orders", "conversations")
SMALL = {"count": 12, "k": 3, "length": 40, "pool": 60, "question_tokens": 10, "output_tokens": 5}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_chat_model(folder)
    return RagConfig(
        data_dir=folder / "the-users-own",
        models_dir=folder,
        model=str(folder),
        embedder="hash",
        retriever={"passage_tokens": 200, "overlap_tokens": 10},
    )


@pytest.fixture(scope="module", autouse=True)
def short_texts():
    """Few letters in place of Python's documentation, and a few short topics: bytes are many tokens."""
    whole = load_corpus("python-topics")
    shortest = tuple(sorted(whole.documents, key=lambda document: len(document.text))[10:20])
    topics = Corpus(whole.name, whole.source, whole.licence, shortest)
    text = random.Random(0).choices(range(97, 123), k=9000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompts, "read_documentation", lambda tokenizer: text)
        for module in (prompts, drawing):
            patch.setattr(module, "find_corpus", lambda name: topics if name == topics.name else find_corpus(name))
        yield


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def stream_of(config, work_dir):
    def make(kind, progress=lambda event: None, **changes):
        spec = kind if isinstance(kind, WorkloadSpec) else WorkloadSpec(kind=kind, **{**SMALL, **changes})
        return make_stream(spec, config, progress, work_dir=work_dir, embedder=HashEmbedder())

    return make


@pytest.fixture
def ragpulse(tmp_path):
    """A recorded trace of six requests, the fourth of them too long for the model."""
    lengths = {
        "1_sys_prompt.jsonl": ("sys_prompt_id", {1: 60, 2: 30}),
        "2_passages.jsonl": ("passage_id", {10: 20, 11: 25, 12: 5000, 13: 0}),
        "3_history.jsonl": ("history_id", {20: 11}),
        "4_user_input.jsonl": ("user_input_id", {30: 9}),
        "5_web_search.jsonl": ("web_search_id", {40: 14}),
    }
    for name, (field, known) in lengths.items():
        lines = [json.dumps({field: number, "token_length": length}) for number, length in known.items()]
        (tmp_path / name).write_text("\n".join(lines))
    with (tmp_path / "0_trace.jsonl").open("w") as file:
        for number, passages in enumerate(([10, 11], [11], [], [12], [11, 10, 13], [10, 11])):
            ids = {
                "sys_prompt": [1, 2],
                "passages_ids": passages,
                "history": [20],
                "web_search": [],
                "user_input": [30],
            }
            line = {"timestamp": str(80 + 10 * number), "input_length": 9, "output_length": 99, "session_id": "s"}
            file.write(json.dumps({**line, "hash_ids": ids}) + "\n")
    return tmp_path


def shapes_of(request):
    return [(segment.kind, len(segment.tokens)) for segment in request.prompt.segments if segment.kind != "tail"]


@pytest.mark.parametrize("kind", MADE_UP)
def test_made_up_traffic_has_the_shipped_layout(stream_of, config, kind):
    stream = stream_of(kind)
    head = Components(config).layout().head
    assert [request.number for request in stream.requests] == list(range(12))
    for request in stream.requests:
        template, *passages, tail = request.prompt.segments
        assert template == head == stream.template
        assert [one.kind for one in passages] == [SegmentKind.PASSAGE] * 3
        assert tail.kind is SegmentKind.TAIL
        assert request.output_tokens == 5
        assert (request.question, request.golds, request.gold_rank, request.retrieval_ms) == ("", (), None, None)
        if kind != "documents":
            assert {len(one.tokens) for one in passages} == {40}
    assert stream.longest < 4096
    assert len({one.tokens for one in stream.passages}) == len({one.name for one in stream.passages})
    assert kind in stream.source


def test_a_turn_goes_on_where_the_last_one_and_its_recorded_answer_end(stream_of):
    stream = stream_of("conversations", turns=4)
    by_talk = {}
    for request in stream.requests:
        by_talk.setdefault(request.conversation, []).append(request.prompt)
    assert sorted(map(len, by_talk.values())) == [4, 4, 4]
    for turns in by_talk.values():
        for before, after in pairwise(turns):
            assert after.segments[:-1] == before.segments[:-1]
            assert after.tokens[: before.num_tokens] == before.tokens
            grown = after.num_tokens - before.num_tokens
            assert grown > SMALL["question_tokens"] + SMALL["output_tokens"]


def test_no_conversation_elsewhere(stream_of):
    assert {request.conversation for request in stream_of("passages").requests} == {""}


def test_questions_are_retrieved_for(stream_of, config):
    stream = stream_of("questions", count=20, pool=None)
    assert "language reference" in stream.source
    tokenizer = Tokenizer(Path(config.model))
    found = 0
    for request in stream.requests:
        assert shapes_of(request)[0] == (SegmentKind.TEMPLATE, len(stream.template.tokens))
        passages = request.prompt.segments[1:-1]
        assert len(passages) == 3
        assert request.retrieval_ms > 0
        assert request.question in tokenizer.decode(request.prompt.segments[-1].tokens)
        texts = [" ".join(tokenizer.decode(one.tokens).split()) for one in passages]
        holding = [
            rank for rank, text in enumerate(texts, 1) if any(" ".join(g.split()) in text for g in request.golds)
        ]
        if request.gold_rank is not None:
            assert request.gold_rank in holding
            found += 1
    assert found > 5, "the retriever finds something"
    assert not config.data_dir.exists(), "the user's own data directory was used"


def test_no_question_says_its_own_answer(stream_of, tmp_path):
    for name in ("lamp", "ferry", "keeper"):
        (tmp_path / f"{name}.html").write_text(f"<h1>The {name}</h1><p>All of Orrin looks for the {name} at noon.</p>")
    for corpus in ("python-topics", str(tmp_path)):
        stream = stream_of("questions", count=80, pool=None, corpus=corpus)
        for request in stream.requests:
            assert request.golds
            assert not any(" ".join(gold.split()) in " ".join(request.question.split()) for gold in request.golds)


@pytest.mark.parametrize(("skew", "named"), [(None, "Zipf (s = 1) over"), (0.5, "Zipf (s = 0.5) over")])
def test_the_skew_of_questions_is_stated(stream_of, skew, named):
    spec = WorkloadSpec(kind="questions", count=30, skew=skew)
    stream, drawn = stream_of(spec), draw(spec)
    questions = {one.question.text: one.question.gold_document_id for one in drawn.content.arrivals}
    assert len(questions) < 30
    assert f"{named} the documents they ask for" in stream.source
    assert f"{len(questions)} distinct questions, {len(set(questions.values()))} documents" in stream.source
    assert stream.source in " ".join(render(describe(drawn, stream)).split())


def test_questions_use_four_passages_where_nothing_else_is_asked_for(stream_of):
    stream = stream_of(WorkloadSpec(kind="questions", count=3))
    assert {len(request.prompt.segments) for request in stream.requests} == {6}


def test_a_folder_of_documentation_is_asked_about(stream_of, tmp_path, monkeypatch):
    for name, word in (("lamp", "every evening"), ("ferry", "at noon"), ("keeper", "in winter")):
        text = f"<h1>What is the {name}?</h1><p>The {name} of Orrin is what people look for {word}.</p>"
        (tmp_path / f"{name}.html").write_text(text + f"<p>More of the {name}.</p>" * 20)
    stream = stream_of("questions", corpus=str(tmp_path), pool=None, k=1)
    assert {request.question for request in stream.requests} >= {"What is the lamp?"}
    assert sum(request.gold_rank == 1 for request in stream.requests) >= 6
    assert str(tmp_path) in stream.source
    monkeypatch.chdir(tmp_path.parent)
    spec = WorkloadSpec(kind="questions", **{**SMALL, "corpus": tmp_path.name, "pool": None, "k": 1})
    save_workload(spec, tmp_path / "saved.jsonl")
    monkeypatch.chdir("/")
    assert stream_of(saved_spec(tmp_path / "saved.jsonl")).digest == stream.digest, (
        "the folder is known by its whole path"
    )


@pytest.mark.parametrize("kind", [*MADE_UP, "questions"])
def test_the_seed_decides_the_digest(stream_of, kind):
    pool = None if kind == "questions" else 60
    first, again, other = (stream_of(kind, seed=seed, pool=pool) for seed in (1, 1, 2))
    assert first.digest == again.digest != other.digest
    assert [one.prompt for one in first.requests] == [one.prompt for one in again.requests]


def test_another_process_makes_the_same_prompts(config):
    shape = {"count": 9, "k": 3, "length": 40, "pool": 60, "seed": 7, "arrivals": {"kind": "bursty", "rate": 2.0}}
    code = """
import json, random, sys
from rag.bench.suite import prompts
from rag.bench.suite.experiment import WorkloadSpec
from rag.config import RagConfig
prompts.read_documentation = lambda tokenizer: random.Random(0).choices(range(97, 123), k=9000)
config = RagConfig(models_dir=sys.argv[1], model=sys.argv[1])
for kind in sys.argv[3:]:
    spec = WorkloadSpec.model_validate({**json.loads(sys.argv[2]), "kind": kind})
    print(prompts.make_stream(spec, config, lambda event: None).digest)
"""
    there = subprocess.run(
        [sys.executable, "-c", code, config.model, json.dumps(shape), *MADE_UP],
        env={**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    specs = [WorkloadSpec.model_validate({**shape, "kind": kind}) for kind in MADE_UP]
    assert there == [make_stream(spec, config, lambda event: None).digest for spec in specs]
    assert len(set(there)) == len(MADE_UP)


POISSON = {"kind": "poisson", "rate": 4.0}


@pytest.mark.parametrize("kind", [*MADE_UP, "questions"])
@pytest.mark.parametrize("arrivals", [{"kind": "turns"}, POISSON, {"kind": "closed", "clients": 3}], ids=str)
def test_a_saved_workload_is_replayed_with_the_same_digest(stream_of, tmp_path, kind, arrivals):
    pool = None if kind == "questions" else 60
    spec = WorkloadSpec(kind=kind, **{**SMALL, "pool": pool, "count": 8, "seed": 5, "arrivals": arrivals})
    path = tmp_path / "new" / "workload.jsonl"
    save_workload(spec, path)
    replay = saved_spec(path)
    assert replay.count == 8
    assert replay.arrivals.kind == ("recorded" if arrivals is POISSON else arrivals["kind"])
    assert replay.arrivals.clients == arrivals.get("clients", 1)
    assert stream_of(replay).digest == stream_of(spec).digest
    save_workload(replay, path)  # a replay can be saved again
    assert stream_of(saved_spec(path)).digest == stream_of(spec).digest


def test_a_part_of_a_saved_workload_at_other_times(stream_of, tmp_path):
    spec = WorkloadSpec(kind="passages", **SMALL, arrivals=POISSON)
    path = tmp_path / "workload.jsonl"
    save_workload(spec, path)
    whole = stream_of(spec)
    recorded = {"kind": "recorded", "scale": 10.0}
    part = stream_of(WorkloadSpec(kind="file", path=str(path), first=4, count=5, arrivals=recorded))
    times = [10 * (one.time - whole.requests[3].time) for one in whole.requests[4:9]]
    assert [one.time for one in part.requests] == pytest.approx(times)
    assert [one.number for one in part.requests] == [0, 1, 2, 3, 4]
    assert list(map(shapes_of, part.requests)) == list(map(shapes_of, whole.requests[4:9]))
    with pytest.raises(InvalidRequestError, match="first is 12; the workload has 12 requests"):
        draw(WorkloadSpec(kind="file", path=str(path), first=12, count=1))


def test_arrivals_change_the_times_and_nothing_else(stream_of):
    turns, poisson, faster = (
        stream_of("passages", arrivals=one) for one in ({"kind": "turns"}, POISSON, {**POISSON, "rate": 8.0})
    )
    assert {one.time for one in turns.requests} == {0.0}
    assert [one.prompt for one in turns.requests] == [one.prompt for one in poisson.requests]
    assert [one.time for one in poisson.requests] == pytest.approx([2 * one.time for one in faster.requests])
    assert turns.digest != poisson.digest
    times = [one.time for one in poisson.requests]
    assert 0 < times[0] <= times[-1] < 12
    assert times == sorted(times)


def test_a_workload_saved_by_the_prefix_benchmark_is_asked_as_one_wants(stream_of, tmp_path):
    spec = WorkloadSpec(kind="questions", count=4)
    path = tmp_path / "workload.jsonl"
    bare = save_workload(spec, path).content
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text(json.dumps({**json.loads(lines[0]), "settings": {}}) + "\n" + "".join(lines[1:]), "utf-8")
    stream = stream_of(WorkloadSpec(kind="file", path=str(path), count=9, k=2, output_tokens=3))
    assert [one.question for one in stream.requests] == [one.question.text for one in bare.arrivals]
    assert {(one.output_tokens, len(one.prompt.segments)) for one in stream.requests} == {(3, 4)}


def test_a_recorded_trace_is_replayed_at_its_times(stream_of, ragpulse):
    spec = {"path": str(ragpulse), "count": 5, "first": 1, "arrivals": {"kind": "recorded", "scale": 0.5}}
    stream = stream_of("ragpulse", **spec)
    assert [one.time for one in stream.requests] == [5.0, 10.0, 20.0, 25.0]
    assert "1 requests too long for the model left out" in stream.source
    assert [len(one.prompt.segments) - 2 for one in stream.requests] == [1, 0, 2, 2]
    assert [one.number for one in stream.requests] == [0, 1, 2, 3]
    assert {one.output_tokens for one in stream.requests} == {5}
    assert stream_of("ragpulse", **{**spec, "first": 0}).requests[0].time == 0.0


def test_a_part_of_a_trace_can_be_saved(stream_of, ragpulse, tmp_path):
    spec = WorkloadSpec(kind="ragpulse", path=str(ragpulse), count=3, first=2, arrivals={"kind": "recorded"})
    path = tmp_path / "part.jsonl"
    save_workload(spec, path)
    assert len(Trace.load(path).requests) == 3
    assert str(ragpulse) not in path.read_text("utf-8")
    assert stream_of(saved_spec(path)).digest == stream_of(spec).digest


@pytest.mark.parametrize(
    ("asked", "described"),
    [
        ({"kind": "turns"}, "12, each after the last one's answer"),
        ({"kind": "closed", "clients": 8}, "12, 8 clients, each asking again when answered"),
        (POISSON, " a second for "),
    ],
    ids=str,
)
def test_arrivals_are_described_as_they_are_now(stream_of, tmp_path, asked, described):
    spec = WorkloadSpec(kind="passages", **SMALL, arrivals=asked)
    assert described in render(describe(draw(spec), stream_of(spec)))
    path = tmp_path / "workload.jsonl"
    for saved in (POISSON, {"kind": "closed"}):
        save_workload(spec.model_copy(update={"arrivals": Arrivals.model_validate(saved)}), path)
        replay = WorkloadSpec(kind="file", path=str(path), count=12, arrivals=asked)
        assert described in render(describe(draw(replay), stream_of(replay)))


@pytest.mark.parametrize("changes", [{"k": 2}, {"output_tokens": 99}], ids=str)
def test_a_saved_workload_stays_as_it_was_drawn(tmp_path, changes):
    path = tmp_path / "workload.jsonl"
    save_workload(WorkloadSpec(kind="passages", **SMALL), path)
    same = {name: SMALL[name] for name in changes}
    assert draw(WorkloadSpec(kind="file", path=str(path), count=3, **same)).spec.k == 3
    with pytest.raises(InvalidRequestError, match=r"workload\.jsonl keeps what it was drawn with: leave it out"):
        draw(WorkloadSpec(kind="file", path=str(path), count=3, **changes))


def test_progress_is_told(stream_of):
    events = []
    stream_of("questions", events.append, count=3, pool=None)
    assert {event.stage for event in events} == {"ingest", "load", "retrieve"}
    assert (events[-1].done, events[-1].total) == (3, 3)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kind": "file"}, "kind file needs a path: .* --path FILE .*--workload FILE"),
        ({"kind": "ragpulse"}, "kind ragpulse needs a path: .* --path FOLDER .*--trace FOLDER"),
        ({"kind": "passages", "path": "x"}, "kind passages is drawn and has no path"),
        ({"kind": "file", "path": "/nowhere/at-all"}, "at-all cannot be read"),
        ({"kind": "ragpulse", "path": "/nowhere"}, "give the folder of a RAGPulse trace"),
        ({"kind": "passages", "arrivals": {"kind": "poisson"}}, "poisson arrivals need a rate"),
        ({"kind": "fusion", "length": 10**12}, "a prompt has 3000000000000 tokens"),
        ({"kind": "fusion", "length": 1350}, "a prompt has 4... tokens.*reads 4091"),
        ({"kind": "fusion", "length": 2000}, "a prompt has 6... tokens.*reads 4091 before an answer of 5"),
        ({"kind": "orders", "pool": 3, "k": 3, "count": 7}, "have 6 orders"),
        ({"kind": "questions", "corpus": "wikipedia"}, "unknown corpus 'wikipedia'"),
        ({"kind": "questions", "pool": 10**6}, "1000000 questions asked for"),
        ({"kind": "questions", "pool": None, "skew": float("inf")}, "s is inf"),
        ({"kind": "passages", "skew": 11}, "skew is 11.0: .* from 0 to 10"),
        ({"kind": "passages", "arrivals": {"kind": "recorded"}}, "passages are drawn: choose others"),
        ({"kind": "fusion", "arrivals": {"kind": "bursty", "rate": 1, "cv": 1e200}}, r"cv is 1e\+200: give"),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_said(stream_of, changes, named):
    with pytest.raises((InvalidRequestError, DataError), match=named):
        stream_of(WorkloadSpec(**{**SMALL, **changes}))


@pytest.mark.parametrize("settings", [{}, {"workload": None}, {"workload": {"kind": "passages", "count": 0}}], ids=str)
def test_a_trace_without_its_workload_is_refused(tmp_path, settings):
    path = tmp_path / "trace.jsonl"
    save_workload(WorkloadSpec(kind="orders", **{**SMALL, "pool": 9}), path)
    head, *lines = path.read_text().splitlines(keepends=True)
    path.write_text(json.dumps({**json.loads(head), "settings": settings}) + "\n" + "".join(lines))
    with pytest.raises(InvalidRequestError, match=r"trace\.jsonl:1: settings without a workload"):
        saved_spec(path)


def test_figures_of_a_stream(stream_of):
    spec = WorkloadSpec(kind="conversations", **{**SMALL, "pool": 3}, turns=2, arrivals=POISSON)
    stream = stream_of(spec)
    report = describe(draw(spec), stream)
    assert (report.requests, report.conversations, report.passages, report.pool) == (12, 6, 3, 3)
    assert report.passage_tokens == 3 * 40
    assert report.passages_a_request == 3
    assert report.asked_once == 0
    assert report.asked_before == 11 / 12
    assert report.hot_draws == pytest.approx(1 / 3)
    orders = {tuple(one.name for one in request.prompt.segments[1:-1]) for request in stream.requests}
    assert report.known_orders == 1 - len(orders) / 12
    assert report.seconds == stream.requests[-1].time
    assert 0.2 < report.gap_cv < 3
    assert report.recall == {}
    assert report.digest in render(report)
    assert "conversations  6" in render(report)


def test_command(capsys, config, monkeypatch, tmp_path):
    monkeypatch.setenv("PREREAD_RETRIEVER__PASSAGE_TOKENS", "200")
    path = tmp_path / "saved.jsonl"
    model = ["--model", config.model, "--models-dir", config.models_dir]
    shape = ["-n", "9", "-k", "3", "--length", "40", "--seed", "4", "--arrivals", "poisson", "--rate", "3"]
    drawn = run_cli(capsys, [*model, "bench", "workload", "passages", *shape, "--save", path, "--json"])
    assert drawn.code == 0, drawn.err
    report = WorkloadReport.model_validate_json(drawn.out)
    assert (report.requests, report.workload.kind, report.workload.seed) == (9, "passages", 4)
    assert "saved" in drawn.err
    replayed = run_cli(capsys, [*model, "bench", "workload", "file", "--path", path, "--json"])
    again = WorkloadReport.model_validate_json(replayed.out)
    assert (again.digest, again.workload, again.seconds) == (report.digest, report.workload, report.seconds)
    timing = ["--arrivals", "poisson", "--rate", "1", "--seed"]  # there, the seed is that of the times
    first, second = (
        run_cli(capsys, [*model, "bench", "workload", "file", "--path", path, *timing, seed, "--json"]).out
        for seed in ("7", "8")
    )
    assert json.loads(first)["digest"] != json.loads(second)["digest"]
    printed = run_cli(capsys, [*model, "bench", "workload", "file", "--path", path, "--first", "2", "-n", "5"])
    assert "requests  5, " in printed.out
    assert report.digest not in printed.out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nonsense"], "kind is 'nonsense'"),
        (["passages", "--arrivals", "now"], "kind is 'now'"),
        (["passages", "--arrivals", "poisson", "--rate", "0"], "rate is 0.0"),
        (["passages", "--arrivals", "poisson"], "need a rate"),
        (["file"], "needs a path"),
        (["passages", "--pool", "2"], "pool is 2: 6 different passages"),
        (["questions", "--corpus", "nope"], "unknown corpus 'nope'"),
        (["ragpulse"], "--path FOLDER"),
        (["passages", "--rate", "2"], "--rate changes nothing without --arrivals bursty or poisson"),
        (["passages", "--arrivals", "closed", "--rate", "2"], "--rate changes nothing"),
        (["passages", "--arrivals", "poisson", "--rate", "2", "--cv", "2"], "without --arrivals bursty"),
        (["file", "--path", "x", "--scale", "2"], "--scale changes nothing without --arrivals recorded"),
        (["passages", "--arrivals", "poisson", "--rate", "2", "--clients", "2"], "without --arrivals closed"),
        (["file", "--path", "x", "--seed", "7"], "--seed changes nothing for file"),
        (["file", "--path", "x", "--length", "7"], "--length changes nothing for file"),
        (["file", "--path", "x", "--question-tokens", "7"], "--question-tokens changes nothing for file"),
        (["ragpulse", "--path", "x", "-k", "2"], "--top-k changes nothing for ragpulse"),
        (["passages", "--turns", "2"], "--turns changes nothing for passages"),
        (["passages", "--first", "2"], "--first changes nothing for passages"),
        (["documents", "--corpus", "python-stdlib"], "--corpus changes nothing for documents"),
        (["documents", "--save", "."], "is a directory"),
    ],
    ids=str,
)
def test_command_with_bad_options(capsys, config, arguments, named):
    ran = run_cli(capsys, ["--model", config.model, "bench", "workload", *arguments])
    assert ran.code == 2
    assert ran.out == ""
    assert named in ran.message
