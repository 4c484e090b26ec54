"""The page as one document: its parts are put together when the server starts, and nothing else is ever loaded.

The parts of the script are one module: they share names, and are read in the order in which they stand here.
"""

from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

__all__ = ["Page", "page", "router"]

router = APIRouter(include_in_schema=False)

STYLES = ("style.css", "answers.css")
SCRIPTS = (
    "basics.js",
    "api.js",
    "prompt.js",
    "compare.js",
    "sources.js",
    "ask.js",
    "tasks.js",
    "library.js",
    "dashboard.js",
    "usage.js",
    "main.js",
)
STYLE_PLACE, SCRIPT_PLACE = "/* style */", "/* script */"


@dataclass(frozen=True, slots=True)
class Page:
    """A document, the headers that it is sent with, and its tag."""

    html: str
    headers: dict[str, str]
    etag: str


@cache
def page() -> Page:
    """Put the page together.

    Its policy lets run the very script and style that are in it, and lets it talk to this server alone.
    """
    style, script = (_joined(names) for names in (STYLES, SCRIPTS))
    html = _read("page.html").replace(STYLE_PLACE, style).replace(SCRIPT_PLACE, script)
    policy = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    etag = f'"{sha256(html.encode()).hexdigest()[:32]}"'
    headers = {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Cache-Control": "no-cache",
        "ETag": etag,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }
    return Page(html, headers, etag)


@router.head("/")
@router.get("/")
async def show(request: Request) -> Response:
    """Send the page."""
    made = page()
    if request.headers.get("if-none-match") == made.etag:
        return Response(status_code=304, headers=made.headers)
    return HTMLResponse(made.html, headers=made.headers)


def _joined(names: tuple[str, ...]) -> str:
    return "\n" + "\n".join(_read(name) for name in names)


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
