"""The whole with real models: a folder of documents, a server, and the same answer over every way in."""

from pathlib import Path

import pytest
from rag_helpers import HARBOUR, LIGHTHOUSE, run_cli
from server_helpers import events_of, running, shape

from rag.client import Client
from rag.config import load_config
from rag.operations import final_answer
from rag.schemas import Answer, AnswerRequest
from rag.service import Service

QUESTION = "Who lights the lamp of the lighthouse of Orrin?"
BODY = {"question": QUESTION, "max_tokens": 32}


@pytest.mark.model
def test_every_way_in_gives_the_same_answer(
    smollm2: Path, minilm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "lighthouse.md").write_text(f"# The lighthouse\n\n{LIGHTHOUSE}\n")
    (tmp_path / "documents" / "harbour.txt").write_text(HARBOUR)
    config = load_config(data_dir=tmp_path / "data")
    where = ["--data-dir", config.data_dir]
    ask = ["ask", QUESTION, "--max-tokens", "32", "--json", *where]

    ingested = run_cli(capsys, ["ingest", tmp_path / "documents", *where])
    assert ingested.code == 0, ingested.err
    local = Answer.model_validate_json(run_cli(capsys, ask).out)
    assert "Mara" in local.answer
    assert local.citations, "an answer has its evidence"

    with Service(config) as service, running(service) as api:
        first = Answer.model_validate(api.http.post("/v1/answer", json=BODY).json())
        response = api.http.post("/v1/answer", json=BODY)
        second = Answer.model_validate(response.json())
        with api.http.stream("POST", "/v1/answer", json=BODY | {"stream": True}) as stream:
            events = [event for event in events_of(stream) if event[0] != ":"]
        through_cli = Answer.model_validate_json(run_cli(capsys, ask).out)
        client = Client(api.url)
        through_client = final_answer(client.answer(AnswerRequest(**BODY)))
        client.close()
        api.check()

    assert shape(response.json()) == shape(local.model_dump(mode="json")), "one format, whoever prints it"
    assert first.sources == local.sources
    passage_tokens = sum(passage.tokens for passage in second.cache.passages)
    assert first.cache.hit_tokens.disk == first.usage.cached_tokens > 0, "another process has read it"
    assert second.usage.cached_tokens >= 0.9 * passage_tokens
    assert (events[0][0], events[-1][0]) == ("retrieval", "done")
    streamed = Answer.model_validate(events[-1][1]["answer"])
    for answer in (streamed, through_cli, through_client):
        assert (answer.answer, answer.citations) == (second.answer, second.citations)
        assert answer.usage.cached_tokens == second.usage.cached_tokens, "the command used the server's warm cache"
