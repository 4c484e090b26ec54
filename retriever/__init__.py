"""Documents, passages and vectors: extraction, splitting, embedding, storage and search.

`Library` is the front door. Names are imported when first used, so that importing the package is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retriever.config import CollectionSettings, RetrieverConfig, SplitSettings
    from retriever.document import (
        BytesSource,
        Document,
        FileSource,
        Hit,
        Passage,
        PassageDraft,
        PassageEncoder,
        Source,
        TextSource,
    )
    from retriever.embedder import Embedder, TextEmbedder
    from retriever.found_files import sources_from_paths
    from retriever.hash_embedder import HashEmbedder
    from retriever.ingest import IngestEvent, IngestReport, Stage
    from retriever.records import Collection
    from retriever.retriever import Library

__all__ = [
    "BytesSource",
    "Collection",
    "CollectionSettings",
    "Document",
    "Embedder",
    "FileSource",
    "HashEmbedder",
    "Hit",
    "IngestEvent",
    "IngestReport",
    "Library",
    "Passage",
    "PassageDraft",
    "PassageEncoder",
    "RetrieverConfig",
    "Source",
    "SplitSettings",
    "Stage",
    "TextEmbedder",
    "TextSource",
    "sources_from_paths",
]

_MODULES = {
    "config": ("CollectionSettings", "RetrieverConfig", "SplitSettings"),
    "document": (
        *("BytesSource", "Document", "FileSource", "Hit", "Passage", "PassageDraft", "PassageEncoder", "Source"),
        "TextSource",
    ),
    "embedder": ("Embedder", "TextEmbedder"),
    "found_files": ("sources_from_paths",),
    "hash_embedder": ("HashEmbedder",),
    "ingest": ("IngestEvent", "IngestReport", "Stage"),
    "records": ("Collection",),
    "retriever": ("Library",),
}


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first used."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"retriever.{module}"), name)
    raise AttributeError(f"module 'retriever' has no attribute {name!r}")
