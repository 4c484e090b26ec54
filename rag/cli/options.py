"""Options that every command has, and options that several share."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rag.config import RagConfig

__all__ = ["GLOBAL_OPTIONS", "AsJson", "CollectionOption", "Options", "Passages", "config_of", "hoist"]

GLOBAL_OPTIONS = ("--data-dir", "--models-dir", "--model", "--embedder", "--api-key")

CollectionOption = Annotated[str, typer.Option("--collection", "-c", help="Collection to use.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
Passages = Annotated[int | None, typer.Option("-k", "--top-k", min=1, max=100, help="Passages to retrieve.")]


@dataclass(frozen=True, slots=True)
class Options:
    """Global options as given; None where they were not."""

    data_dir: str | None = None
    models_dir: str | None = None
    model: str | None = None
    embedder: str | None = None
    api_key: str | None = None


def config_of(context: typer.Context, **more: Any) -> "RagConfig":
    """Return the settings: defaults, environment, global options, then `more`.

    Raises:
        ConfigurationError: a setting that cannot work.
    """
    from rag.config import load_config

    options = context.obj or Options()
    return load_config(**asdict(options), **more)


def hoist(arguments: Sequence[str], names: Collection[str]) -> list[str]:
    """Move global options before the command, so that they may stand anywhere."""
    front: list[str] = []
    rest: list[str] = []
    items = iter(arguments)
    for item in items:
        if item == "--":
            rest += [item, *items]
        elif item in names:
            front += [item, *(value for value in [next(items, None)] if value is not None)]
        elif item.partition("=")[0] in names:
            front.append(item)
        else:
            rest.append(item)
    return front + rest
