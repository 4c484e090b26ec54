"""Web pages of others are refused: by the Host of a name that resolves here, and by the Origin of a form."""

from pathlib import Path

import httpx
import pytest
from server_helpers import make_config, problem_of

from rag.config import ServerSettings
from rag.server.app import create_app
from rag.server.hosts import allowed_hosts
from rag.service import Service

LOCAL = "127.0.0.1"


async def get(service: Service, settings: ServerSettings, headers: dict[str, str]) -> httpx.Response:
    """Ask an app without a network; nothing is loaded."""
    transport = httpx.ASGITransport(create_app(service, settings))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
        return await client.get("/healthz", headers=headers)


@pytest.fixture
def ask(tmp_path: Path):
    def ask(host: str = "", origin: str = "", *, listening: str = LOCAL, allowed: str = "") -> httpx.Response:
        import anyio

        config = make_config(tmp_path, tmp_path).model_copy(update={"host": listening})
        headers = {name: value for name, value in (("host", host), ("origin", origin)) if value}
        with Service(config) as service:
            return anyio.run(get, service, ServerSettings(allowed_hosts=allowed), headers)

    return ask


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LOCALHOST.:8000", "[::1]:8000", "127.8.8.8"])
def test_this_machine_is_answered(ask, host: str) -> None:
    assert ask(host).status_code == 200
    assert ask(host, f"http://{host}").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "[::1", "192.168.1.9"])
def test_another_host_is_refused(ask, host: str) -> None:
    problem = problem_of(ask(host), 403, "foreign-host")
    assert "PREREAD_SERVER__ALLOWED_HOSTS" in problem["detail"]


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:3000", "http://localhost:8000.evil"]
)
@pytest.mark.parametrize("listening", [LOCAL, "0.0.0.0"])
def test_a_page_of_another_origin_is_refused(ask, origin: str, listening: str) -> None:
    problem = problem_of(ask("localhost:8000", origin, listening=listening), 403, "foreign-origin")
    assert origin in problem["detail"]


def test_hosts_that_are_named_are_answered_and_no_others(ask) -> None:
    assert ask("docs.example", allowed="testserver, Docs.example").status_code == 200
    assert ask("evil.example", allowed="docs.example", listening="0.0.0.0").status_code == 403
    assert ask("evil.example", allowed="*").status_code == 200


def test_a_server_that_others_can_reach_goes_by_any_name(ask) -> None:
    assert ask("docs.example", listening="0.0.0.0").status_code == 200
    assert allowed_hosts("10.0.0.7", ServerSettings(allowed_hosts="docs.example")) == {"10.0.0.7", "docs.example"}
