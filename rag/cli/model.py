"""`rag model`: pull models and list them."""

import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from rag.cli.options import AsJson, config_of
from rag.cli.output import number, print_json, print_table

__all__ = ["app"]

app = typer.Typer(help="Pull models and list them.", no_args_is_help=True)


@app.command("pull")
def pull(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(help="Known names, hub ids or folders.")],
    as_json: AsJson = False,
) -> None:
    """Fetch, verify and convert models; those that are there are verified."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    from rag.model_hub import ModelHub, PullEvent

    hub = ModelHub(config_of(context).models_dir)
    infos = []
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bars:
        for name in names:
            task = bars.add_task(name, total=None)

            def show(event: PullEvent, task: Any = task) -> None:
                done = 1.0 if event.stage == "done" else event.fraction
                total = None if done is None else 1.0
                bars.update(task, description=f"{event.model}: {event.stage}", completed=done or 0.0, total=total)

            infos.append(hub.pull(name, progress=show))
    if as_json:
        print_json([_plain(info) for info in infos])
        return
    for info in infos:
        print(f"{info.name}: {info.kind} ({info.architecture}) in {info.path}")


@app.command("list")
def list_models(context: typer.Context, as_json: AsJson = False) -> None:
    """List the models that were pulled, and those that can be by name."""
    from rag.model_hub import KNOWN_MODELS, ModelHub

    infos = ModelHub(config_of(context).models_dir).list()
    if as_json:
        print_json([_plain(info) for info in infos])
        return
    pulled = {info.name for info in infos}
    rows = [
        *((i.name, i.kind, i.architecture, _mebibytes(i.size_bytes), str(i.path)) for i in infos),
        *(
            (m.name, m.kind, m.architecture, "", f"not pulled: rag model pull {m.name}")
            for m in KNOWN_MODELS.values()
            if m.name not in pulled
        ),
    ]
    print_table(("name", "kind", "architecture", "size", "folder"), rows)


def _mebibytes(size: int) -> str:
    return f"{number(size // 2**20)} MiB" if size else ""


def _plain(info: Any) -> dict[str, Any]:
    return {**asdict(info), "path": str(info.path), "kind": str(info.kind)}
