"""Documents from the web: what is fetched, and that nothing of this machine or its network ever is."""

import gzip
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from rag import fetch, web_address
from rag.fetch import UrlSource
from rag.schemas import IngestRequest
from rag.sources import sources_of
from rag.web_address import check_url, is_public
from retriever.errors import SourceError

PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111"]
PRIVATE = [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
    "240.0.0.1", "255.255.255.255", "192.0.2.1", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "fec0::1",
    "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::7f00:1", "64:ff9b:1::a00:1", "2002:7f00:1::", "2002:a00:1::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_of_the_internet(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://example.org/x", "gopher://example.org/", "//example.org/x", "example.org", "http://",
        "http://user:secret@example.org/", "http://user@example.org/", "http://example.org:22/", "http://example.org:x/",
        "http://example.org/a b", "http://example.org/\r\nHost: x", "http://exämple.org/", "http://[::1/",
        "http://example.org/" + "x" * 2048, "http://a..b/", "http://.b/", f"http://{'x' * 64}.org/",
        f"http://{'x.' * 127}org/",
    ],
)  # fmt: skip
def test_urls_that_are_not_tried(url: str) -> None:
    with pytest.raises(SourceError):
        check_url(url)


def test_a_name_that_cannot_be_encoded_is_one_skipped_document() -> None:
    with pytest.raises(SourceError, match="cannot be found"):
        fetch._resolve("a..b", 80)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0x7f000001", "2130706433", "127.1"])
def test_this_machine_is_never_reached_by_whatever_name(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened"))
    with pytest.raises(SourceError):
        UrlSource(f"http://{host}:8080/", 5.0).read(1000)


class _Site(BaseHTTPRequestHandler):
    """Pages by path; a function may do what it likes."""

    pages: ClassVar[dict[str, Any]] = {}

    def do_GET(self) -> None:
        page = self.pages.get(self.path, (404, {}, b""))
        if callable(page):
            page(self)
            return
        status, headers, body = page
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Site) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def site(port: int, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A site that counts as one of the internet, by the name `site.test`; other names are looked up as they are."""
    monkeypatch.setattr(web_address, "PORTS", (80, port))
    monkeypatch.setattr(fetch, "is_public", lambda address: address == "127.0.0.1" or is_public(address))
    names = {"site.test": ["127.0.0.1"], "inside.test": ["10.0.0.1"], "both.test": ["127.0.0.1", "10.0.0.1"]}
    resolve = fetch._resolve
    monkeypatch.setattr(fetch, "_resolve", lambda host, number: names.get(host) or resolve(host, number))

    def serve(**pages: Any) -> str:
        _Site.pages = {f"/{name}": page for name, page in pages.items()}
        return f"http://site.test:{port}/"

    return serve


def read(url: str, *, seconds: float = 5.0, max_bytes: int = 10_000) -> Any:
    return UrlSource(url, seconds).read(max_bytes)


def test_a_document_is_fetched_with_its_type_and_name(site: Callable[..., str]) -> None:
    url = site(**{"notes%20x.html": (200, {"Content-Type": "text/html; charset=utf-8"}, b"<p>Salt</p>")})
    document = UrlSource(url + "notes%20x.html", 5.0, {"tag": "web"}).read(1000)
    assert (document.uri, document.name) == (url + "notes%20x.html", "notes x.html")
    assert (document.data, document.media_type) == (b"<p>Salt</p>", "text/html; charset=utf-8")
    assert document.metadata == {"tag": "web"}


def test_redirects_are_followed_and_the_uri_stays(site: Callable[..., str]) -> None:
    url = site(a=(301, {"Location": "/b"}, b""), b=(302, {"Location": "c"}, b""), c=(200, {}, b"Salt"))
    document = read(url + "a")
    assert (document.uri, document.data, document.name) == (url + "a", b"Salt", "c")


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://inside.test/", "not a host of the internet"),
        ("http://both.test/", "not a host of the internet"),
        ("http://10.0.0.1/", "not a host of the internet"),
        ("http://169.254.169.254/latest/meta-data/", "not a host of the internet"),
        ("http://[::1]/", "not a host of the internet"),
        ("file:///etc/passwd", "not fetched"),
        ("http://site.test:22/", "port 22"),
        ("http://u:p@site.test/", "user's name"),
        ("", "redirects more than"),
        ("/a", "redirects more than"),
    ],
)
def test_a_redirect_leads_nowhere_that_may_not_be_tried(site: Callable[..., str], location: str, reason: str) -> None:
    url = site(a=(302, {"Location": location}, b""))
    with pytest.raises(SourceError, match=reason):
        read(url + "a")


def test_what_was_checked_is_what_is_connected_to(site: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads elsewhere when it is looked up a second time is looked up once."""
    url, asked = site(a=(200, {}, b"Salt")), list[str]()
    real, connect = fetch._resolve, socket.create_connection

    def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return real(host, port) if len(asked) == 1 else ["10.0.0.1"]

    def to_addresses_alone(address: tuple[str, int], *rest: Any, **more: Any) -> socket.socket:
        assert address[0] == "127.0.0.1", f"connected to {address}"
        return connect(address, *rest, **more)

    monkeypatch.setattr(fetch, "_resolve", rebinding)
    monkeypatch.setattr(socket, "create_connection", to_addresses_alone)
    assert read(url + "a").data == b"Salt"
    assert asked == ["site.test"]


def test_what_is_too_large_or_compressed_or_missing_is_refused(site: Callable[..., str]) -> None:
    packed = gzip.compress(b"0" * 10**6)
    url = site(
        large=(200, {}, b"x" * 10_001),
        fits=(200, {}, b"x" * 10_000),
        packed=(200, {"Content-Encoding": "gzip"}, packed),
        broken=lambda page: page.wfile.write(b"no HTTP at all\r\n\r\n"),
    )
    assert len(read(url + "fits").data) == 10_000
    for name, reason in (
        ("large", "more than 10000 bytes"),
        ("packed", "compressed"),
        ("missing", "status 404"),
        ("broken", "cannot be fetched"),
    ):
        with pytest.raises(SourceError, match=reason):
            read(url + name)


def test_endless_bodies_and_drips_end(site: Callable[..., str]) -> None:
    stop = threading.Event()

    def endless(page: BaseHTTPRequestHandler) -> None:
        page.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not stop.is_set():
            page.wfile.write(b"x" * 4096)

    def drip(page: BaseHTTPRequestHandler) -> None:
        page.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not stop.wait(0.02):
            page.wfile.write(b"x")
            page.wfile.flush()

    def silent(_page: BaseHTTPRequestHandler) -> None:
        stop.wait(20)

    url = site(endless=endless, drip=drip, silent=silent)
    try:
        with pytest.raises(SourceError, match="more than 10000 bytes"):
            read(url + "endless")
        for name in ("drip", "silent"):
            with pytest.raises(SourceError, match="in time"):
                read(url + name, seconds=0.3)
    finally:
        stop.set()


def test_the_urls_of_a_request_become_sources() -> None:
    request = IngestRequest(
        documents=[{"uri": "u", "text": "Salt", "metadata": {"a": 2}}, {"uri": "v", "text": "Wool"}],
        urls=["https://example.org/x.txt"],
        metadata={"a": 1},
    )
    sources = sources_of(request, 3.0)
    assert [source.uri for source in sources] == ["u", "v", "https://example.org/x.txt"]
    assert [getattr(source, "metadata", None) for source in sources] == [{"a": 2}, {"a": 1}, {"a": 1}]
    assert sources[2] == UrlSource("https://example.org/x.txt", 3.0, {"a": 1})
