"""Which URLs and addresses documents may be fetched from. Knows no network."""

from ipaddress import IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

from retriever.errors import SourceError

__all__ = ["check_url", "is_public"]

MAX_URL = 2048
MAX_HOST, MAX_LABEL = 253, 63  # characters (RFC 1035)
PORTS = (80, 443, 8080, 8443)
TRANSLATED = ip_network("64:ff9b::/96")  # NAT64


def check_url(url: str) -> str:
    """Return a URL that may be tried: of a kind, and with a port, that documents are found at.

    Raises:
        SourceError: it may not; the message says why.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SourceError(f"{url!r} is no URL ({error}); correct it") from error
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise SourceError(f"a URL has at most {MAX_URL} printable ASCII characters; encode the others with %")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SourceError(f"{url!r} is not fetched; give a URL that begins with http:// or https:// and a host")
    labels = parts.hostname.removesuffix(".").split(".")
    if len(parts.hostname) > MAX_HOST or not all(0 < len(label) <= MAX_LABEL for label in labels):
        raise SourceError(f"{parts.hostname!r} is no name of a host: a part of it is empty or too long; correct it")
    if parts.username is not None or parts.password is not None:
        raise SourceError("a URL with a user's name or password is not fetched; download the document and upload it")
    if port is not None and port not in PORTS:
        raise SourceError(f"port {port} is not fetched from; documents are found at {', '.join(map(str, PORTS))}")
    return url


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the internet; one that wraps another, which may be any, does not count."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address) and (ip.ipv4_mapped or ip.sixtofour or ip.teredo or ip in TRANSLATED):
        return False
    is_special = ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback or ip.is_link_local
    return ip.is_global and not is_special and not (isinstance(ip, IPv6Address) and ip.is_site_local)
