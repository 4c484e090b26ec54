"""What the engine benchmark is asked to measure."""

from dataclasses import dataclass
from pathlib import Path

from rag.bench.checks import check_at_least_one
from rag.bench.engine_cases import GROUPS, TAIL
from rag.bench.peers.opening import check_peer
from rag.errors import InvalidRequestError

__all__ = ["PARTS", "EngineBenchConfig"]

EXTRAS = ("overhead", "search", "serve")
PARTS = (*GROUPS, *EXTRAS)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBenchConfig:
    """What to measure.

    Attributes:
        only: parts of `PARTS`; none means all of them.
        peers: names of adapters, and URLs.
        peer_pythons: name of a peer -> the Python that has it; "" is for every other peer.
        gguf: for peers that read one; None is the one that the model was made of.
        dtype: compute mode; None is the configured one.
        weights: of rows whose KV is never published; None is the configured one.
        batches: sequences of the decode cases; none means those of the report.
        contexts: tokens before each of them; none means those of the report.
        repeats: of every case.
        tokens: decode steps timed a repeat.
        kv_gib: memory for KV; None is what the cases need, up to a third of the machine's.
        seed: of token ids and orders.

    Raises:
        InvalidRequestError: a value that cannot work.
    """

    only: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    peer_pythons: tuple[tuple[str, Path], ...] = ()
    gguf: Path | None = None
    dtype: str | None = None
    weights: str | None = None
    batches: tuple[int, ...] = ()
    contexts: tuple[int, ...] = ()
    repeats: int = 5
    tokens: int = 16
    kv_gib: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least_one(self, ("repeats", "tokens"))
        for name, least in (("batches", 1), ("contexts", TAIL + 1)):
            if any(value < least for value in getattr(self, name)):
                raise InvalidRequestError(f"{name} has {min(getattr(self, name))}; each must be at least {least}")
        if self.kv_gib is not None and not self.kv_gib > 0:
            raise InvalidRequestError(f"kv-gib is {self.kv_gib}; it must be above 0")
        for part in self.only:
            if part not in PARTS:
                raise InvalidRequestError(f"only is {part!r}; choose from: {', '.join(PARTS)}")
        for peer in self.peers:
            check_peer(peer)
        if self.gguf is not None and not self.gguf.is_file():
            raise InvalidRequestError(f"gguf is {str(self.gguf)!r}, which is no file")

    def wants(self, part: str) -> bool:
        """Tell whether a part is measured."""
        return not self.only or part in self.only
