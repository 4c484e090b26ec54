"""`rag bench compare`: its options."""

from pathlib import Path
from typing import Annotated

import typer

from rag.cli.options import AsJson
from rag.cli.output import print_json

__all__ = ["compare"]


def compare(
    before: Annotated[Path, typer.Argument(help="Result of rag bench run.", show_default=False)],
    after: Annotated[Path, typer.Argument(help="Another one of the same suite.", show_default=False)],
    reference: Annotated[
        str | None,
        typer.Option(
            help="Engine that tells what the machine did. Default: one that is the same in both files, ours last."
        ),
    ] = None,
    least: Annotated[float, typer.Option(min=0, help="Smallest change to report, as a share.")] = 0.05,
    everything: Annotated[bool, typer.Option("--all", help="Every measure, changed or not.")] = False,
    as_json: AsJson = False,
) -> None:
    """What changed between two runs beyond noise. Exit status 1: nothing could be compared."""
    from rag.bench.analysis.compare import compare_runs
    from rag.bench.analysis.compare_table import render
    from rag.bench.suite.results import Results

    if before.resolve() == after.resolve():
        raise typer.BadParameter(f"{before} and {after} are the same file: name the results of two runs")
    sides = (str(before), Results.load(before)), (str(after), Results.load(after))
    known = [name for name in sides[0][1].contestants if name in sides[1][1].contestants]
    if reference is not None and reference not in known:
        raise typer.BadParameter(f"reference is {reference}: name one that is in both files: {', '.join(known)}")
    comparison = compare_runs(*sides, reference=reference, least=least)
    if as_json:
        print_json(comparison)
    else:
        print(render(comparison, everything=everything), end="")
    if not comparison.judged:
        raise typer.Exit(1)
