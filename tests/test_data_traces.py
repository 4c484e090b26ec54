import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import TraceError
from data.traces import Trace, TracePart, TraceRequest, read_ragpulse

LENGTHS = {
    "1_sys_prompt.jsonl": ("sys_prompt_id", {1: 512, 2: 40}),
    "2_passages.jsonl": ("passage_id", {10: 84, 11: 286}),
    "3_history.jsonl": ("history_id", {20: 11}),
    "4_user_input.jsonl": ("user_input_id", {30: 9, 31: 6}),
    "5_web_search.jsonl": ("web_search_id", {40: 143}),
}


def request(timestamp="0", passages=(10, 11), **changes):
    hash_ids = {
        "sys_prompt": [1, 2],
        "passages_ids": list(passages),
        "history": [20],
        "web_search": [],
        "user_input": [30],
    }
    record = {
        "timestamp": timestamp,
        "input_length": 945,
        "output_length": 154,
        "hash_ids": hash_ids,
        "session_id": "s",
    }
    return {**record, **changes}


@pytest.fixture
def folder(tmp_path):
    for name, (field, lengths) in LENGTHS.items():
        lines = [json.dumps({field: number, "token_length": length}) for number, length in lengths.items()]
        (tmp_path / name).write_text("\n".join(lines) + "\n\n")
    write_requests(tmp_path, request(), request("27.5", passages=[11]))
    return tmp_path


def write_requests(folder, *records):
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / "0_trace.jsonl").write_text("\n".join(lines) + "\n")


def test_requests_have_times_ids_and_lengths(folder):
    trace = read_ragpulse(folder)
    first, second = trace.requests
    assert (first.timestamp, second.timestamp) == (0.0, 27.5)
    assert first.passages == (TracePart(10, 84), TracePart(11, 286))
    assert second.passages == (TracePart(11, 286),)
    assert first.system_prompt == (TracePart(1, 512), TracePart(2, 40))
    assert (first.history, first.web_search, first.user_input) == ((TracePart(20, 11),), (), (TracePart(30, 9),))
    assert (first.input_length, first.output_length, first.session_id) == (945, 154, "s")


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "a JSON object is expected"),
        (request(timestamp="soon"), "not a request"),
        (request(timestamp="nan"), "not a request"),
        (request(hash_ids={"sys_prompt": []}), "not a request"),
        (request(hash_ids=None), "not a request"),
        (request(passages=[99]), "passages id 99 has no length in 2_passages.jsonl"),
        (request(passages=[[1]]), "passages id"),
        (request(input_length="945"), "input_length is '945'"),
        (request(output_length=-1), "output_length is -1"),
        (request(timestamp="-1"), "before the line above it"),
    ],
)
def test_a_bad_request_is_named_by_its_line(folder, bad, why):
    write_requests(folder, request(), bad, request("30"))
    with pytest.raises(TraceError, match=rf"0_trace\.jsonl:2: .*{why}"):
        read_ragpulse(folder)


def test_a_bad_length_is_named_by_its_line(folder):
    (folder / "2_passages.jsonl").write_text('{"passage_id": 10, "token_length": 84}\n\n{"passage_id": 11}\n')
    with pytest.raises(TraceError, match=r"2_passages\.jsonl:3: token_length is None"):
        read_ragpulse(folder)


def test_missing_and_empty_files_are_refused(folder):
    write_requests(folder, "")
    with pytest.raises(TraceError, match="holds no request"):
        read_ragpulse(folder)
    (folder / "4_user_input.jsonl").unlink()
    with pytest.raises(TraceError, match=r"4_user_input\.jsonl is missing"):
        read_ragpulse(folder)


@pytest.mark.skipif("PREREAD_RAGPULSE" not in os.environ, reason="PREREAD_RAGPULSE names no RAGPulse folder")
def test_the_real_trace_reads():
    trace = read_ragpulse(Path(os.environ["PREREAD_RAGPULSE"]))
    assert len(trace.requests) > 1000
    parts = [one.system_prompt + one.passages + one.history + one.web_search + one.user_input for one in trace.requests]
    sums = [sum(part.num_tokens for part in request) for request in parts]
    assert all(0 <= one.input_length - total < 64 for one, total in zip(trace.requests, sums, strict=True))


PARTS = st.lists(st.integers(0, 40).map(lambda number: TracePart(number, number % 7)), max_size=4).map(tuple)
REQUESTS = st.builds(
    TraceRequest,
    timestamp=st.floats(-1e9, 1e9),
    session_id=st.text(st.characters(exclude_categories=("Cs",)), max_size=5),
    input_length=st.integers(0, 10**6),
    output_length=st.integers(0, 10**6),
    system_prompt=PARTS,
    passages=PARTS,
    history=PARTS,
    web_search=PARTS,
    user_input=PARTS,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(REQUESTS, min_size=1, max_size=6), st.dictionaries(st.text(max_size=4), st.integers() | st.booleans()))
def test_a_saved_trace_comes_back_equal(tmp_path, requests, drawn_with):
    in_order = tuple(sorted(requests, key=lambda one: one.timestamp))
    trace = Trace("made\u2028up", in_order, drawn_with)
    trace.save(tmp_path / "trace.jsonl")
    assert Trace.load(tmp_path / "trace.jsonl") == trace
    assert [path.name for path in tmp_path.iterdir()] == ["trace.jsonl"]


def saved(**changes):
    parts = {name: [[10, 84]] for name in ("system_prompt", "passages", "history", "web_search", "user_input")}
    return {"timestamp": 1.5, "session_id": "s", "input_length": 9, "output_length": 1, **parts, **changes}


HEAD = {"format": "preread-trace-1", "name": "made", "settings": {}}


@pytest.mark.parametrize(
    ("number", "bad", "why"),
    [
        (1, {**HEAD, "format": "preread-trace-2"}, "not a trace"),
        (1, {**HEAD, "name": 3}, "not a trace"),
        (1, {**HEAD, "settings": []}, "not a trace"),
        (1, "{", "not JSON"),
        (2, "[]", "a JSON object is expected"),
        (2, saved(timestamp="1"), "timestamp is '1', not a number"),
        (2, saved(timestamp=True), "timestamp is True"),
        (2, '{"timestamp": NaN}', "system_prompt has None"),
        (2, saved(timestamp=float("nan")), "timestamp is nan"),
        (2, saved(session_id=None), "session_id is None"),
        (2, saved(input_length=-1), "input_length is -1"),
        (2, saved(output_length=1.5), "output_length is 1.5"),
        (2, saved(passages=None), "passages has None"),
        (2, saved(passages=[[1]]), r"passages has \[1\]"),
        (2, saved(passages=[[1, -2]]), "passages has"),
        (2, saved(passages=[[1, True]]), "passages has"),
        (3, saved(history=[[10, 85]]), "history id 10 has 85 tokens, and 84 above"),
        (3, saved(timestamp=1.0), "timestamp 1 is before the line above it"),
    ],
    ids=str,
)
def test_a_bad_line_of_a_saved_trace_is_named(tmp_path, number, bad, why):
    lines = [json.dumps(HEAD), json.dumps(saved()), json.dumps(saved())]
    lines[number - 1] = bad if isinstance(bad, str) else json.dumps(bad)
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(TraceError, match=rf"trace\.jsonl:{number}: .*{why}"):
        Trace.load(path)


def test_saved_traces_that_are_missing_or_empty_are_refused(tmp_path):
    with pytest.raises(TraceError, match=r"gone is missing: save a trace there first"):
        Trace.load(tmp_path / "gone")
    path = tmp_path / "trace.jsonl"
    path.write_text("")
    with pytest.raises(TraceError, match=r"trace\.jsonl:1: not a trace"):
        Trace.load(path)
    path.write_text(json.dumps(HEAD))
    with pytest.raises(TraceError, match="holds no request"):
        Trace.load(path)
    path.write_bytes(json.dumps(HEAD).encode() + b"\n\xff\xfe")
    with pytest.raises(TraceError, match=r"trace\.jsonl:2: not JSON"):
        Trace.load(path)
