"""What stored KV depends on. KV is found again only under the identity and the tokens for which it was computed.

Knows no tensors.
"""

import json
import logging
import os
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from engine import profile
from engine.errors import ModelFileError

if TYPE_CHECKING:
    from engine.models.config import ModelConfig

__all__ = ["FORMAT_VERSION", "LAYOUT_VERSION", "KVIdentity", "pack_tokens"]

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2  # of the records and extents of the KV store
LAYOUT_VERSION = 1  # rises with the order of bytes in a block: [layer, K and V, head, slot, dimension]
NUMERICS_REVISION = 1  # rises with a change of kernels or models that alters the KV they compute


@dataclass(frozen=True, slots=True, kw_only=True)
class KVIdentity:
    """Everything but namespace and tokens that decides which bytes the KV of a passage has.

    Attributes:
        weights: blake3 of the model's weight files, in hex.
        model: the model's configuration with rope and windows, as JSON with sorted keys.
        compute_mode: the numbers in which KV is computed, for instance "float16" or "int8".
        kv_dtype: the numbers in which KV is kept, for instance "float16" or "int8".
        block_size: KV slots a block.
        digest: 32 bytes that stand for all of these and for the format, the layout and the numerics.
    """

    weights: str
    model: str
    compute_mode: str
    kv_dtype: str
    block_size: int
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        versions = f"{FORMAT_VERSION}.{LAYOUT_VERSION}.{NUMERICS_REVISION}"
        facts = (versions, self.weights, self.model, self.compute_mode, self.kv_dtype, str(self.block_size))
        object.__setattr__(self, "digest", _hash_fields(*(fact.encode() for fact in facts)))

    @classmethod
    def of(
        cls, folder: str | Path, model_config: "ModelConfig", *, dtype: str, kv_dtype: str, block_size: int
    ) -> "KVIdentity":
        """Identify the KV that a model computes.

        Args:
            folder: the model's folder; its weights are read once and then remembered by path, size and times.
            model_config: as it was read from that folder.
            dtype: the compute mode, resolved (never "auto").
            kv_dtype: element type of the KV pool.
            block_size: KV slots a block.

        Raises:
            ModelFileError: the folder has no safetensors files, or they cannot be read.
        """
        return cls(
            weights=_hash_weights(Path(folder)),
            model=json.dumps(asdict(model_config), sort_keys=True),
            compute_mode=dtype,
            kv_dtype=kv_dtype,
            block_size=block_size,
        )

    def key(self, namespace: str, template: Sequence[int], passage: Sequence[int]) -> bytes:
        """Return the 32 bytes under which the KV of a passage after a template is stored; () is the template itself."""
        return _hash_fields(self.digest, namespace.encode(), pack_tokens(template), pack_tokens(passage))


def pack_tokens(tokens: Sequence[int]) -> bytes:
    """Return token ids as they are hashed and stored: four bytes each, the lowest first."""
    return struct.pack(f"<{len(tokens)}I", *tokens)


def _hash_fields(*fields: bytes) -> bytes:
    """Hash fields, each after its length, so that no two lists of fields read the same."""
    return blake3(b"".join(len(content).to_bytes(8, "little") + content for content in fields)).digest()


def _hash_weights(folder: Path) -> str:
    """Return the hash of a folder's safetensors files in the order of their names, from memory where it is known."""
    paths = sorted(folder.resolve().glob("*.safetensors"))
    if not paths:
        raise ModelFileError(f"{folder} has no safetensors files; pull the model again")
    try:
        found = [_stamp(path) for path in paths]
        known = _recall(paths[0].parent, found)
        if known is not None:
            return known
        digests = [_hash_file(path) for path in paths]
        unchanged = found == [_stamp(path) for path in paths]
    except OSError as error:
        raise ModelFileError(f"the weights in {folder} cannot be read ({error}); pull the model again") from error
    weights = _hash_fields(*digests).hex()
    if unchanged:
        _remember(paths[0].parent, found, weights)
    return weights


def _hash_file(path: Path) -> bytes:
    return blake3(max_threads=blake3.AUTO).update_mmap(path).digest()


def _stamp(path: Path) -> list[int | str]:
    """Tell what changes when a file is written."""
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _memory(folder: Path) -> Path:
    name = blake3(os.fsencode(folder)).hexdigest(length=16)
    return profile.default_profiles_dir() / f"weights-{name}.json"


def _recall(folder: Path, stamps: list[list[int | str]]) -> str | None:
    """Return the hash that was remembered for files with these stamps."""
    try:
        memory = json.loads(_memory(folder).read_text(encoding="utf-8"))
        return str(memory["weights"]) if memory["files"] == stamps else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(folder: Path, stamps: list[list[int | str]], weights: str) -> None:
    """Keep a hash; a disk that refuses costs only reading the weights again."""
    path = _memory(folder)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"files": stamps, "weights": weights}), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        logger.warning("the hash of the weights in %s cannot be kept (%s)", folder, error)
