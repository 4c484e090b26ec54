"""What the files of a folder take, while others write and remove some of them."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["stats_below"]


def stats_below(folder: Path) -> Iterator[os.stat_result]:
    """Yield the status of every file below a folder; files and folders that are gone meanwhile are left out."""
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                yield (Path(place) / name).stat()
