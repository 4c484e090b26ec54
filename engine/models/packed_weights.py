"""A model's weights packed for the C++ kernels: packed once, kept in the user's cache, shared by processes."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import platformdirs
from blake3 import blake3
from filelock import FileLock
from torch import Tensor

from engine.models.decoder import Decoder
from engine.models.layers import Linear, RMSNorm
from kernels.cpu_library import CpuLibrary
from kernels.cpu_linear import PackedLinear, WeightFormat, WeightMemory
from kernels.cpu_weights import LAYOUT_REVISION, WeightSet, map_weights, write_weights

__all__ = ["default_weights_dir", "load_weights", "pack_weights"]

logger = logging.getLogger(__name__)

KEY_SUFFIXES = {".safetensors", ".json"}  # of the files that packed weights follow from
SMALLEST_SHARED = 32 << 20  # bytes of safetensors below which a file of their own is not worth it


def load_weights(
    folder: Path, weight_format: WeightFormat, library: CpuLibrary, source: Callable[[], Decoder]
) -> WeightSet:
    """Return a model's packed weights: mapped from the file that is kept of them, which is made where there is none.

    Where no file can be kept they are packed into private memory.

    Args:
        folder: of the model.
        weight_format: of its layers.
        library: the kernels that they are for.
        source: loads the model; called only to pack it.
    """
    files = sorted(path for path in folder.resolve().iterdir() if path.suffix in KEY_SUFFIXES and path.is_file())
    stats = [path.stat() for path in files]
    if sum(stat.st_size for stat in stats) < SMALLEST_SHARED:
        return pack_weights(source(), weight_format, library)
    facts = {
        "layout": LAYOUT_REVISION,
        "kernels": library.variant,
        "files": [[path.name, stat.st_size, stat.st_mtime_ns] for path, stat in zip(files, stats, strict=True)],
    }
    model = f"{folder.resolve().name}-{_short_hash(str(folder.resolve()))}"
    path = default_weights_dir() / f"{model}-{_short_hash(json.dumps(facts))}-{weight_format}.weights"
    key = json.dumps({"folder": str(folder.resolve()), "format": weight_format, **facts})

    def pack() -> WeightSet:
        return pack_weights(source(), weight_format, library)

    try:
        return map_weights(path, key, library) or _make(path, key, library, pack)
    except (OSError, NotImplementedError) as error:  # the latter of file systems without locks
        logger.warning("packed weights cannot be shared through %s (%s); this process has its own", path, error)
        return pack()


def pack_weights(source: Decoder, weight_format: WeightFormat, library: CpuLibrary) -> WeightSet:
    """Pack a model into private memory, by the names of `CpuDecoder`."""
    memory = WeightMemory()
    linears: dict[str, PackedLinear] = {}
    vectors: dict[str, Tensor] = {}

    def pack(name: str, linear: Linear, packed_format: WeightFormat = weight_format, *, silu_mul: bool = False) -> None:
        linears[name] = PackedLinear.pack(
            linear.weight, linear.bias, packed_format, silu_mul=silu_mul, library=library, memory=memory
        )

    def keep(name: str, norm: RMSNorm | None) -> None:
        if norm is not None:
            vectors[name] = norm.weight.float()

    for index, layer in enumerate(source.layers):
        prefix = f"layers.{index}."
        pack(f"{prefix}qkv", layer.qkv)
        pack(f"{prefix}output", layer.output)
        pack(f"{prefix}gate_up", layer.gate_up, silu_mul=True)
        pack(f"{prefix}down", layer.down)
        keep(f"{prefix}input_norm", layer.input_norm)
        keep(f"{prefix}mlp_norm", layer.mlp_norm)
        keep(f"{prefix}q_norm", layer.q_norm)
        keep(f"{prefix}k_norm", layer.k_norm)
    # few rows reach the head, so nothing is gained by rounding what they are multiplied with
    pack("head", source.head, "int8" if weight_format == "int8_dynamic" else weight_format)
    keep("norm", source.norm)
    return WeightSet(linears, vectors)


def default_weights_dir() -> Path:
    """Return where packed weights are kept: the user's cache folder."""
    return Path(platformdirs.user_cache_dir("preread")) / "weights"


def _make(path: Path, key: str, library: CpuLibrary, pack: Callable[[], WeightSet]) -> WeightSet:
    """Write the file and map it; where several processes start at once, one packs and the others wait for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / "lock"):
        found = map_weights(path, key, library)
        if found is not None:
            return found
        _remove_outdated(path)
        packed = pack()
        write_weights(path, key, packed)
        return map_weights(path, key, library) or packed


def _remove_outdated(path: Path) -> None:
    """Remove what was packed of this model when it was another, and what killed processes left half-written."""
    model, identity, _ = path.stem.rsplit("-", 2)
    for other in path.parent.glob(f"{model}-*"):
        is_same = other.name.startswith(f"{model}-{identity}-") and other.suffix == path.suffix
        if not is_same:
            other.unlink(missing_ok=True)


def _short_hash(text: str) -> str:
    return blake3(text.encode()).hexdigest(length=8)
