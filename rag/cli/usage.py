"""`rag usage`: what was used, what it cost, and how passages are used over and over."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from rag.cli.failures import validated
from rag.cli.options import AsJson, config_of
from rag.cli.output import number, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rag.schemas.usage import UsagePatterns, UsageReport, UsageTotal

__all__ = ["app"]

app = typer.Typer(help="Tokens used, their cost, what the cache saved; on its own it shows the last 30 days.")

COLUMNS = ("day", "key", "collection", "pipeline", "model")
Day = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="In UTC.")]
WIDTH = 40  # of the longest bar


@app.callback(invoke_without_command=True)
def usage(
    context: typer.Context,
    *,
    since: Day = None,
    until: Day = None,
    by: Annotated[
        list[str] | None, typer.Option(help=f"What to tell apart: {', '.join(COLUMNS)}. Repeatable.", metavar="WHAT")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Only of this API key, by its id.")] = None,
    collection: Annotated[str | None, typer.Option("--collection", "-c", help="Only of this collection.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a table for other programs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show used tokens, costs and savings."""
    if context.invoked_subcommand is not None:
        if since or until or by or key or collection or as_csv or as_json:
            raise typer.BadParameter(f"put options after {context.invoked_subcommand!r}")
        return
    from rag.connect import connect
    from rag.schemas.usage import UsageRequest
    from rag.usage import as_csv as table_of

    wanted = validated(
        UsageRequest,
        since=since and since.date(),
        until=until and until.date(),
        by=by or ["day", "key", "collection", "model"],
        key=key,
        collection=collection,
    )
    with connect(config_of(context)) as operations:
        report = operations.usage.report(wanted)
    if as_json:
        print_json(report)
    elif as_csv:
        print(table_of(report), end="")
    else:
        _show(report, wanted.by)


@app.command("patterns")
def patterns(
    context: typer.Context,
    collection: Annotated[str | None, typer.Option("--collection", "-c", help="Only of this collection.")] = None,
    answers: Annotated[int, typer.Option(min=1, max=1_000_000, help="So many of the latest at most.")] = 20_000,
    as_json: AsJson = False,
) -> None:
    """Show which documents are read most, how soon again, and what a cache of another size would find."""
    from rag.connect import connect
    from rag.schemas.usage import PatternsRequest

    wanted = validated(PatternsRequest, collection=collection, answers=answers)
    with connect(config_of(context)) as operations:
        found = operations.usage.patterns(wanted)
    if as_json:
        print_json(found)
    else:
        _show_patterns(found)


def _show(report: "UsageReport", by: "Sequence[str]") -> None:
    shown = [name for name in COLUMNS if name in by]
    rows: list[list[object]] = []
    for row in report.rows:
        names = {"day": row.day, "key": row.key_name or row.key_id, "collection": row.collection,
                 "pipeline": row.pipeline, "model": row.model}  # fmt: skip
        rows.append([*(names[name] or "-" for name in shown), *_cells(row)])
    rows.append([*("all" if name == shown[0] else "" for name in shown), *_cells(report.total)])
    money = report.currency or "no price book"
    columns = (*shown, "answers", "prompt", "cached", "output", f"cost ({money})", "saved")
    print_table(columns, rows, title=f"{report.since} to {report.until} (UTC)")
    if report.currency and report.total.unpriced_tokens:
        print(f"{number(report.total.unpriced_tokens)} tokens are of models without a price")


def _cells(used: "UsageTotal") -> tuple[str, ...]:
    tokens = (used.answers, used.prompt_tokens, used.cached_tokens, used.output_tokens)
    money = ("-" if amount is None else f"{amount:.6f}" for amount in (used.cost, used.saved))
    return (*map(number, tokens), *money)


def _show_patterns(found: "UsagePatterns") -> None:
    if not found.reads:
        print("no answers are logged yet (PREREAD_SERVER__LOGGED_RETRIEVALS says how many are kept)")
        return
    print(
        f"{number(found.answers)} answers have read {number(found.reads)} passages, {number(found.passages)} different "
        f"ones of {number(found.tokens)} tokens\n"
    )
    rows = [(one.uri or "(deleted)", one.collection or "", number(one.reads)) for one in found.top]
    print_table(("most read", "collection", "reads"), rows)
    print()
    popular = [(number(one.documents), _percent(one.share), _bar(one.share)) for one in found.popularity]
    print_table(("documents", "share of reads", ""), popular)
    print()
    reuse = [(number(one.tokens), _percent(one.share), _bar(one.share)) for one in found.reuse_distance]
    print_table(("tokens of others in between", "read again", ""), reuse)
    print()
    forecast = [
        (number(one.cache_tokens), _percent(one.hit_rate), _bar(one.hit_rate) + (" now" if one.is_current else ""))
        for one in found.forecast
    ]
    print_table(("room for tokens", "found in memory", ""), forecast)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _bar(share: float) -> str:
    return "█" * round(WIDTH * share)
