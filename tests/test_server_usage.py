"""What an operator sees of a real server: metrics, ledger and log agree with the answers that were given."""

import json
import logging
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from rag_helpers import make_chat_model, run_cli
from server_helpers import DOCUMENTS, QUESTION, Running, eventually, make_config, problem_of, running
from telemetry_helpers import parsed, total

from rag.errors import ConfigurationError
from rag.keys import parse_scopes
from rag.server.app import serve
from rag.service import Service
from rag.telemetry.logs import JsonFormatter
from rag.telemetry.spans import Tracing
from retriever.hash_embedder import HashEmbedder

PRICES = 'currency = "EUR"\n[models."*"]\nprompt = 1.0\ncached = 0.1\noutput = 2.0\n'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("data")
    (folder / "prices.toml").write_text(PRICES)
    config = make_config(folder, model, server={"price_book": folder / "prices.toml"})
    with Service(config, embedder=HashEmbedder()) as service, running(service) as running_api:
        assert running_api.add(*DOCUMENTS).status_code == 200
        yield running_api


def metrics(api: Running):
    response = api.http.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    return parsed(response.content)


def ask(api: Running, **more: object) -> dict:
    response = api.http.post("/v1/answer", json=QUESTION | more)
    assert response.status_code == 200, response.text
    return response.json()


def usage(api: Running, **asked: object) -> dict:
    response = api.http.get("/v1/usage", params=asked)
    assert response.status_code == 200, response.text
    return response.json()


def test_metrics_and_ledger_agree_with_the_answers_of_many_at_once(api: Running) -> None:
    before = usage(api)["total"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: ask(api, question=f"Who lights lamp {n % 5}?"), range(24)))
    after = usage(api)
    assert after["currency"] == "EUR"
    grown = {name: after["total"][name] - before[name] for name in after["total"] if name != "unpriced_tokens"}
    spent = {
        name: sum(answer["usage"][key] for answer in answers)
        for name, key in (
            ("prompt_tokens", "prompt_tokens"),
            ("cached_tokens", "cached_tokens"),
            ("output_tokens", "completion_tokens"),
        )
    }
    assert grown["answers"] == 24
    assert {name: grown[name] for name in spent} == spent
    computed = spent["prompt_tokens"] - spent["cached_tokens"]
    cost = (computed + 0.1 * spent["cached_tokens"] + 2 * spent["output_tokens"]) / 1e6
    assert grown["cost"] == pytest.approx(cost, abs=2e-6)
    assert grown["saved"] == pytest.approx(0.9 * spent["cached_tokens"] / 1e6, abs=2e-6)
    samples = metrics(api)
    assert total(samples, "preread_prompt_tokens_total", collection="docs") == after["total"]["prompt_tokens"]
    assert total(samples, "preread_prompt_tokens_cached_total") == after["total"]["cached_tokens"]
    assert total(samples, "preread_generation_tokens_total") == after["total"]["output_tokens"]
    assert total(samples, "preread_time_to_first_token_seconds_count") == after["total"]["answers"]
    assert total(samples, "preread_request_cache_outcome_total", cache="hit") > 0


def test_an_answer_whose_client_leaves_is_counted_with_what_it_cost(api: Running) -> None:
    before = usage(api)["total"]
    body = QUESTION | {"stream": True, "max_tokens": 2000, "extractive": False}
    with api.http.stream("POST", "/v1/answer", json=body) as response:
        lines = response.iter_lines()
        while not next(lines).startswith("event: delta"):
            pass
    eventually(lambda: usage(api)["total"]["answers"] == before["answers"] + 1)
    after = usage(api)["total"]
    assert after["prompt_tokens"] > before["prompt_tokens"]
    assert 0 < after["output_tokens"] - before["output_tokens"] < 2000
    assert total(metrics(api), "preread_request_success_total", finished_reason="abort") >= 1


def test_refusals_are_errors_and_cost_nothing(api: Running) -> None:
    before = usage(api)["total"]
    assert api.http.post("/v1/answer", json=QUESTION | {"collection": "unheard-of"}).status_code == 404
    samples = metrics(api)
    assert total(samples, "preread_request_errors_total", error="UnknownCollectionError") >= 1
    assert not any("unheard-of" in str(labels) for _, labels in samples)
    assert usage(api)["total"] == before


def test_requests_are_counted_by_route_and_not_by_path(api: Running) -> None:
    api.http.get("/v1/collections/docs/documents")
    api.http.get("/v1/collections/nothing/documents")
    api.http.get("/made/up/path")
    samples = metrics(api)
    labels = {"route": "/v1/collections/{collection}/documents", "method": "GET"}
    assert total(samples, "preread_http_requests_total", status="404", **labels) >= 1
    assert total(samples, "preread_http_requests_total", status="404", route="none") >= 1
    assert total(samples, "preread_http_request_duration_seconds_count", **labels) >= 2
    assert total(samples, "preread_http_requests_in_progress") == 1, "the one that asks"
    assert not any("made/up" in str(labels) or "nothing" in str(labels) for _, labels in samples)


def test_engine_and_store_are_told(api: Running) -> None:
    ask(api)
    samples = metrics(api)
    stats = api.stats()
    assert total(samples, "preread_kv_blocks") == stats.num_blocks
    assert total(samples, "preread_kv_blocks", state="cached") == stats.cached_blocks > 0
    assert total(samples, "preread_num_requests_running") == 0
    assert total(samples, "preread_kv_store_records") >= 1
    assert total(samples, "preread_kv_bytes", tier="disk") > 0
    assert total(samples, "preread_build_info", model_name=api.service.config.model) == 1


def test_usage_is_a_table_too(api: Running) -> None:
    ask(api)
    response = api.http.get("/v1/usage", params={"by": ["collection"], "format": "csv"})
    assert response.headers["content-type"].startswith("text/csv")
    names, row, *_ = response.text.splitlines()
    assert names.startswith("day,key_id,key_name,collection,pipeline,model,answers,prompt_tokens")
    assert row.split(",")[3] == "docs"


def test_wrong_questions_about_use_are_told(api: Running) -> None:
    problem_of(api.http.get("/v1/usage", params={"by": "colour"}), 422, "invalid-request")
    problem_of(api.http.get("/v1/usage", params={"since": "2026-02-01", "until": "2026-01-01"}), 422, "invalid-request")
    problem_of(api.http.get("/v1/usage", params={"until": "9999-12-31"}), 422, "invalid-request")
    problem_of(api.http.get("/v1/usage/patterns", params={"collection": "none"}), 404, "unknown-collection")


def test_patterns_are_told_from_the_servers_own_log(api: Running) -> None:
    for _ in range(3):
        ask(api)
    found = api.http.get("/v1/usage/patterns", params={"collection": "docs"}).json()
    assert found["answers"] >= 3
    assert found["reads"] >= 2 * found["passages"]
    assert {document["uri"] for document in found["top"]} <= {"t:lighthouse", "t:harbour"}
    assert found["forecast"][-1]["hit_rate"] == found["best_hit_rate"] > 0.5
    assert [point["is_current"] for point in found["forecast"]].count(True) == 1


def test_commands_show_the_same(api: Running, capsys: pytest.CaptureFixture[str]) -> None:
    ask(api)
    here = ["--data-dir", api.service.config.data_dir]
    report = json.loads(run_cli(capsys, ["usage", "--by", "collection", "--json", *here]).out)
    assert report["rows"] == usage(api, by=["collection"])["rows"]
    told = run_cli(capsys, ["usage", *here])
    assert told.code == 0
    assert "saved" in told.out
    table = run_cli(capsys, ["usage", "--csv", "--by", "day", "--by", "model", *here])
    assert table.out.startswith("day,key_id")
    patterns = run_cli(capsys, ["usage", "patterns", *here])
    assert "t:lighthouse" in patterns.out
    assert json.loads(run_cli(capsys, ["usage", "patterns", "--json", *here]).out)["answers"] >= 1
    assert run_cli(capsys, ["usage", "--since", "yesterday", *here]).code == 2


def test_a_key_sees_its_own_use_and_no_metrics(tmp_path: Path, model: Path) -> None:
    config = make_config(tmp_path, model)
    with Service(config, embedder=HashEmbedder()) as service, running(service) as api:
        assert api.add(*DOCUMENTS).status_code == 200
        keys = service.components.keys()
        tokens = {}
        for name, scope in (("admin", "admin:*"), ("one", "read:docs"), ("two", "read:docs")):
            tokens[name] = {"Authorization": f"Bearer {keys.create(name, parse_scopes([scope]))[1]}"}
        for name, times in (("one", 2), ("two", 1)):
            for _ in range(times):
                assert api.http.post("/v1/answer", json=QUESTION, headers=tokens[name]).status_code == 200
        seen = {name: api.http.get("/v1/usage", headers=tokens[name]).json() for name in tokens}
        assert [seen[name]["total"]["answers"] for name in ("admin", "one", "two")] == [3, 2, 1]
        assert {row["key_name"] for row in seen["one"]["rows"]} == {"one"}
        other = keys.find("two").id
        foreign = api.http.get("/v1/usage", params={"key": other}, headers=tokens["one"]).json()
        assert foreign == seen["one"], "another key's use is not shown, whoever is asked about"
        assert api.http.get("/metrics").status_code == 401
        assert api.http.get("/metrics", headers=tokens["one"]).status_code == 403
        assert api.http.get("/v1/usage/patterns", headers=tokens["one"]).status_code == 403
        admin = api.http.get("/metrics", headers=tokens["admin"])
        assert admin.status_code == 200
        assert not any(keys.find(name).id in admin.text for name in ("one", "two")), "keys are no labels"


def test_lines_of_a_request_carry_its_id(api: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="rag"):
        response = api.http.post("/v1/answer", json=QUESTION)
        eventually(lambda: any(record.message == "request" for record in caplog.records))
    lines = {r.message: json.loads(JsonFormatter().format(r)) for r in caplog.records if hasattr(r, "fields")}
    assert lines["answered"]["request_id"] == response.headers["x-request-id"]
    assert lines["request"] | {"route": "/v1/answer", "method": "POST", "status": 200} == lines["request"]
    assert "lamp" not in caplog.text, "no text of a question"


def test_an_answer_belongs_to_its_clients_trace(api: Running) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry = api.service.components.telemetry()
    telemetry.tracing = Tracing("tiny", provider)
    trace_id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    try:
        response = api.http.post("/v1/answer", json=QUESTION, headers={"traceparent": f"00-{trace_id}-{parent}-01"})
        eventually(lambda: len(exporter.get_finished_spans()) == 7)
    finally:
        telemetry.tracing = None
    *stages, root = exporter.get_finished_spans()
    assert [span.name for span in stages] == ["embed", "search", "queue", "load", "prefill", "decode"]
    assert {f"{span.context.trace_id:032x}" for span in (*stages, root)} == {trace_id}
    assert f"{root.parent.span_id:016x}" == parent
    assert root.attributes["preread.request_id"] == response.headers["x-request-id"]
    answer = response.json()
    assert root.attributes["gen_ai.usage.input_tokens"] == answer["usage"]["prompt_tokens"]
    assert root.attributes["gen_ai.usage.cache_read.input_tokens"] == answer["usage"]["cached_tokens"]
    starts = [span.start_time for span in stages]
    assert starts == sorted(starts), "stages follow each other"
    assert all(root.start_time <= span.start_time <= span.end_time <= root.end_time for span in stages)
    total_ms = (root.end_time - root.start_time) / 1e6
    assert total_ms >= answer["timings_ms"]["total"] - 0.01


def test_a_wrong_price_book_is_told_before_anything_is_loaded(tmp_path: Path, model: Path) -> None:
    (tmp_path / "prices.toml").write_text(PRICES.replace("cached", "cache"))
    with pytest.raises(ConfigurationError, match="cache"):
        serve(make_config(tmp_path, model, server={"price_book": tmp_path / "prices.toml"}))


def test_a_killed_server_has_counted_all_but_its_last_moment(tmp_path: Path, model: Path) -> None:
    child_file = Path(__file__).with_name("server_child.py")
    path = os.pathsep.join([str(child_file.parent.parent), str(child_file.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, child_file, tmp_path / "data", model, "0"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path})
    try:
        assert child.stderr is not None
        url = next(found[0] for line in child.stderr if (found := re.findall(r"http://127\.0\.0\.1:\d+", line)))
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
            assert http.post("/v1/collections/docs/documents", json={"documents": DOCUMENTS}).status_code == 200
            given = [http.post("/v1/answer", json=QUESTION).json()["usage"] for _ in range(3)]
            eventually(lambda: written(tmp_path)[0] == 3)  # nobody asks for it: it is written by itself
            given += [http.post("/v1/answer", json=QUESTION).json()["usage"] for _ in range(2)]
            child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.communicate()
    sums = [
        (n, *(sum(one[key] for one in given[:n]) for key in ("prompt_tokens", "cached_tokens", "completion_tokens")))
        for n in (3, 4, 5)
    ]
    assert written(tmp_path) in sums, "answers are counted whole"


def written(folder: Path) -> tuple[int, ...]:
    """What another process reads of the ledger: answers, prompt, cached and output tokens."""
    columns = ", ".join(f"coalesce(sum({name}), 0)" for name in ("answers", "prompt_tokens", "cached_tokens",
                                                                "output_tokens"))  # fmt: skip
    with closing(sqlite3.connect(folder / "data" / "library" / "library.sqlite3", timeout=30)) as connection:
        found: tuple[int, ...] = connection.execute(f"SELECT {columns} FROM ledger").fetchone()
        return found
