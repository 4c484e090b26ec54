"""The `rag` command. Heavy modules are imported by the commands that need them, so that help is quick."""

import logging
import sys
from typing import Annotated

import typer

from rag.cli import (
    ask,
    bench,
    cache,
    certify,
    collections,
    demo,
    doctor,
    documents,
    ingest,
    jobs,
    keys,
    model,
    search,
    serve,
    usage,
)
from rag.cli.failures import FAILED, USAGE, expected_errors
from rag.cli.options import GLOBAL_OPTIONS, Options, hoist

__all__ = ["app", "main"]

EPILOG = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage or setting, 3 partly done (some files were skipped), 130 interrupted. "
    "Every setting has a PREREAD_ variable; global options may stand anywhere."
)

app = typer.Typer(
    name="rag",
    help="Answers questions over your documents, and reads each passage once.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(name="ingest")(ingest.ingest)
app.command(name="ask")(ask.ask)
app.command(name="search")(search.search)
app.command(name="serve")(serve.serve)
app.command(name="demo")(demo.demo)
app.command(name="certify")(certify.certify)
app.command(name="doctor")(doctor.doctor)
app.add_typer(cache.app, name="cache")
app.add_typer(collections.app, name="collections")
app.add_typer(documents.app, name="documents")
app.add_typer(jobs.app, name="jobs")
app.add_typer(keys.app, name="keys")
app.add_typer(model.app, name="model")
app.add_typer(usage.app, name="usage")
app.add_typer(bench.app, name="bench")


def _show_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"preread {version('preread')}")
        raise typer.Exit


@app.callback()
def _global(
    context: typer.Context,
    data_dir: Annotated[str | None, typer.Option(help="Where documents and indexes are kept.")] = None,
    models_dir: Annotated[str | None, typer.Option(help="Where pulled models are kept.")] = None,
    model: Annotated[str | None, typer.Option(help="Language model: a pulled name or a folder.")] = None,
    embedder: Annotated[str | None, typer.Option(help="Embedder: a pulled name or a folder.")] = None,
    api_key: Annotated[
        str | None, typer.Option(help="For a running server; PREREAD_API_KEY keeps it out of the process list.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done, on stderr.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s: %(message)s", force=True)
    for noisy in ("httpx", "faiss", "sentence_transformers", "transformers"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    context.obj = Options(data_dir=data_dir, models_dir=models_dir, model=model, embedder=embedder, api_key=api_key)


def main() -> None:
    """Run the command line; an expected failure is one paragraph on stderr, without a traceback."""
    try:
        app(args=hoist(sys.argv[1:], GLOBAL_OPTIONS))
    except Exception as error:
        code = expected_errors(error)
        if code is None:
            raise
        assert code in (FAILED, USAGE), f"unknown exit code {code}"
        print(f"error: {error}", file=sys.stderr)
        sys.exit(code)
