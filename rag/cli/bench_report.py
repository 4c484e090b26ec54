"""`rag bench report`: its options."""

import sys
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rag.cli.options import AsJson
from rag.cli.output import print_json

if TYPE_CHECKING:
    from rag.bench.analysis.markdown import Costs
    from rag.bench.analysis.models import Figures
    from rag.bench.suite.results import Results

__all__ = ["report"]


def report(
    file: Annotated[Path, typer.Argument(help="Result of rag bench run.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.md, report.html and plots/. Default: Markdown on stdout.")
    ] = None,
    readme: Annotated[Path | None, typer.Option(help="README whose benchmark table is written anew.")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Engine whose TTFT speed-ups are over. Default: preread-off.")
    ] = None,
    price_book: Annotated[Path | None, typer.Option(help="Prices of tokens, in TOML.")] = None,
    hour_price: Annotated[float | None, typer.Option(min=0, help="Price of an hour of the machine.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tables, plots and a page of what a run measured."""
    from rag.bench.analysis.figures import BASELINE, figures_of
    from rag.bench.analysis.markdown import render_markdown
    from rag.bench.suite.results import Results

    _refuse(out, readme)
    results = Results.load(file)
    if baseline is not None and baseline not in results.contestants:
        raise typer.BadParameter(f"baseline is {baseline}: name one of {', '.join(results.contestants)}")
    figures = figures_of(results, baseline=baseline or BASELINE)
    money = _costs(results, price_book, hour_price)
    if readme:
        _write_readme(figures, file, readme)
    if out:
        _write_report(figures, money, file, out)
    if as_json:
        print_json(figures)
    elif not out and not readme:
        print(render_markdown(figures, source=file.name, costs=money), end="")


def _refuse(out: Path | None, readme: Path | None) -> None:
    """Say before anything is computed or written what cannot be."""
    if out and not out.is_dir() and any(one.exists() for one in (out, *out.parents) if not one.is_dir()):
        raise typer.BadParameter(f"--out {out} is a file, or below one: name a folder, which need not exist")
    if readme and not readme.is_file():
        raise typer.BadParameter(f"--readme {readme} is no file: name one that has the lines of the table")


def _costs(results: "Results", book: Path | None, hour_price: float | None) -> "Costs | None":
    from rag.bench.analysis.cost import costs
    from rag.bench.analysis.markdown import Costs
    from rag.prices import PriceBook

    if book is None and hour_price is None:
        return None
    prices = PriceBook.load(book) if book else None
    price = None if hour_price is None else Decimal(str(hour_price))
    return Costs(rows=costs(results, prices, hour_price=price), currency=prices.currency if prices else "")


def _write_report(figures: "Figures", money: "Costs | None", file: Path, folder: Path) -> None:
    from rag.bench.analysis.markdown import Illustration, render_markdown
    from rag.bench.pictures.album import pictures_of, write_pictures
    from rag.bench.pictures.page import write_page
    from rag.bench.pictures.sheet import HOW_TO_DRAW, can_draw

    folder.mkdir(parents=True, exist_ok=True)
    plots = write_pictures(figures, folder / "plots")
    pictures = [Illustration(one.section, f"plots/{one.name}.svg", one.alt) for one in pictures_of(figures)]
    report_file, page = folder / "report.md", folder / "report.html"
    text = render_markdown(figures, source=file.name, pictures=pictures, costs=money)
    report_file.write_text(text, encoding="utf-8")
    write_page(render_markdown(figures, source=file.name, costs=money), figures, page)
    for path in (report_file, page, *plots):
        print(path, file=sys.stderr)
    if not can_draw():
        print(HOW_TO_DRAW, file=sys.stderr)


def _write_readme(figures: "Figures", file: Path, readme: Path) -> None:
    from rag.bench.analysis.readme import readme_block, with_block

    there = readme.resolve().parent
    source = file.resolve()
    name = source.relative_to(there).as_posix() if source.is_relative_to(there) else file.name
    try:
        old = readme.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"--readme {readme} cannot be read as UTF-8 ({error}): mend it first") from error
    text = with_block(old, readme_block(figures, name))
    partial = readme.with_name(f"{readme.name}.part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(readme)
    print(readme, file=sys.stderr)
