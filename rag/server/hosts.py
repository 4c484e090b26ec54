"""Who may ask: a web page that is open in a browser may neither read nor write here.

Where there are no keys, whoever reaches the server may use it. A browser reaches it for any page: a form is sent to
another site without asking first, and a page whose name is made to resolve to this machine (DNS rebinding) may read.
Both give themselves away, by `Origin` and by `Host`.
"""

from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from rag.config import ServerSettings
from rag.server.problems import ProblemError, describe, problem_response

__all__ = ["HostGuard", "allowed_hosts", "is_loopback"]

ANY = "*"


def allowed_hosts(listening: str, settings: ServerSettings) -> frozenset[str] | None:
    """Return the names that requests may call the server, besides this machine's own; None where any will do.

    Args:
        listening: the address that it listens on.
        settings: those that were named; without any, a server that others can reach goes by any name.
    """
    named = {_name(part) for part in settings.allowed_hosts.split(",") if part.strip()}
    if ANY in named or not (named or is_loopback(listening)):
        return None
    return frozenset({*named, _name(listening)})


def is_loopback(host: str) -> bool:
    """Return whether a name or address is that of this machine alone."""
    name = _name(host)
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


class HostGuard:
    """Refuses requests that are for another host, or that a page of another origin has sent.

    Args:
        app: what it wraps.
        hosts: made by `allowed_hosts`.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        refusal = self._refusal(Headers(scope=scope)) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
            return
        problem = describe(refusal, scope["state"]["request_id"])
        await problem_response(problem, {"Connection": "close"}, path=scope["path"])(scope, receive, send)

    def _refusal(self, headers: Headers) -> ProblemError | None:
        host, origins = ",".join(headers.getlist("host")), headers.getlist("origin")
        if self._hosts is not None and not is_loopback(_host_of(host)) and _host_of(host) not in self._hosts:
            return ProblemError(
                403,
                "foreign-host",
                f"the request is for host {host!r}, which is not this server's; use the address that it printed when "
                "it started, or add the host to the server's PREREAD_SERVER__ALLOWED_HOSTS",
            )
        foreign = next((origin for origin in origins if origin.partition("://")[2].lower() != host.lower()), None)
        if foreign is None:
            return None
        return ProblemError(
            403,
            "foreign-origin",
            f"the request was sent by a web page of {foreign!r}, and this server is {host!r}; send it from a program, "
            "or have the page's own server send it",
        )


def _name(host: str) -> str:
    return host.strip().strip("[]").rstrip(".").lower()


def _host_of(header: str) -> str:
    """Return the name in a Host header, without its port; nothing where it is malformed."""
    try:
        return _name(urlsplit(f"//{header}").hostname or "")
    except ValueError:
        return ""
