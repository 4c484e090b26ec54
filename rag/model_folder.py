"""The folder of one model: what is in it, where it came from, and whether it is still whole."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from rag.errors import ModelFolderError

__all__ = [
    "MANIFEST_NAME",
    "Manifest",
    "ModelInfo",
    "ModelKind",
    "describe_files",
    "recognise",
    "require_files",
    "tool_versions",
]

MANIFEST_NAME = "preread-model.json"
MANIFEST_FORMAT = 1
TOOLS = ("preread", "gguf", "huggingface_hub", "safetensors", "tokenizers", "torch")


class ModelKind(StrEnum):
    """Tell a language model from an embedder."""

    LANGUAGE_MODEL = "language model"
    EMBEDDER = "embedder"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Describe a pulled or registered model.

    Attributes:
        name: what `ModelHub.resolve` takes.
        kind: language model or embedder.
        architecture: its class in config.json.
        path: the folder.
        source: package, hub id or folder that it came from.
        version: package version or commit; "" for a local folder.
        licence: of the weights; "" where it is not known.
        size_bytes: of all its files; 0 for a registered folder.
    """

    name: str
    kind: ModelKind
    architecture: str
    path: Path
    source: str
    version: str
    licence: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """Say where a model came from and what every file of it must be.

    Attributes:
        name: of the model.
        kind: language model or embedder.
        architecture: its class in config.json.
        source: package, hub id or folder that it came from.
        version: package version or commit.
        sha256: of the downloaded file, where it was one file.
        licence: of the weights.
        location: of a registered folder; "" means the folder of this manifest.
        created_with: versions of the tools that wrote the folder.
        files: relative path -> size, mtime_ns and blake3 of the file; empty for a registered folder.
        format: of this manifest.
    """

    name: str
    kind: ModelKind
    architecture: str
    source: str
    version: str = ""
    sha256: str = ""
    licence: str = ""
    location: str = ""
    created_with: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    format: int = MANIFEST_FORMAT

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Return the manifest in `folder`, or None where there is none.

        Raises:
            ModelFolderError: it cannot be understood.
        """
        path = folder / MANIFEST_NAME
        try:
            fields = json.loads(path.read_text("utf-8"))
            fields["kind"] = ModelKind(fields["kind"])
            manifest = cls(**fields)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ModelFolderError(f"{path} is damaged ({error}): remove {folder} and pull the model again") from error
        if manifest.format != MANIFEST_FORMAT:
            raise ModelFolderError(
                f"{path} has format {manifest.format}, this version reads {MANIFEST_FORMAT}: "
                f"remove {folder} and pull the model again"
            )
        return manifest

    def write(self, folder: Path) -> None:
        """Write the manifest into `folder` in one step."""
        path = folder / MANIFEST_NAME
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        partial.replace(path)

    def info(self, folder: Path) -> ModelInfo:
        """Describe the model whose manifest lies in `folder`."""
        return ModelInfo(
            name=self.name,
            kind=self.kind,
            architecture=self.architecture,
            path=Path(self.location) if self.location else folder,
            source=self.source,
            version=self.version,
            licence=self.licence,
            size_bytes=sum(entry["size"] for entry in self.files.values()),
        )

    def damaged_files(self, folder: Path, *, hashes: bool) -> list[str]:
        """List the files that are missing or of another size, and with `hashes` those of other content.

        A file that was not touched since the manifest was made is not read again: reading takes seconds where the
        files are not in memory.
        """
        return [name for name, entry in self.files.items() if _is_damaged(folder / name, entry, hashes=hashes)]


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size, modification time and blake3 of every file below `folder`, by relative path."""
    described = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST_NAME:
            status = path.stat()
            described[path.relative_to(folder).as_posix()] = {
                "size": status.st_size,
                "mtime_ns": status.st_mtime_ns,
                "blake3": _blake3(path),
            }
    return described


def tool_versions() -> dict[str, str]:
    """Return the versions of the tools that make a model folder."""
    return {tool: importlib.metadata.version(tool) for tool in TOOLS}


def recognise(folder: Path) -> tuple[ModelKind, str]:
    """Tell kind and architecture of a Hugging Face folder from its settings; the weights need not be there yet.

    Raises:
        ModelFolderError: it has no settings, or damaged ones.
        UnsupportedModelError: a language model of a family that the engine does not run.
        ModelFileError: a language model with settings that cannot work.
    """
    try:
        modules = folder / "modules.json"
        if modules.is_file():
            transformer = json.loads(modules.read_text("utf-8"))[0]["path"]
            return ModelKind.EMBEDDER, _architecture(folder / transformer / "config.json")
        architecture = _architecture(folder / "config.json")
    except FileNotFoundError as error:
        raise ModelFolderError(
            f"{folder} has no {Path(error.filename).name}: this is not a Hugging Face model folder"
        ) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelFolderError(f"{folder} has damaged settings ({error}): fetch the folder again") from error
    from engine.models.config import ModelConfig

    ModelConfig.from_folder(folder)
    return ModelKind.LANGUAGE_MODEL, architecture


def require_files(folder: Path) -> None:
    """Check that weights and tokenizer are in a form that we read.

    Raises:
        ModelFolderError: one of them is not.
    """
    for pattern, wanted in (
        ("*.safetensors", "safetensors weights: load it with transformers and `save_pretrained` it"),
        ("tokenizer.json", "tokenizer.json: load its tokenizer with transformers and `save_pretrained` it"),
    ):
        if not any(folder.rglob(pattern)):
            raise ModelFolderError(f"{folder} has no {wanted}")


def _architecture(config_file: Path) -> str:
    config = json.loads(config_file.read_text("utf-8"))
    return str((config.get("architectures") or ["unknown"])[0])


def _is_damaged(path: Path, entry: dict[str, Any], *, hashes: bool) -> bool:
    if not path.is_file() or path.stat().st_size != entry["size"]:
        return True
    return hashes and path.stat().st_mtime_ns != entry["mtime_ns"] and _blake3(path) != entry["blake3"]


def _blake3(path: Path) -> str:
    from blake3 import blake3

    return blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
