"""What commands say of metadata, settings of collections and the cache, beside a running server."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import typer
from rag_helpers import Ran, make_chat_model, run_cli
from server_helpers import Running, eventually, make_config, running

from rag.cli.conditions import parse_metadata, parse_where
from rag.client import Client
from rag.schemas import PrecomputeProgress
from rag.service import Service
from retriever.hash_embedder import HashEmbedder

Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = make_chat_model(tmp_path_factory.mktemp("models") / "tiny")
    config = make_config(tmp_path_factory.mktemp("data"), model)
    with Service(config, embedder=HashEmbedder()) as service, running(service) as running_api:
        yield running_api


@pytest.fixture
def rag(api: Running, capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda *arguments: run_cli(capsys, [*arguments, "--data-dir", api.service.config.data_dir])


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text("Nets are mended in March.")
    return folder


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["year=2020", "tag=sea", "open=true", "size=1.5"], {"year": 2020, "tag": "sea", "open": True, "size": 1.5}),
        (["tag=a", "tag=b", "tag=3"], {"tag": ["a", "b", 3]}),
        (['code="007"', "empty=", "list=[1]"], {"code": "007", "empty": "", "list": "[1]"}),
        ([], None),
    ],
)
def test_metadata_as_it_is_typed(given: list[str], wanted: dict | None) -> None:
    assert parse_metadata(given) == wanted


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["year>=2020"], {"year": {"gte": 2020}}),
        (["tag = sea"], {"tag": {"eq": "sea"}}),
        (["tag!=sea", "year<3"], {"and": [{"tag": {"ne": "sea"}}, {"year": {"lt": 3}}]}),
        (['{"tag": {"in": ["a", "b"]}}'], {"tag": {"in": ["a", "b"]}}),
        (["title=a>b"], {"title": {"eq": "a>b"}}),
        ([], None),
    ],
)
def test_conditions_as_they_are_typed(given: list[str], wanted: dict | None) -> None:
    assert parse_where(given) == wanted


@pytest.mark.parametrize("given", ["year", "{", "=3", ">=2"])
def test_what_is_no_condition_is_a_usage_error(given: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_where([given])


def test_documents_get_metadata_and_are_found_by_it(rag: Run, notes: Path) -> None:
    assert rag("ingest", notes, "-c", "meta", "--metadata", "year=2020").code == 0
    (notes / "a.txt").rename(notes / "b.txt")
    assert rag("ingest", notes, "-c", "meta", "--metadata", "year=2021").code == 0
    listed = json.loads(rag("documents", "list", "-c", "meta", "--json").out)
    assert sorted(item["metadata"]["year"] for item in listed) == [2020, 2021]
    assert "1 unchanged" in rag("ingest", notes, "-c", "meta").out, "what is not spoken of stays"
    found = json.loads(rag("search", "nets", "-c", "meta", "--where", "year>2020", "--json").out)
    assert [Path(item["uri"]).name for item in found["results"]] == ["b.txt"]
    answer = json.loads(rag("ask", "When?", "-c", "meta", "--where", "year=2020", "--json").out)
    assert [Path(item["uri"]).name for item in answer["sources"]] == ["a.txt"]
    assert "no passages that fit" in rag("search", "nets", "-c", "meta", "--where", "year=1999").out
    nothing = rag("ask", "When?", "-c", "meta", "--where", "year=1999")
    assert (nothing.code, "fits the condition" in nothing.err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("search", "nets", "--where", "year"), "--where"),
        (("ask", "Who?", "--where", '{"year": {"above": 3}}'), "above"),
        (("ingest", ".", "--metadata", "year"), "--metadata"),
        (("ingest", ".", "--metadata", "a b=1"), "cannot name metadata"),
        (("ingest", "--urls", "/does/not/exist"), "--urls"),
        (("collections", "set", "docs"), "name a setting"),
        (("collections", "create", "x", "--reuse", "always"), "reuse"),
    ],
)
def test_wrong_usage_is_told_with_its_name(rag: Run, arguments: tuple[str, ...], named: str) -> None:
    ran = rag(*arguments)
    assert ran.code == 2
    assert named in ran.message


def test_urls_of_a_file_are_fetched_from_here(rag: Run, tmp_path: Path) -> None:
    """Those of this machine are refused, also to its user: a redirect could lead there."""
    urls = tmp_path / "urls.txt"
    urls.write_text("# two of them\nhttp://127.0.0.1:8080/a\n\nfile:///etc/passwd\n")
    ran = rag("ingest", "--urls", urls, "-c", "web", "--json")
    assert ran.code == 1
    assert [item["uri"] for item in json.loads(ran.out)["skipped"]] == ["http://127.0.0.1:8080/a", "file:///etc/passwd"]


def test_collections_are_made_and_changed(rag: Run) -> None:
    made = rag("collections", "create", "own", "--passage-tokens", "64", "-k", "2", "--json")
    assert made.code == 0, made.err
    info = json.loads(made.out)
    assert (info["passage_tokens"], info["answering"]["k"]) == (64, 2)
    again = rag("collections", "create", "own")
    assert (again.code, "exists already" in again.err) == (1, True)
    changed = rag("collections", "set", "own", "--order", "cache", "--system", "Be brief.")
    assert changed.code == 0, changed.err
    assert json.loads(rag("collections", "show", "own", "--json").out)["answering"] == {
        "k": 2, "max_tokens": None, "extractive": None, "reuse": None, "order": "cache",
        "prompt": {"system": "Be brief.", "before": None, "after": None},
    }  # fmt: skip


def test_the_cache_is_looked_into_and_managed(rag: Run, notes: Path) -> None:
    assert rag("ingest", notes, "-c", "cached").code == 0
    assert json.loads(rag("cache", "warm", "-c", "cached", "--json").out)["state"] == "succeeded"
    assert json.loads(rag("cache", "pin", "-c", "cached", "--json").out) == {"passages": 1, "left_out": 0}
    shown = rag("cache", "stats")
    assert (shown.code, "pinned passages" in shown.out, "cached" in shown.out) == (0, True, True)
    stats = json.loads(rag("cache", "stats", "--json").out)
    assert [item["pinned_passages"] for item in stats["collections"] if item["collection"] == "cached"] == [1]
    assert "1 passages may go" in rag("cache", "unpin", "-c", "cached").out
    assert json.loads(rag("cache", "flush", "-c", "cached", "--disk", "--json").out)["blocks"] > 0
    missing = rag("cache", "pin", "-c", "none")
    assert (missing.code, "none" in missing.err) == (1, True)


def test_jobs_are_listed_shown_and_followed(rag: Run, notes: Path) -> None:
    assert rag("ingest", notes, "-c", "jobs").code == 0
    warmed = json.loads(rag("cache", "warm", "-c", "jobs", "--json").out)
    listed = json.loads(rag("jobs", "list", "--json").out)["jobs"]
    assert listed[0] == warmed
    table = rag("jobs", "list").out
    assert all(text in table for text in (warmed["id"], "warm", "succeeded", "1 of 1"))
    assert json.loads(rag("jobs", "show", warmed["id"], "--json").out) == warmed
    assert "succeeded" in rag("jobs", "show", warmed["id"]).out
    followed = rag("jobs", "follow", warmed["id"])
    assert (followed.code, followed.out) == (0, "warm jobs: succeeded, 1 of 1 done\n")
    assert json.loads(rag("jobs", "follow", warmed["id"], "--json").out) == warmed
    assert json.loads(rag("jobs", "cancel", warmed["id"], "--json").out) == warmed, "it has ended"
    missing = rag("jobs", "follow", "none")
    assert (missing.code, "no job 'none'" in missing.message) == (1, True)


def test_a_job_is_cancelled_while_somebody_follows_it(
    api: Running, rag: Run, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def endless(_collection: str) -> AsyncIterator[PrecomputeProgress]:
        yield PrecomputeProgress(passages=3, total=7, tokens=0, seconds=0)
        await asyncio.sleep(20)  # longer than the test needs

    monkeypatch.setattr(api.service, "precompute_async", endless)
    assert rag("ingest", notes, "-c", "endless").code == 0
    job_id = api.http.post("/v1/collections/endless/precompute?wait=false").json()["id"]
    eventually(lambda: json.loads(rag("jobs", "show", job_id, "--json").out)["progress"]["done"] == 3)
    with ThreadPoolExecutor(1) as other, closing(Client(api.url)) as client:
        followed = other.submit(lambda: [job.state for job in client.jobs.follow(job_id)])
        cancelled = rag("jobs", "cancel", job_id)
        assert cancelled.code == 0
        assert cancelled.out.startswith("precompute endless: ")
        assert followed.result(20)[-1] == "cancelled"
    ended = rag("jobs", "follow", job_id)
    assert (ended.code, ended.out) == (1, "precompute endless: cancelled, 3 of 7 done\n")
    assert json.loads(rag("jobs", "list", "--json").out)["jobs"][0]["state"] == "cancelled"


def test_what_a_job_did_and_why_it_failed_are_shown(api: Running, rag: Run) -> None:
    path = "/v1/collections/broken/documents?wait=false"
    job_id = api.http.post(path, json={"documents": [{"uri": "x.pdf", "data": "AAAA"}]}).json()["id"]
    followed = rag("jobs", "follow", job_id)
    assert followed.code == 1
    assert followed.out.startswith("ingest broken: failed")
    assert "WARNING: " in followed.err
    shown = rag("jobs", "show", job_id)
    assert shown.code == 0
    assert "x.pdf" in shown.out


def test_without_a_server_there_is_no_cache_to_look_into(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ran = run_cli(capsys, ["cache", "stats", "--data-dir", tmp_path])
    assert ran.code == 1
    assert "start one with `rag serve`" in ran.err
