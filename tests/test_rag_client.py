"""The HTTP client against a scripted server: what it sends, what it makes of answers, and of errors."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from rag.client import BATCH_DOCUMENTS, Client
from rag.config import RetrieverSettings
from rag.errors import ServerError
from rag.operations import final_answer
from rag.schemas import (
    Answer,
    AnswerRequest,
    Cache,
    DeltaEvent,
    DocumentInfo,
    DoneEvent,
    HitTokens,
    RetrievalEvent,
    SearchRequest,
    Timings,
    Usage,
)
from retriever.document import FileSource, TextSource
from retriever.ingest import Stage

URL = "http://server"
ANSWER = Answer(
    answer="Mara\ndoes.",
    citations=[],
    sources=[],
    usage=Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1),
    cache=Cache(passages=[], hit_tokens=HitTokens(device=1, disk=0)),
    timings_ms=Timings(embed=1, search=1, queue=1, prefill=1, ttft=1, total=1),
    model="m",
    finish_reason="stop",
)


def make_client(handle: Callable[[httpx.Request], httpx.Response]) -> Client:
    return Client(URL, transport=httpx.MockTransport(handle))


def test_a_streamed_answer_becomes_its_events() -> None:
    events = [RetrievalEvent(sources=[]), DeltaEvent(text="Mara\ndoes."), DoneEvent(answer=ANSWER)]

    def handle(request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.path) == ("POST", "/v1/answer")
        asked = AnswerRequest(question="Who?", collection="c/d", k=2, stream=True)
        assert json.loads(request.content) == asked.model_dump(mode="json", exclude_none=True)
        assert AnswerRequest.model_validate_json(request.content) == asked
        body = ": hello\n\n" + "".join(f"event: {e.type}\ndata: {e.model_dump_json()}\n\n" for e in events)
        return httpx.Response(200, text=body, headers={"content-type": "text/event-stream"})

    client = make_client(handle)
    got = list(client.answer(AnswerRequest(question="Who?", collection="c/d", k=2)))
    assert got == events
    assert final_answer(got) == ANSWER


def test_signs_that_unicode_takes_for_line_ends_are_text() -> None:
    event = DeltaEvent(text="one\u2028two\u2029three\x85four\x0cfive\r\nsix")
    body = "".join(f"event: {e.type}\ndata: {e.model_dump_json()}\n\n" for e in (event, DoneEvent(answer=ANSWER)))
    client = make_client(lambda _request: httpx.Response(200, text=body))
    assert list(client.answer(AnswerRequest(question="Who?"))) == [event, DoneEvent(answer=ANSWER)]


def test_an_error_in_a_stream_is_raised_with_its_detail() -> None:
    problem = json.dumps({"title": "Engine stopped", "detail": "the engine has stopped; ask again"})
    client = make_client(lambda _request: httpx.Response(200, text=f"event: error\ndata: {problem}\n\n"))
    with pytest.raises(ServerError, match="the engine has stopped; ask again"):
        list(client.answer(AnswerRequest(question="Who?")))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (json.dumps({"title": "Not found", "detail": "there is no collection 'nope'"}), "no collection 'nope'"),
        ("plain words", "plain words"),
        ("", "answered 404"),
    ],
)
def test_a_refusal_says_what_the_server_said(body: str, message: str) -> None:
    client = make_client(lambda _request: httpx.Response(404, text=body))
    for call in (
        lambda: client.search(SearchRequest(query="x")),
        lambda: list(client.answer(AnswerRequest(question="x"))),
        lambda: client.collection("nope"),
    ):
        with pytest.raises(ServerError, match=message):
            call()


def test_a_server_that_is_gone_is_told() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(ServerError, match=r"http://server does not answer \(refused\)"):
        make_client(handle).collections()


def test_ingestion_sends_batches_and_adds_the_reports_up(tmp_path: Path) -> None:
    received: list[dict[str, str]] = []

    def handle(request: httpx.Request) -> httpx.Response:
        assert request.url.raw_path == b"/v1/collections/c%2Fd/documents"
        documents = json.loads(request.content)["documents"]
        received.extend(documents)
        counts = {"added": len(documents), "updated": 0, "unchanged": 0, "removed": 0, "passages": 2 * len(documents)}
        return httpx.Response(200, json={"collection": "c/d", "skipped": [], "seconds": 1.0, **counts})

    sources = [TextSource(f"t:{number}", f"Text {number}", "T", "text/plain") for number in range(BATCH_DOCUMENTS + 1)]
    progress = []
    report = make_client(handle).ingest("c/d", [*sources, FileSource(tmp_path / "gone.txt")], progress=progress.append)
    assert (report.added, report.passages, report.removed) == (len(sources), 2 * len(sources), 0)
    assert [item.uri for item in report.skipped] == [str(tmp_path / "gone.txt")]
    assert [base64.b64decode(item["data"]).decode() for item in received] == [source.text for source in sources]
    assert {key: received[0][key] for key in ("uri", "name", "title", "media_type")} == {
        "uri": "t:0", "name": "t:0", "title": "T", "media_type": "text/plain"
    }  # fmt: skip
    assert [event.documents for event in progress] == [BATCH_DOCUMENTS, BATCH_DOCUMENTS + 2]
    assert all(event.total == BATCH_DOCUMENTS + 2 for event in progress)


def test_prune_deletes_what_is_gone_below_the_scope_only() -> None:
    deleted: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            counts = dict.fromkeys(("added", "updated", "unchanged", "removed", "passages"), 0)
            return httpx.Response(200, json={"collection": "c", "skipped": [], "seconds": 1.0, **counts})
        rows = [
            DocumentInfo(
                id=uri.rsplit("/", 1)[-1], uri=uri, title="", content_hash="", passages=1, characters=1, tokens=1,
                ingested_at="",
            )
            for uri in ("/docs/kept", "/docs/gone", "/other/gone2")
        ]  # fmt: skip
        if request.method == "DELETE":
            deleted.append(request.url.path.rsplit("/", 1)[-1])
            return httpx.Response(200, json=next(r for r in rows if r.id == deleted[-1]).model_dump())
        return httpx.Response(200, json={"documents": [row.model_dump() for row in rows]})

    events = []
    source = TextSource("/docs/kept", "Text")
    report = make_client(handle).ingest("c", [source], prune_scope=["/docs/"], progress=events.append)
    assert (report.removed, deleted) == (1, ["gone"])
    assert events[-1].stage is Stage.REMOVED


def test_documents_above_the_configured_size_are_not_sent() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        raise AssertionError(f"{request.url} was asked")

    transport = httpx.MockTransport(handle)
    client = Client(URL, wanted=RetrieverSettings(max_document_bytes=10), transport=transport)
    report = client.ingest("c", [TextSource("t:long", "eleven char")])
    assert ["max_document_bytes (10)" in item.reason for item in report.skipped] == [True]
