"""What was measured once about a model on this machine. Kept on disk; never measured on the way to a first answer."""

import json
import logging
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import platformdirs
from blake3 import blake3

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["Profile", "default_profiles_dir", "load_profile", "profile_key", "save_profile"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

FORMAT = 2  # rises with what the kernels compute, too: other kernels, other crossovers


@dataclass(frozen=True, slots=True)
class Profile:
    """Measured crossovers.

    Attributes:
        lean_rows: up to how many rows a step is faster with 8-bit weights.
    """

    lean_rows: int

    def __post_init__(self) -> None:
        if not isinstance(self.lean_rows, int):
            raise TypeError(f"lean_rows is {self.lean_rows!r}")


def profile_key(**facts: Any) -> str:
    """Name a profile after this processor and after everything else that the measurement depends on."""
    described = json.dumps({"format": FORMAT, "processor": _processor(), **facts}, sort_keys=True)
    return blake3(described.encode()).hexdigest(length=16)


def load_profile(key: str, make: Callable[..., T]) -> T | None:
    """Return the profile of this key, or None when it has not been measured or cannot be read.

    Args:
        key: see `profile_key`.
        make: makes it from the fields that were kept; raises TypeError or ValueError where they are none.
    """
    path = _path(key)
    try:
        return make(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        logger.warning("the profile %s cannot be used (%s); it is measured again", path, error)
        return None


def save_profile(key: str, profile: "DataclassInstance") -> None:
    """Keep the fields of a profile; a disk that refuses costs only a later measurement."""
    path = _path(key)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(asdict(profile)), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        logger.warning("the profile %s cannot be kept (%s); it is measured again next time", path, error)


def default_profiles_dir() -> Path:
    """Return where profiles are kept: the user's cache folder."""
    return Path(platformdirs.user_cache_dir("preread")) / "profiles"


def _path(key: str) -> Path:
    return default_profiles_dir() / f"{key}.json"


def _processor() -> str:
    """The processor's model name and how many of it this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name} x {count}"
