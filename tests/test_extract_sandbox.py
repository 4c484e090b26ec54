"""Files made to do harm end, at worst, the process that reads them; the files after them are read as if nothing was."""

import errno
import io
import json
import os
import signal
import socket
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from retriever_helpers import WordEncoder, make_docx, make_pdf

from retriever.config import RetrieverConfig
from retriever.document import BytesSource, ExtractedText, RawDocument
from retriever.errors import ExtractError, SettingsError
from retriever.extract import extract, sandbox, sandbox_child
from retriever.extract.frames import Channel, ChannelError
from retriever.extract.sandbox import ExtractLimits, Extractor, is_light
from retriever.hash_embedder import HashEmbedder
from retriever.retriever import Library

pytestmark = pytest.mark.skipif(os.name != "posix", reason="documents are read in this process")

LIMITS = ExtractLimits(seconds=60, memory_bytes=192 * 2**20, text_bytes=2**20)
PAGE = b"<title>Owls</title><h1>Barn owl</h1><p>It hunts at night.<pre>a\n  b</pre>"
SLOW = b"![" * 100_000  # of which Markdown's rules make one look for each, through all of the rest

TAKEN_OVER = """
import socket
end = socket.socket(fileno={descriptor})  # {path} {limits}
for message in (b"ready", ANSWER, b"text"):
    end.sendall(len(message).to_bytes(8, "big") + message)
while end.recv(2**16):
    pass
"""

HOARDING = """
from retriever.extract import html
read, kept = html.extract, []
html.extract = lambda *its: (kept.append(bytes(100 * 2**20)), read(*its))[1]  # of 192 MiB
"""


def raw(name: str, data: bytes) -> RawDocument:
    return RawDocument(f"t:{name}", data, name)


def make_archive(**entries: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"")
        for name, data in entries.items():
            archive.writestr(name, data)
    return out.getvalue()


def make_word(body: bytes) -> bytes:
    """A Word document in place of whose first sentence stands something else."""
    out, whole = io.BytesIO(), zipfile.ZipFile(io.BytesIO(make_docx()))
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in whole.namelist():
            data = whole.read(name)
            archive.writestr(name, data.replace(b"Owls hunt at night.", body) if name == "word/document.xml" else data)
    return out.getvalue()


def make_zeros(mebibytes: int, stated: int | None = None) -> bytes:
    """An archive with so much of nothing, or that states so much, made by hand: `zipfile` is watched, and honest."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join(packer.compress(bytes(2**20)) for _ in range(mebibytes)) + packer.flush()
    name, size = b"word/document.xml", (stated or mebibytes) * 2**20
    fields = (
        (20).to_bytes(2, "little") + bytes(2) + (8).to_bytes(2, "little") + bytes(8)
        + len(packed).to_bytes(4, "little") + size.to_bytes(4, "little") + len(name).to_bytes(2, "little") + bytes(2)
    )  # fmt: skip
    local = b"PK\x03\x04" + fields + name + packed
    entry = b"PK\x01\x02" + bytes(2) + fields + bytes(14) + name
    end = b"PK\x05\x06" + bytes(4) + 2 * (1).to_bytes(2, "little")
    return local + entry + end + len(entry).to_bytes(4, "little") + len(local).to_bytes(4, "little") + bytes(2)


@pytest.fixture(scope="module")
def extractor() -> Iterator[Extractor]:
    made = Extractor(LIMITS)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.html", PAGE),
        ("a.docx", make_docx("Guide")),
        ("a.pdf", make_pdf(["one\ntwo", "three"], "Title", [("one", 0), ("three", 1)])),
        ("a.md", b"# Owls\n\nThey *hunt*.\n\n" * 1000),
        ("a.txt", "Grüße\n=====\n\n𝄞 text.\n\n".encode() * 20_000),
    ],
)
def test_the_process_reads_what_would_be_read_here(extractor: Extractor, name: str, data: bytes) -> None:
    document = raw(name, data)
    assert not is_light(document)
    assert extractor.extract(document) == extract(document)


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.html", b"<p>\x00"), ("a.pdf", b"%PDF-1.7 no more"), ("a.docx", b"PK\x03\x04"), ("a.html", b"<p>")],
)
def test_a_useless_file_is_told_as_here_and_ends_nothing(extractor: Extractor, name: str, data: bytes) -> None:
    extractor.extract(raw("a.html", PAGE))
    before = extractor._child
    with pytest.raises(ExtractError) as here:
        extract(raw(name, data))
    with pytest.raises(ExtractError) as there:
        extractor.extract(raw(name, data))
    assert str(there.value) == str(here.value)
    assert extractor._child is before is not None


def test_small_text_needs_no_process() -> None:
    extractor = Extractor(LIMITS)
    for name, data in (("a.txt", b"text"), ("a.rst", b"A\n=\n\nb"), ("a.py", b"x = 1"), ("a.md", b"# A\n\nb")):
        assert extractor.extract(raw(name, data)) == extract(raw(name, data))
    assert extractor._child is None
    extractor.close()


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("long.html", b"<p>" + b"ab " * 1_000_000, "bytes of text, above 1048576"),
        ("bomb.docx", make_zeros(1, stated=300), "unpacks to 314572800 bytes, above"),
        ("dense.docx", make_word(b"a" * 30 * 2**20), "times its own size"),
        ("crowd.docx", make_archive(**{f"{n}.xml": b"" for n in range(10_001)}), "archive of 10002 files"),
    ],
)
def test_a_bomb_is_skipped_with_its_reason_and_the_next_file_is_read(
    extractor: Extractor, name: str, data: bytes, reason: str
) -> None:
    with pytest.raises(ExtractError, match=reason) as caught:
        extractor.extract(raw(name, data))
    assert str(caught.value).startswith(f"t:{name}")
    assert extractor.extract(raw("a.html", PAGE)).title == "Owls"


def test_a_bomb_is_not_unpacked_before_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def unpacked(*_: object, **__: object) -> bytes:
        raise AssertionError("it was unpacked")

    monkeypatch.setattr(zipfile.ZipFile, "open", unpacked)
    for data in (make_zeros(1, stated=300), make_zeros(30)):
        with pytest.raises(ExtractError, match="unpacks to"):
            extract(raw("bomb.docx", data))


def test_what_takes_too_long_is_skipped(extractor: Extractor) -> None:
    extractor.extract(raw("a.html", PAGE))
    assert extractor._child is not None
    extractor._child._limits = ExtractLimits(seconds=0.5)
    with pytest.raises(ExtractError, match=r"t:slow.md took more than 0.5 s"):
        extractor.extract(raw("slow.md", SLOW))
    assert extractor._child is None
    assert extractor.extract(raw("a.html", PAGE)).title == "Owls"


def test_memory_runs_out_in_the_process_alone() -> None:
    extractor = Extractor(ExtractLimits(seconds=30, memory_bytes=2**24))
    extractor.extract(raw("a.html", PAGE))
    with pytest.raises(ExtractError, match="more than 16 MiB of memory"):
        extractor.extract(raw("wide.txt", b"a\n\n" * 150_000))
    assert extractor._child is None, "what has run out of memory reads nothing more"
    assert extractor.extract(raw("a.html", PAGE)).title == "Owls"
    extractor.close()


def test_a_process_that_dies_costs_one_file() -> None:
    extractor = Extractor(LIMITS)
    extractor._child = sandbox._Child(LIMITS)
    children = [extractor._child]

    class Doomed(sandbox._Child):
        def __init__(self, limits: ExtractLimits) -> None:
            super().__init__(limits)
            children.append(self)
            threading.Timer(0.3, os.kill, (self._process.pid, signal.SIGSEGV)).start()

    threading.Timer(0.3, os.kill, (children[0]._process.pid, signal.SIGSEGV)).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, "_Child", Doomed)
        with pytest.raises(ExtractError, match=r"t:slow.md: the process that read it ended \(signal SIGSEGV\)"):
            extractor.extract(raw("slow.md", SLOW))
    assert len(children) == 2, "the first one had read others, but the second is its own work"
    assert extractor.extract(raw("a.html", PAGE)).title == "Owls"
    extractor.close()


def test_a_process_that_died_meanwhile_costs_no_file(extractor: Extractor) -> None:
    extractor.extract(raw("a.html", PAGE))
    assert extractor._child is not None
    os.kill(extractor._child._process.pid, signal.SIGKILL)
    extractor._child._process.wait()
    assert extractor.extract(raw("a.html", PAGE)).title == "Owls"


@pytest.mark.parametrize("replaced", [True, False])
def test_what_earlier_files_left_counts_against_no_later_one(
    monkeypatch: pytest.MonkeyPatch, *, replaced: bool
) -> None:
    monkeypatch.setattr(sandbox, "START", sandbox.START.replace("\nmain(", f"{HOARDING}\nmain("))
    if not replaced:
        monkeypatch.setattr(sandbox, "KEPT_FRACTION", 1.0)
    extractor = Extractor(LIMITS)
    for _ in range(3):
        assert extractor.extract(raw("a.html", PAGE)).title == "Owls"
        assert (extractor._child is None) == replaced
    extractor.close()


def test_computing_ends_even_where_nobody_waits_any_more() -> None:
    child = sandbox._Child(ExtractLimits(seconds=0.1))
    child._limits = LIMITS  # it is not the parent's clock that ends it
    with pytest.raises(ExtractError, match="reading it took more than 60 s"):
        child.extract(raw("slow.md", SLOW))
    assert child._process.returncode == -signal.SIGXCPU


def test_the_process_writes_nothing_starts_nothing_and_knows_no_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PREREAD_API_KEY", "prk_secret")
    extractor = Extractor(LIMITS)
    extractor.extract(raw("a.html", PAGE))
    assert extractor._child is not None
    pid = extractor._child._process.pid
    environment = Path(f"/proc/{pid}/environ")
    if not environment.exists():
        pytest.skip("no /proc here")
    assert b"prk_secret" not in environment.read_bytes()
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    soft = {line[:26].strip(): line[26:].split()[0] for line in limits}
    assert soft["Max file size"] == soft["Max processes"] == soft["Max core file size"] == "0"
    assert int(soft["Max address space"]) < 2**30
    extractor.close()
    assert not Path(f"/proc/{pid}").exists(), "it ends with who asked for it"


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense", b"[]", b"3", b"{}", b"[" * 5000,
        json.dumps({"title": "t", "pages": [], "paths": [[]], "blocks": [[0, 9, "paragraph", 0]]}).encode(),
        json.dumps({"title": "t", "pages": [], "paths": [[]], "blocks": [[2, 1, "paragraph", 0]]}).encode(),
        json.dumps({"title": "t", "pages": [], "paths": [], "blocks": [[0, 1, "paragraph", 0]]}).encode(),
        json.dumps({"title": "t", "pages": [], "paths": [[]], "blocks": [["0", "1", "paragraph", 0]]}).encode(),
        json.dumps({"title": "t", "pages": ["x"], "paths": [[]], "blocks": [[0, 1, "poem", 0]]}).encode(),
    ],
)  # fmt: skip
def test_what_a_process_says_that_was_taken_over_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    says = TAKEN_OVER.replace("ANSWER", repr(answer).replace("{", "{{").replace("}", "}}"))
    monkeypatch.setattr(sandbox, "START", says)
    extractor = Extractor(LIMITS)
    with pytest.raises(ExtractError, match="nonsense"):
        extractor.extract(raw("a.html", PAGE))
    assert extractor._child is None


def test_a_text_of_too_many_paragraphs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_child, "MAX_BLOCKS", 2)
    structure, text = sandbox_child._answer(raw("a.html", PAGE), 1000)
    assert json.loads(structure) == {"error": "t:a.html falls into 3 paragraphs, above 2; split it"}
    assert text == b""


def test_a_message_may_not_be_larger_than_allowed() -> None:
    ours, theirs = (Channel(end) for end in socket.socketpair())
    ours.send(b"12345")
    assert theirs.receive(5) == b"12345"
    ours.send(b"123456")
    with pytest.raises(ChannelError, match="6 bytes, above 5"):
        theirs.receive(5)
    theirs.close()
    with pytest.raises(ChannelError):
        ours.receive(5)
    ours.close()


def test_a_process_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "START", "raise SystemExit(7) # {path} {descriptor} {limits}")
    with pytest.raises(ExtractError, match=r"did not start \(exit code 7\)"):
        Extractor(LIMITS).extract(raw("a.html", PAGE))


@pytest.mark.parametrize("what", ["subprocess.Popen", "socket.socketpair"])
def test_a_process_that_the_system_has_no_room_for_costs_what_needs_it_until_the_next_time(
    what: str, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    sources = [BytesSource("a.html", PAGE), BytesSource("b.txt", b"Owls hunt at night.")]
    with Library.open(tmp_path, RetrieverConfig(), embedder=HashEmbedder()) as library:
        library.create_collection("c")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"{sandbox.__name__}.{what}", fail)
            report = library.ingest("c", sources, WordEncoder(), prune=True)
        ((uri, reason),) = report.skipped
        assert (uri, report.added) == ("a.html", 1)
        assert "cannot be started (Resource temporarily unavailable); let it have more memory" in reason
        report = library.ingest("c", sources, WordEncoder(), prune=True)
        assert (report.added, report.unchanged, report.skipped) == (1, 1, [])


def test_two_threads_take_turns(extractor: Extractor) -> None:
    found: list[ExtractedText] = []

    def read() -> None:
        found.extend(extractor.extract(raw("a.html", PAGE)) for _ in range(20))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [extract(raw("a.html", PAGE))] * 80


def test_an_ingestion_goes_on_after_files_that_do_harm(tmp_path: Path) -> None:
    config = RetrieverConfig(max_document_bytes=2**20)
    sources = [
        BytesSource("cut.pdf", b"%PDF-1.7"), BytesSource("bomb.docx", make_word(b"a" * 30 * 2**20)),
        BytesSource("a.html", PAGE), BytesSource("long.html", b"<p>" + b"ab " * 2**18 + b"x" * 2**19),
    ]  # fmt: skip
    with Library.open(tmp_path, config, embedder=HashEmbedder()) as library:
        library.create_collection("c")
        report = library.ingest("c", sources, WordEncoder())
        assert report.added == 1
        assert [uri for uri, _ in report.skipped] == ["cut.pdf", "bomb.docx", "long.html"]
        assert [document.uri for document in library.documents("c")] == ["a.html"]


def test_limits_that_cannot_work_are_refused() -> None:
    with pytest.raises(SettingsError, match="extract_seconds"):
        RetrieverConfig(extract_seconds=0)
    with pytest.raises(SettingsError, match="extract_memory_bytes"):
        RetrieverConfig(extract_memory_bytes=1)
