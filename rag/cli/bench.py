"""`rag bench`: measurements. Each benchmark has its own options and is imported when it is run."""

import sys
from importlib import import_module

import typer

from rag.cli.options import config_of

__all__ = ["app"]

app = typer.Typer(help="Measure.", no_args_is_help=True)


@app.command(
    "prefix",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def prefix(context: typer.Context) -> None:
    """Time to first token with the cache cold, warm and off, over a skewed stream of questions."""
    sys.exit(import_module("rag.bench.prefix").main(context.args, config_of(context)))
