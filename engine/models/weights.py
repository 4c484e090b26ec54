"""Reading of a model folder's safetensors files, memory-mapped. Never pickle."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import ModelFileError

__all__ = ["WeightFiles"]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class WeightFiles:
    """The tensors of one model folder, in one file or in shards with an index.

    Every tensor that is taken is checked by name, shape and kind; `check_all_taken` reports what nobody asked for.
    """

    def __init__(self, folder: str | Path, *, dtype: torch.dtype | None, device: str | torch.device = "cpu") -> None:
        """Open the folder; tensors are converted to `dtype` (None: left as they are) on `device` when taken.

        Raises:
            ModelFileError: no safetensors file is there, one that the index names is missing, or one is damaged.
        """
        self._folder = Path(folder)
        self._dtype = dtype
        self._device = torch.device(device)
        self._files: dict[str, Any] = {}
        self._taken: set[str] = set()
        for path in _weight_paths(self._folder):
            with _naming(path):
                handle = safe_open(path, framework="pt", device="cpu")
                self._files.update(dict.fromkeys(handle.keys(), handle))  # type: ignore[no-untyped-call]

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def take(self, name: str, *shape: int) -> Tensor:
        """Return a tensor of this name and shape.

        Raises:
            ModelFileError: it is missing, has another shape, or holds no floating-point numbers.
        """
        if name not in self._files:
            raise ModelFileError(f"{self._folder} lacks the tensor {name!r}; pull the model again")
        with _naming(self._folder):
            tensor: Tensor = self._files[name].get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise ModelFileError(
                f"tensor {name!r} of {self._folder} has the shape {list(tensor.shape)}, config.json asks for "
                f"{list(shape)}; weights and configuration are not of the same model"
            )
        if not tensor.is_floating_point():
            raise ModelFileError(
                f"tensor {name!r} of {self._folder} holds {tensor.dtype}; pull weights in bf16, float16 or float32"
            )
        self._taken.add(name)
        return tensor.to(device=self._device, dtype=self._dtype)

    def take_stacked(self, names: list[str], rows: list[int], *columns: int) -> Tensor:
        """Return tensors [rows_i, *columns] as one [sum(rows), *columns], so that one product serves them all."""
        return torch.cat([self.take(name, count, *columns) for name, count in zip(names, rows, strict=True)])

    def check_all_taken(self, ignored: tuple[str, ...] = ()) -> None:
        """Raise `ModelFileError` if a tensor was not taken, unless its name ends in one of `ignored`."""
        extra = sorted(name for name in self._files.keys() - self._taken if not name.endswith(ignored))
        if extra:
            raise ModelFileError(
                f"{self._folder} has {len(extra)} tensors that its architecture does not use, for instance "
                f"{extra[0]!r}; the architecture in config.json is not that of the weights"
            )


def _weight_paths(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder."""
    index = folder / INDEX_FILE
    if index.is_file():
        paths = [folder / name for name in sorted(set(_read_index(index).values()))]
    else:
        paths = [folder / SINGLE_FILE]
    for path in paths:
        if not path.is_file():
            raise ModelFileError(
                f"{path} is missing; weights must be safetensors (convert other formats), and a pull must be complete"
            )
    return paths


def _read_index(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): Path(file).name for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path} is no safetensors index ({error!r}); pull the model again") from error


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what safetensors raises into an error that names the file."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path} is damaged or cut short ({error}); pull the model again") from error
