"""Which files below folders are documents. Knows their names, not what is in them."""

import os
from collections.abc import Iterable
from pathlib import Path

from retriever.document import FileSource
from retriever.errors import SourceError

__all__ = ["sources_from_paths"]

# Found in folders beside documents, never documents: a walk passes them by, an explicit path still reports them.
NOT_DOCUMENTS = """
.7z .a .avi .bin .bmp .bz2 .class .db .dll .dylib .eot .exe .flac .gif .gz .ico .jar .jpeg .jpg .lock .mkv .mo
.mov .mp3 .mp4 .npy .npz .o .ogg .otf .parquet .pkl .png .pyc .pyd .pyo .rar .safetensors .so .sqlite .sqlite3
.svg .tar .tgz .tif .tiff .ttf .wav .webm .webp .whl .woff .woff2 .xz .zip .zst
"""


def sources_from_paths(paths: Iterable[str | Path]) -> list[FileSource]:
    """Return a source for every file named and every document below the folders named, each once, in a fixed order.

    A walk passes by hidden files and folders, `__pycache__`, and files whose suffix says that they are no
    documents (images, archives, libraries); a file that is named itself is always included.

    Raises:
        SourceError: a path does not exist.
    """
    found: dict[Path, None] = {}
    ignored = frozenset(NOT_DOCUMENTS.split())
    for given in paths:
        path = Path(given).expanduser()
        if path.is_dir():
            found.update(dict.fromkeys(_walk(path, ignored)))
        elif path.exists():
            found[path.resolve()] = None
        else:
            raise SourceError(f"{given} does not exist; check the path")
    return [FileSource(path) for path in found]


def _walk(folder: Path, ignored: frozenset[str]) -> Iterable[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() not in ignored:
                yield (Path(parent) / name).resolve()
