"""`rag serve`: the HTTP API."""

from typing import Annotated

import typer

from rag.cli.options import config_of

__all__ = ["serve"]


def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on.")] = None,
) -> None:
    """Serve the HTTP API; other `rag` commands then use it."""
    from importlib import import_module

    import_module("rag.server.app").serve(config_of(context, host=host, port=port))
