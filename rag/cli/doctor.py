"""`rag doctor`: what is installed, and whether it works."""

import sys
from typing import TYPE_CHECKING

import typer

from rag.cli.failures import FAILED, OK
from rag.cli.options import AsJson, config_of
from rag.cli.output import print_json, print_table, waiting

if TYPE_CHECKING:
    from rag.diagnosis import Check

__all__ = ["doctor"]

MARKS = {True: "ok", False: "FAILED", None: "-"}


def doctor(
    context: typer.Context,
    quick: bool = typer.Option(False, "--quick", help="Leave out the end-to-end check."),
    as_json: AsJson = False,
) -> None:
    """Show versions, kernel backends, models and the index of each collection, and answer a tiny question for real."""
    from rag.diagnosis import diagnose

    with waiting("checking"):
        checks = diagnose(config_of(context), end_to_end=not quick)
    failed = [check for check in checks if check.works is False]
    if as_json:
        print_json({"works": not failed, "checks": [check.as_dict() for check in checks]})
    else:
        print_table(("", "", ""), [(MARKS[check.works], check.name, check.detail) for check in checks])
        _conclude(failed)
    raise typer.Exit(FAILED if failed else OK)


def _conclude(failed: "list[Check]") -> None:
    if failed:
        print(f"{len(failed)} of the checks failed: {', '.join(check.name for check in failed)}", file=sys.stderr)
    else:
        print("\neverything works")
