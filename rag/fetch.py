"""Documents from the web, where that is allowed: nothing of this machine or its network is ever read.

A URL is as harmless as the address that its name leads to at the moment of connecting, so that is what is checked:
every address that a name resolves to, for the URL itself and for wherever it is redirected, and the connection goes to
one that was checked. Time and size are limited, and what arrives compressed is refused: it may be far larger than it
looks.
"""

import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from time import monotonic
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import httpcore
import httpx

from rag.web_address import check_url, is_public
from retriever.document import RawDocument
from retriever.errors import SourceError
from retriever.metadata import Metadata

__all__ = ["UrlSource"]

MAX_REDIRECTS = 5
USER_AGENT = "preread"
REDIRECTS = (301, 302, 303, 307, 308)

SocketOption = (
    tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]
)  # as httpcore has it


@dataclass(frozen=True, slots=True)
class UrlSource:
    """A document of the web; its uri is the URL.

    Attributes:
        url: checked when it is read.
        seconds: the whole takes no longer, redirects included.
        metadata: of the document.
    """

    url: str
    seconds: float
    metadata: Metadata | None = None

    @property
    def uri(self) -> str:
        """Return the URL."""
        return self.url

    def read(self, max_bytes: int) -> RawDocument:
        """Fetch the document.

        Raises:
            SourceError: it may not be fetched, does not come in time, or is too large.
        """
        deadline = monotonic() + self.seconds
        url = self.url
        for _ in range(MAX_REDIRECTS + 1):
            found = _get(check_url(url), deadline, max_bytes)
            if isinstance(found, str):
                url = urljoin(url, found)
                continue
            data, media_type = found
            name = unquote(urlsplit(url).path.rsplit("/", 1)[-1]) or "index"
            return RawDocument(self.uri, data, name, media_type=media_type, metadata=self.metadata)
        raise SourceError(f"{self.url} redirects more than {MAX_REDIRECTS} times; give the URL that it ends at")


def _get(url: str, deadline: float, max_bytes: int) -> tuple[bytes, str | None] | str:
    """Return bytes and media type of what is at a URL, or where it is said to be."""
    wanted = {"Host": urlsplit(url).netloc, "User-Agent": USER_AGENT, "Accept-Encoding": "identity", "Accept": "*/*"}
    headers = [(name.encode(), value.encode()) for name, value in wanted.items()]
    try:
        with httpcore.ConnectionPool(ssl_context=_ssl_context(), network_backend=_PublicNetwork(deadline)) as pool:
            timeout = {"pool": _left(deadline), "connect": _left(deadline), "read": _left(deadline), "write": 5.0}
            with pool.stream("GET", url, headers=headers, extensions={"timeout": timeout}) as response:
                if response.status in REDIRECTS:
                    return _header(response, b"location")
                if response.status != httpx.codes.OK:
                    raise SourceError(f"{url} answers with status {response.status}; check it in a browser")
                if _header(response, b"content-encoding").lower() not in ("", "identity"):
                    raise SourceError(f"{url} comes compressed, which is not unpacked; download it and upload it")
                return _body(response, url, deadline, max_bytes), _header(response, b"content-type") or None
    except (httpcore.TimeoutException, TimeoutError) as error:
        raise SourceError(f"{url} does not come in time; try again, or download it and upload it") from error
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
        raise SourceError(
            f"{url} cannot be fetched ({error or type(error).__name__}); check it in a browser"
        ) from error


def _body(response: httpcore.Response, url: str, deadline: float, max_bytes: int) -> bytes:
    data = bytearray()
    for chunk in response.iter_stream():
        data += chunk
        if len(data) > max_bytes:
            raise SourceError(f"{url} has more than {max_bytes} bytes (max_document_bytes); give a smaller document")
        _left(deadline)
    return bytes(data)


def _header(response: httpcore.Response, name: bytes) -> str:
    values = (value for key, value in response.headers if key.lower() == name)
    return next(values, b"").decode("latin-1").strip()


def _left(deadline: float) -> float:
    """Return the seconds until a deadline.

    Raises:
        TimeoutError: it is over.
    """
    left = deadline - monotonic()
    if left <= 0:
        raise TimeoutError
    return left


@cache
def _ssl_context() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)


class _PublicNetwork(httpcore.NetworkBackend):
    """Connects to public addresses alone; what a name leads to is checked and used, not looked up again."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the deadline is what counts
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address of a host that can be reached, where all of them are public."""
        addresses = _resolve(host, port)
        private = [address for address in addresses if not is_public(address)]
        if private or not addresses:
            raise SourceError(
                f"{host} is not a host of the internet, and this server reads nothing else; upload the document"
            )
        failure: httpcore.ConnectError | httpcore.ConnectTimeout | None = None
        for address in addresses:
            try:
                stream = self._backend.connect_tcp(address, port, _left(self._deadline), local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _TimedStream(stream, self._deadline)
        assert failure is not None, "no address was tried"
        raise failure

    def sleep(self, seconds: float) -> None:
        """Wait."""
        self._backend.sleep(min(seconds, _left(self._deadline)))


class _TimedStream(httpcore.NetworkStream):
    """A connection that ends with the deadline, however slowly the other side feeds it."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - see above
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - see above
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - see above
    ) -> httpcore.NetworkStream:
        return _TimedStream(self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline)), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _resolve(host: str, port: int) -> list[str]:
    """Return every address of a host, in the system's order."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # what cannot be encoded is no name
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise SourceError(f"{host} cannot be found ({reason}); check the URL") from error
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
