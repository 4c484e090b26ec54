import json
import os
from pathlib import Path

import pytest

from data.errors import TraceError
from data.traces import TracePart, read_ragpulse

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
