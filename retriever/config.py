"""Settings: small, frozen, checked when they are made."""

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from retriever.errors import SettingsError
from retriever.extract.sandbox import ExtractLimits

__all__ = ["CollectionSettings", "RetrieverConfig", "SplitSettings"]

MIN_EXTRACT_BYTES = 2**24
MIN_PASSAGE_TOKENS = 16  # below this a single character of an unusual script may not fit


@dataclass(frozen=True, slots=True)
class SplitSettings:
    """How documents of a collection are cut into passages.

    Attributes:
        passage_tokens: budget of one passage, in tokens of the passage encoder; never exceeded by its text. Label and
            heading come on top.
        overlap_tokens: tokens at the end of a passage that the next one of the same section repeats, at most.
    """

    passage_tokens: int = 256
    overlap_tokens: int = 0

    def __post_init__(self) -> None:
        if self.passage_tokens < MIN_PASSAGE_TOKENS:
            raise SettingsError(f"passage_tokens is {self.passage_tokens}; set it to {MIN_PASSAGE_TOKENS} or more")
        if not 0 <= self.overlap_tokens <= self.passage_tokens // 2:
            raise SettingsError(
                f"overlap_tokens is {self.overlap_tokens}; set it between 0 and half of "
                f"passage_tokens ({self.passage_tokens // 2})"
            )


@dataclass(frozen=True, slots=True)
class CollectionSettings:
    """What a collection remembers and never changes, beside its embedder.

    Attributes:
        split: how its documents are cut into passages.
        index_factory: FAISS factory string ("Flat", "IVF256,Flat", "HNSW32", ...); ids are mapped by the library.
        index_parameters: FAISS run-time parameters ("nprobe=32", "efSearch=128"); empty means sensible values.
    """

    split: SplitSettings = field(default_factory=SplitSettings)
    index_factory: str = "Flat"
    index_parameters: str = ""

    def to_json(self) -> str:
        """Return the settings as canonical JSON, so that equal settings are equal strings."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read settings that `to_json` wrote.

        Raises:
            SettingsError: a field is unknown, so the settings come from another version.
        """
        values: dict[str, Any] = json.loads(text)
        unknown = values.keys() - {item.name for item in fields(cls)}
        if unknown:
            raise SettingsError(
                f"unknown collection settings {sorted(unknown)}; upgrade to the version that wrote them"
            )
        return cls(**{**values, "split": SplitSettings(**values["split"])})


@dataclass(frozen=True, slots=True)
class RetrieverConfig:
    """Settings of one opened library.

    Attributes:
        collection: settings of collections that are created without their own.
        batch_passages: about how many passages are embedded and committed together; no batch cuts a document.
        max_document_bytes: larger files are skipped and reported; so are those with more text.
        extract_seconds: what takes longer to read is skipped and reported.
        extract_memory_bytes: the same for what takes more memory.
        index_device: "auto" (a CUDA device when `faiss-gpu` sees one), "cpu" or "gpu".
        rebuild_dead_fraction: share of deleted vectors at which the FAISS index is rebuilt.
    """

    collection: CollectionSettings = field(default_factory=CollectionSettings)
    batch_passages: int = 128
    max_document_bytes: int = 64 * 2**20
    extract_seconds: float = 60.0
    extract_memory_bytes: int = 2**30
    index_device: str = "auto"
    rebuild_dead_fraction: float = 0.25

    def __post_init__(self) -> None:
        for name in ("batch_passages", "max_document_bytes", "extract_seconds"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}; set it to 1 or more")
        if self.extract_memory_bytes < MIN_EXTRACT_BYTES:
            raise SettingsError(
                f"extract_memory_bytes is {self.extract_memory_bytes}; set it to {MIN_EXTRACT_BYTES} or more"
            )
        if self.index_device not in ("auto", "cpu", "gpu"):
            raise SettingsError(f'index_device is {self.index_device!r}; choose "auto", "cpu" or "gpu"')
        if not 0 < self.rebuild_dead_fraction <= 1:
            raise SettingsError(f"rebuild_dead_fraction is {self.rebuild_dead_fraction}; set it above 0 and up to 1")

    @property
    def extract(self) -> ExtractLimits:
        """What reading one document may take."""
        return ExtractLimits(self.extract_seconds, self.extract_memory_bytes, self.max_document_bytes)
