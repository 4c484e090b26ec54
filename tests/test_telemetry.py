"""What is told of answers: outcomes, metrics by Prometheus' own parser, spans, log lines. Without a model."""

import asyncio
import gzip
import io
import json
import logging
import sys
from concurrent.futures import Future
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from telemetry_helpers import REPAIR, Watched, delta, done, generation, parsed, passage, report, state_of, total

from engine.kv_report import StoreStats
from engine.ladder import Outcome
from engine.prompt import SegmentKind
from engine.request import FinishReason
from engine.stats import CacheReport, EngineStats, SegmentReport, Totals
from rag.caller import NOBODY, Caller
from rag.errors import ConfigurationError
from rag.shadow import ShadowStats
from rag.telemetry import state_metrics
from rag.telemetry.answering import Answering
from rag.telemetry.logs import FIELDS, JsonFormatter, TextFormatter, configure_logs, request_id
from rag.telemetry.metrics import MAX_COLLECTIONS
from rag.telemetry.served import cache_outcome
from rag.telemetry.spans import Tracing

ASKED = Caller(principal="key-1", request_id="r-17")
HIT = report(passage("1", Outcome.CANONICAL), passage("2", Outcome.SHIFTED))
PARTIAL = report(passage("1", Outcome.PATH, tier="disk"), passage("2", Outcome.COMPUTED))
MISS = report(passage("1", Outcome.COMPUTED))


@pytest.fixture
def watched(tmp_path: Path):
    made = Watched(tmp_path)
    with made.store.write() as writer:
        writer.connection.execute("INSERT INTO collections (id, name, settings) VALUES (7, 'docs', '{}')")
    yield made
    made.close()


def answer(watched: Watched, cache: CacheReport = HIT, caller: Caller = ASKED, collection: str = "docs", **how) -> None:
    """One answer from a collection that comes to its end."""
    with watched.telemetry.answering(
        caller, pipeline="rag", model="small", collection=collection, question="Why?"
    ) as one:
        one.retrieved(0.0, 3.0, 2.0)
        one.submitted(SimpleNamespace(namespace="7"))
        one.take(delta(1, 2))
        one.take(generation(cache, **how))


@pytest.mark.parametrize(
    ("passages", "outcome"),
    [
        ([Outcome.PATH, Outcome.SHIFTED], "hit"),
        ([Outcome.CANONICAL], "hit"),
        ([Outcome.CANONICAL, Outcome.COMPUTED], "partial"),
        ([Outcome.COMPUTED, Outcome.COMPUTED], "miss"),
    ],
)
def test_hit_partial_and_miss_are_told_by_passages_alone(passages: list[Outcome], outcome: str) -> None:
    assert cache_outcome(report(*(passage(str(i), one) for i, one in enumerate(passages)))) == outcome


def test_a_prompt_without_passages_counts_whole() -> None:
    def text(hits: int, outcome: Outcome) -> CacheReport:
        return CacheReport((SegmentReport(SegmentKind.TEXT, "", 50, hits, outcome, "device" if hits else None),))

    assert cache_outcome(text(0, Outcome.COMPUTED)) == "miss"
    assert cache_outcome(text(32, Outcome.COMPUTED)) == "partial"
    assert cache_outcome(text(48, Outcome.PATH)) == "hit"
    assert cache_outcome(CacheReport()) == "miss"


def test_every_latency_is_told_by_outcome(watched: Watched) -> None:
    for cache in (HIT, HIT, PARTIAL, MISS):
        answer(watched, cache)
    samples = watched.samples()
    for name in ("time_to_first_token", "e2e_request_latency", "request_embed_time", "request_search_time",
                 "request_queue_time", "request_load_time", "request_prefill_time", "request_decode_time",
                 "request_time_per_output_token"):  # fmt: skip
        counts = {o: total(samples, f"preread_{name}_seconds_count", cache=o) for o in ("hit", "partial", "miss")}
        assert counts == {"hit": 2, "partial": 1, "miss": 1}, name
    means = {
        name: total(samples, f"preread_request_{name}_seconds_sum") / 4
        for name in ("queue_time", "load_time", "prefill_time", "decode_time", "time_per_output_token", "embed_time")
    }
    expected = {"queue_time": 0.25, "load_time": 0.25, "prefill_time": 2, "decode_time": 4, "time_per_output_token": 1}
    assert means == pytest.approx(expected | {"embed_time": 0.003})
    assert total(samples, "preread_request_cache_outcome_total", cache="hit", pipeline="rag") == 2


def test_tokens_are_told_by_source_and_passages_by_outcome(watched: Watched) -> None:
    for cache in (HIT, PARTIAL):
        answer(watched, cache)
    samples = watched.samples()
    assert total(samples, "preread_prompt_tokens_total", collection="docs") == 460
    assert total(samples, "preread_prompt_tokens_cached_total") == 2 * 20 + 300 - REPAIR
    sources = {s: total(samples, "preread_prompt_tokens_by_source_total", source=s) for s in ("computed", "disk")}
    assert sources == {"computed": 2 * 10 + REPAIR + 100, "disk": 100}
    assert total(samples, "preread_prompt_tokens_by_source_total") == 460
    assert total(samples, "preread_generation_tokens_total") == 10
    assert total(samples, "preread_passages_total", outcome="path", tier="disk") == 1
    assert total(samples, "preread_passage_tokens_total", outcome="shifted", tier="device") == 100
    assert total(samples, "preread_request_success_total", finished_reason="stop", model_name="small") == 2


def test_an_answer_that_nobody_waits_for_counts_what_it_has_cost(watched: Watched) -> None:
    request = SimpleNamespace(
        namespace="7",
        first_admission=(SimpleNamespace(num_tokens=30, hit_tokens=20, outcome=Outcome.PATH, from_disk=False),),
        prompt=SimpleNamespace(num_tokens=30, segments=(SimpleNamespace(kind=SegmentKind.TEXT, name="", sealed=True,
                                                                        tokens=()),)),
        prerequisites=(),
        load_seconds=0.0,
    )  # fmt: skip
    with suppress(asyncio.CancelledError), watched.telemetry.answering(ASKED, pipeline="chat", model="small") as one:
        one.submitted(request)
        one.take(delta(1, 2, 3))
        raise asyncio.CancelledError
    samples = watched.samples()
    assert total(samples, "preread_request_success_total", finished_reason="abort") == 1
    assert total(samples, "preread_prompt_tokens_total", pipeline="chat") == 30
    assert total(samples, "preread_generation_tokens_total", pipeline="chat") == 3
    assert watched.ledger.tokens_since("key-1", logging_epoch()) == 33
    assert ("preread_time_to_first_token_seconds_count", ()) not in samples


def test_errors_are_counted_by_their_class_and_cost_nothing(watched: Watched) -> None:
    with (
        pytest.raises(KeyError),
        watched.telemetry.answering(NOBODY, pipeline="rag", model="small", collection="x" * 99),
    ):
        raise KeyError("docs")
    samples = watched.samples()
    assert total(samples, "preread_request_errors_total", error="KeyError") == 1
    assert total(samples, "preread_request_success_total", finished_reason="error") == 1
    assert not any("x" * 99 in str(labels) for _, labels in samples), "a name that a client made up is no label"


def test_an_answer_that_is_cut_off_on_purpose_is_complete(watched: Watched) -> None:
    with watched.telemetry.answering(ASKED, pipeline="rag", model="small", collection="docs") as one:
        one.stop()
        one.take(generation(HIT, reason=FinishReason.CANCELLED))
    assert total(watched.samples(), "preread_request_success_total", finished_reason="stop") == 1


def test_an_answer_is_given_though_it_cannot_be_counted(caplog: pytest.LogCaptureFixture) -> None:
    def fail(served: object) -> None:
        raise RuntimeError("full")

    with Answering(fail, NOBODY, pipeline="rag", model="small") as one:
        one.take(generation(HIT))
    assert "could not be counted" in caplog.text
    with pytest.raises(KeyError), Answering(fail, NOBODY, pipeline="rag", model="small"):
        raise KeyError("the answer's own error")


def test_labels_take_few_values(watched: Watched) -> None:
    for number in range(MAX_COLLECTIONS + 50):
        answer(watched, collection=f"c{number}", caller=Caller(principal=f"key-{number}", request_id=f"r{number}"))
    samples = watched.samples()
    collections = {dict(labels).get("collection") for name, labels in samples if name == "preread_prompt_tokens_total"}
    assert len(collections) == MAX_COLLECTIONS + 1
    assert total(samples, "preread_prompt_tokens_total", collection="other") == 50 * 230
    assert not any("key-" in str(labels) or "r149" in str(labels) for _, labels in samples)


def test_state_is_told_when_it_is_asked_for(tmp_path: Path) -> None:
    stats = EngineStats(2, 3, 100, 60, 30, 4, 5, Totals(steps=7, prompt_tokens=50, cached_tokens=20))
    worker = SimpleNamespace(is_alive=True, call=lambda function: done((stats, 1024)))
    store = SimpleNamespace(stats=lambda: StoreStats(records=9, nbytes=300, capacity_bytes=1000, hits=8, bad_records=1))
    shadow = SimpleNamespace(stats=lambda: ShadowStats(5, 1, 0, 0.25, 0.5, False))
    watched = Watched(tmp_path, state_of(worker=worker, store=store, shadow=shadow))
    samples = watched.samples()
    watched.close()
    assert total(samples, "preread_num_requests_running") == 2
    assert total(samples, "preread_num_requests_waiting") == 3
    states = {state: total(samples, "preread_kv_blocks", state=state) for state in ("free", "cached", "private")}
    assert states == {"free": 60, "cached": 30, "private": 10}
    assert total(samples, "preread_kv_bytes", tier="device") == 100 * 1024
    assert total(samples, "preread_kv_bytes", tier="disk", state="free") == 700
    assert total(samples, "preread_kv_store_operations_total", operation="bad_records") == 1
    assert total(samples, "preread_certificate_drift_nats") == 0.25
    assert total(samples, "preread_certificate_checks_total", result="checked") == 5
    assert total(samples, "preread_build_info", model_name="small", embedder="tiny") == 1


def test_an_engine_in_a_long_step_does_not_hold_up_the_metrics(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(state_metrics, "PATIENCE_SECONDS", 0.01)
    late: Future[object] = Future()
    answers = [done((EngineStats(1, 0, 10, 5, 5, 0, 0, Totals()), 1)), late]
    watched = Watched(tmp_path, state_of(worker=SimpleNamespace(is_alive=True, call=lambda _: answers.pop(0))))
    assert total(watched.samples(), "preread_num_requests_running") == 1
    later = watched.samples()
    assert total(later, "preread_num_requests_running") == 1
    assert total(later, "preread_engine_stats_age_seconds") >= 0.01
    watched.samples()  # asks for nothing more while it waits
    late.set_result((EngineStats(2, 0, 10, 5, 5, 0, 0, Totals()), 1))
    answers.append(Future())
    assert total(watched.samples(), "preread_num_requests_running") == 2
    watched.close()


@pytest.fixture
def spans():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield Tracing("tiny", provider), exporter
    provider.shutdown()


def test_an_answer_is_a_span_with_its_stages(tmp_path: Path, spans: tuple[Tracing, InMemorySpanExporter]) -> None:
    tracing, exporter = spans
    watched = Watched(tmp_path, tracing=tracing)
    trace_id, parent_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with tracing.belonging_to({"traceparent": f"00-{trace_id}-{parent_id}-01"}):
        answer(watched)
    watched.close()
    found = {span.name: span for span in exporter.get_finished_spans()}
    assert list(found) == ["embed", "search", "queue", "load", "prefill", "decode", "chat small"]
    root = found.pop("chat small")
    assert f"{root.context.trace_id:032x}" == trace_id
    assert f"{root.parent.span_id:016x}" == parent_id
    assert all(span.parent.span_id == root.context.span_id for span in found.values())
    assert root.attributes["gen_ai.operation.name"] == "chat"
    assert root.attributes["gen_ai.usage.input_tokens"] == 230
    assert root.attributes["gen_ai.usage.cache_read.input_tokens"] == 220 - REPAIR
    assert root.attributes["gen_ai.usage.output_tokens"] == 5
    assert root.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert root.attributes["preread.cache"] == "hit"
    assert root.attributes["preread.request_id"] == "r-17"
    assert "Why?" not in str(root.attributes), "no text unless it is asked for"
    assert found["embed"].attributes["gen_ai.operation.name"] == "embeddings"
    assert found["search"].attributes["gen_ai.data_source.id"] == "docs"
    lengths = {name: (span.end_time - span.start_time) / 1e9 for name, span in found.items()}
    expected = {"embed": 0.003, "search": 0.002, "queue": 0.25, "load": 0.25, "prefill": 2, "decode": 4}
    assert lengths == pytest.approx(expected, abs=1e-6)
    ends = [found[name].end_time for name in ("queue", "load", "prefill")]
    assert ends == [found[name].start_time for name in ("load", "prefill", "decode")], "one begins where one ends"


def test_an_error_is_a_span_that_failed(tmp_path: Path, spans: tuple[Tracing, InMemorySpanExporter]) -> None:
    tracing, exporter = spans
    watched = Watched(tmp_path, tracing=tracing, log_questions=True)
    with (
        pytest.raises(ValueError, match="broken"),
        watched.telemetry.answering(ASKED, pipeline="completion", model="small", question="Why?"),
    ):
        raise ValueError("broken")
    watched.close()
    (root,) = exporter.get_finished_spans()
    assert root.name == "text_completion small"
    assert root.status.status_code is StatusCode.ERROR
    assert root.attributes["error.type"] == "ValueError"
    assert root.attributes["preread.question"] == "Why?"


def test_spans_are_sent_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    watched = Watched(tmp_path, tracing=Tracing("tiny"))
    answer(watched)
    watched.close()
    server.shutdown()
    thread.join()
    server.server_close()
    (path, body), *_ = received
    assert path == "/v1/traces"
    assert all(name in body for name in (b"chat small", b"prefill", b"gen_ai.usage.input_tokens", b"preread"))


def test_tracing_without_opentelemetry_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigurationError, match=r"preread\[tracing\]"):
        Tracing("tiny")


@pytest.mark.parametrize("log_questions", [False, True])
def test_an_answer_is_a_line_of_json(tmp_path: Path, caplog: pytest.LogCaptureFixture, log_questions: bool) -> None:
    watched = Watched(tmp_path, log_questions=log_questions)
    with watched.store.write() as writer:
        writer.connection.execute("INSERT INTO collections (id, name, settings) VALUES (7, 'docs', '{}')")
    with caplog.at_level(logging.INFO):
        answer(watched, PARTIAL)
    watched.close()
    line = json.loads(JsonFormatter().format(caplog.records[-1]))
    assert line["message"] == "answered"
    expected = {"request_id": "r-17", "key_id": "key-1", "cache": "partial", "ending": "stop", "queue_ms": 250.0}
    expected |= {"prompt_tokens": 230, "cached_tokens": 120, "output_tokens": 5, "level": "info"}
    assert expected.items() <= line.items()
    assert line.get("question") == ("Why?" if log_questions else None)


def test_any_line_has_the_id_of_its_request() -> None:
    def line(**more: object) -> dict:
        record = logging.LogRecord("rag", logging.WARNING, "", 0, "it is %s", ("odd\nhere",), None)
        record.__dict__ |= more
        text = JsonFormatter().format(record)
        assert "\n" not in text
        return json.loads(text)

    assert "request_id" not in line()
    token = request_id.set("r-5")
    assert line()["request_id"] == "r-5"
    assert line(**{FIELDS: {"request_id": "r-6"}})["request_id"] == "r-6"
    request_id.reset(token)
    assert line()["message"] == "it is odd\nhere"


def test_people_get_the_fields_after_the_message() -> None:
    record = logging.LogRecord("rag", logging.INFO, "", 0, "answered", (), None)
    record.__dict__[FIELDS] = {"cache": "hit", "ttft_ms": 12.5, "key_id": "", "question": "Why?\ncache=miss"}
    assert TextFormatter().format(record) == 'INFO: answered cache=hit ttft_ms=12.5 question="Why?\\ncache=miss"'


def test_logs_are_what_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [logging.StreamHandler(stream)])
    monkeypatch.setattr(root, "level", logging.WARNING)
    monkeypatch.setattr(logging.getLogger("uvicorn.access"), "disabled", False)
    configure_logs("text")
    logging.getLogger("rag.telemetry.telemetry").info("not asked for")
    configure_logs("json")
    logging.getLogger("rag.telemetry.telemetry").info("answered", extra={FIELDS: {"cache": "hit"}})
    try:
        raise ValueError("odd")
    except ValueError:
        logging.getLogger("rag").exception("broken")
    answered, broken = map(json.loads, stream.getvalue().splitlines())
    assert (answered["message"], answered["cache"], answered["logger"]) == (
        "answered",
        "hit",
        "rag.telemetry.telemetry",
    )
    assert "ValueError: odd" in broken["exception"]


def test_the_passages_of_answers_are_logged_without_text(watched: Watched) -> None:
    answer(watched, PARTIAL)
    answer(watched, HIT)
    with watched.telemetry.answering(ASKED, pipeline="rag", model="small", collection="docs", question="Why?"):
        pass  # nothing was retrieved
    reads = watched.retrievals.latest(10)
    assert [read.passages for read in reads] == [((1, 100), (2, 100))] * 2
    assert reads[0].collection_id == 7
    assert watched.retrievals.latest(1, collection_id=7) == reads[1:]
    with watched.store.write() as writer:
        writer.connection.execute("DELETE FROM collections")
    assert watched.retrievals.latest(10) == [], "what is deleted is forgotten"
    answer(watched, HIT)
    assert watched.retrievals.latest(10) == []


def logging_epoch():
    from datetime import UTC, datetime

    return datetime.fromtimestamp(0, UTC)


def test_the_text_is_what_prometheus_reads(watched: Watched) -> None:
    answer(watched)
    text = asyncio.run(watched.telemetry.text())
    assert parsed(text)
    assert b"_created" not in text
