"""Fetch model files: wheels with pip, repositories from the Hugging Face hub.

Everything lands below a folder that the caller names and can be resumed; checksums are verified here.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rag.errors import ChecksumError, DownloadError
from rag.file_stats import stats_below

__all__ = ["Report", "Wheel", "fetch_from_hub", "fetch_wheel", "unpack_wheel"]

# Called with the stage ("download", "convert", ...) and the fraction done, or None where it is not known.
Report = Callable[[str, float | None], None]

POLL_SECONDS = 0.2
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "vocab.txt", "merges.txt")
# Copies of the same weights for other programs.
HUB_IGNORED = ("original/*", "onnx/*", "openvino/*", "consolidated*", "*/consolidated*")


@dataclass(frozen=True, slots=True)
class Wheel:
    """Name one wheel and what it must be.

    Attributes:
        package: name on the package index.
        version: exact version.
        filename: name of the wheel file.
        size: bytes, for the progress only.
        sha256: checksum of the file, in hexadecimal.
    """

    package: str
    version: str
    filename: str
    size: int
    sha256: str

    @property
    def requirement(self) -> str:
        """Spell it as pip wants it."""
        return f"{self.package}=={self.version}"


def fetch_wheel(wheel: Wheel, downloads: Path, report: Report) -> Path:
    """Return the verified wheel file in `downloads`, fetching it when it is not there.

    Raises:
        DownloadError: pip is missing or failed.
        ChecksumError: the file that pip fetched is not the pinned one; it is removed.
    """
    path = downloads / wheel.filename
    if path.exists():
        report("verify", None)
        if _sha256(path) == wheel.sha256:
            return path
        path.unlink()
    scratch = downloads / f"{wheel.filename}.part"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        with _watching(scratch, wheel.size, report):
            _pip_download(wheel, scratch)
        fetched = scratch / wheel.filename
        if not fetched.exists():
            raise DownloadError(f"pip fetched no {wheel.filename} for {wheel.requirement}; check `pip config list`")
        found = _sha256(fetched)
        if found != wheel.sha256:
            raise ChecksumError(
                f"{wheel.filename} has sha256 {found}, expected {wheel.sha256}; it was removed. "
                "Pull again; if it stays so, the package index or a proxy serves another file: "
                "check `pip config list`"
            )
        fetched.replace(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def unpack_wheel(path: Path, prefix: str, target: Path) -> None:
    """Unpack the files of a wheel whose names start with `prefix`, without the prefix, into `target`."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.is_dir() or not member.filename.startswith(prefix):
                continue
            member.filename = member.filename.removeprefix(prefix)
            archive.extract(member, target)


def fetch_from_hub(repository: str, folder: Path, check: Callable[[Path], object], report: Report) -> str:
    """Download config, safetensors and tokenizer files of a hub repository; return its commit.

    A second call with the same folder resumes.

    Args:
        repository: `org/name`.
        folder: receives the files.
        check: called with the folder when only the settings are there; it raises to spare the download of weights.
        report: called with the progress.

    Raises:
        DownloadError: the repository does not exist, is not open to us, or the network is not there.
    """
    from huggingface_hub import HfApi, snapshot_download

    # HTTPError is whichever HTTP client's the hub client uses.
    from huggingface_hub.errors import HTTPError, RepositoryNotFoundError  # type: ignore[attr-defined]
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        info = HfApi().model_info(repository, files_metadata=True)
        weights = [file.size or 0 for file in info.siblings or [] if file.rfilename.endswith(".safetensors")]
        fetch = partial(
            snapshot_download,
            repository,
            revision=info.sha,
            local_dir=folder,
            ignore_patterns=list(HUB_IGNORED),
        )
        fetch(allow_patterns=["*.json"])
        check(folder)
        with _watching(folder, sum(weights), report):
            fetch(allow_patterns=list(HUB_FILES))
    except RepositoryNotFoundError as error:
        raise DownloadError(
            f"{repository!r} is not on the Hugging Face hub or not open to you: "
            "check the spelling, or log in with `hf auth login`"
        ) from error
    except (HTTPError, OSError) as error:
        raise DownloadError(
            f"{repository!r} cannot be downloaded ({type(error).__name__}: {str(error).splitlines()[0]}). "
            "Check the network and HF_HUB_OFFLINE; or fetch the folder on another machine and run "
            "`rag model pull PATH`"
        ) from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the hub client's notes for resuming
    return info.sha or "unknown"


def _pip_download(wheel: Wheel, scratch: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"pip is missing in {sys.executable}, so {wheel.requirement} cannot be fetched: run "
            f"`{sys.executable} -m ensurepip`, or put {wheel.filename} into {scratch.parent}"
        )
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    result = subprocess.run(  # noqa: S603 - our own interpreter and pinned names
        [sys.executable, "-m", "pip", "download", *options, "--dest", str(scratch), wheel.requirement],
        env={**os.environ, "TMPDIR": str(scratch)},  # so that the growing file can be watched
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        reason = " / ".join((result.stderr or result.stdout).strip().splitlines()[-2:])
        raise DownloadError(
            f"pip could not download {wheel.requirement} ({reason}). Check the network and `pip config list`, "
            f"or put {wheel.filename} into {scratch.parent}"
        )


@contextlib.contextmanager
def _watching(folder: Path, total: int, report: Report) -> Iterator[None]:
    """Report how many of `total` bytes are in `folder` while the body runs, from a thread of its own."""
    report("download", 0.0)
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(POLL_SECONDS):
            report("download", min(sum(one.st_size for one in stats_below(folder)) / total, 1.0) if total else None)

    watcher = threading.Thread(target=watch, name="download-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
    report("download", 1.0)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
