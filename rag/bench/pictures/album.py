"""All pictures of a run, and their files."""

from collections.abc import Sequence
from pathlib import Path

from rag.bench.analysis.models import Figures
from rag.bench.pictures.distribution import distributions
from rag.bench.pictures.export import png, svg
from rag.bench.pictures.footprint import footprints
from rag.bench.pictures.goodput import goodputs
from rag.bench.pictures.passages import passages
from rag.bench.pictures.quality import qualities
from rag.bench.pictures.sheet import WIDE, Picture, can_draw
from rag.bench.pictures.simulation import simulations
from rag.bench.pictures.speedup import speedups
from rag.bench.pictures.style import looks
from rag.bench.pictures.warming import warmings

__all__ = ["pictures_of", "write_pictures"]

FAMILIES = (speedups, distributions, warmings, passages, goodputs, qualities, simulations, footprints)


def pictures_of(figures: Figures) -> list[Picture]:
    """Return the pictures that a run has the figures for.

    None where matplotlib is not installed; `HOW_TO_DRAW` says what to do about it.
    """
    if not can_draw():
        return []
    names = [name for one in figures.experiments.values() for name in (*one.contestants, *one.goodput)]
    known = looks([*figures.contestants, *names])
    return [picture for family in FAMILIES for picture in family(figures, known)]


def write_pictures(figures: Figures, folder: Path) -> Sequence[Path]:
    """Write every picture as SVG and PNG into a folder, which is made; the same figures give the same files.

    Returns:
        The files; none, and no folder, where matplotlib is not installed.
    """
    pictures = pictures_of(figures)
    if pictures:
        folder.mkdir(parents=True, exist_ok=True)
    files = []
    for picture in pictures:
        path = folder / f"{picture.name}.svg"
        path.write_text(svg(picture, WIDE, alone=True), encoding="utf-8")
        (folder / f"{picture.name}.png").write_bytes(png(picture))
        files += [path, folder / f"{picture.name}.png"]
    return files
