"""`rag keys`: make, list and revoke API keys."""

import re
import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from rag.cli.failures import validated
from rag.cli.options import AsJson, config_of
from rag.cli.output import number, print_json, print_table, printable

__all__ = ["app"]

app = typer.Typer(
    help="Make, list and revoke API keys. From the first one on, a server takes no request without a key.",
    no_args_is_help=True,
)

PERIOD = re.compile(r"(\d{1,6})([hdwy])")
HOURS = {"h": 1, "d": 24, "w": 7 * 24, "y": 365 * 24}


@app.callback()
def _group() -> None:
    """Make, list and revoke API keys."""


@app.command("create")
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What it is called, such as the application that gets it.")],
    scope: Annotated[
        list[str],
        typer.Option(help="What it may do: read, write or admin, a colon, a collection or *. Repeatable."),
    ],
    expires: Annotated[
        str | None, typer.Option(metavar="PERIOD|TIME", help="When it ends: 12h, 30d, 8w, 1y, or a time in ISO 8601.")
    ] = None,
    questions_per_minute: Annotated[int | None, typer.Option(help="Instead of the server's own limit.")] = None,
    tokens_per_day: Annotated[int | None, typer.Option(help="Instead of the server's own limit.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it. It is shown this once: only its hash is kept."""
    from rag.connect import connect
    from rag.schemas.keys import KeyRequest

    wanted = validated(
        KeyRequest,
        name=name,
        scopes=scope,
        questions_per_minute=questions_per_minute,
        tokens_per_day=tokens_per_day,
        expires_at=None if expires is None else _end_of(expires),
    )
    with connect(config_of(context)) as operations:
        was_on = operations.keys.list().on
        made = operations.keys.create(wanted)
    if as_json:
        print_json(made)
    else:
        print(made.key)
    if not was_on:
        print(
            "This is the first key: from now on every request over HTTP needs one. Commands of this user that read the "
            "data directory go on without.",
            file=sys.stderr,
        )


@app.command("list")
def list_keys(context: typer.Context, as_json: AsJson = False) -> None:
    """List every key, without its secret."""
    from rag.connect import connect

    with connect(config_of(context)) as operations:
        found = operations.keys.list()
    if as_json:
        print_json(found)
        return
    columns = ("id", "name", "scopes", "questions/min", "tokens/day", "created", "last used", "state")
    rows = []
    for key in found.keys:
        limits = (_limit(key.questions_per_minute), _limit(key.tokens_per_day))
        state = f"revoked {key.revoked_at}" if key.revoked_at else f"until {key.expires_at}" if key.expires_at else ""
        rows.append((key.id, key.name, ", ".join(key.scopes), *limits, key.created_at, key.last_used_at or "", state))
    print_table(columns, rows)
    if not found.on:
        print("there are no keys: whoever reaches a server may do everything", file=sys.stderr)


@app.command("revoke")
def revoke(
    context: typer.Context,
    key: Annotated[str, typer.Argument(help="Its id or its name.")],
    as_json: AsJson = False,
) -> None:
    """Refuse a key from now on, in a running server too; what it has used stays in the books."""
    from rag.connect import connect

    with connect(config_of(context)) as operations:
        revoked = operations.keys.revoke(key)
    if as_json:
        print_json(revoked)
        return
    print(printable(f"revoked {revoked.id} ({revoked.name})"))
    if not revoked.is_written:
        print("WARNING: it is not written down yet, and accepted again if the server ends before", file=sys.stderr)


def _limit(value: int | None) -> str:
    return "" if value is None else number(value)


def _end_of(text: str) -> datetime:
    """Return the time that a period from now, or a time in ISO 8601, means; one without zone is this machine's."""
    try:
        if period := PERIOD.fullmatch(text):
            return datetime.now(UTC) + timedelta(hours=int(period[1]) * HOURS[period[2]])
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(f"expires is {text!r}: write 12h, 30d, 8w, 1y, or a time in ISO 8601") from error
