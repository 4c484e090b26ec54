"""What the retriever raises.

RetrieverError
├── SourceError                    a path or source that cannot be read
│   ├── ExtractError               a file without usable text: binary, empty, encrypted, broken
│   └── MetadataError              metadata that cannot be kept
├── CollectionError                a collection that cannot be used as asked
│   ├── UnknownCollectionError     no collection of this name
│   ├── CollectionExistsError      a collection of this name is already there
│   ├── EmbedderMismatchError      the collection was made with another embedder
│   └── SettingsMismatchError      the collection was made with other settings
├── UnknownDocumentError           no document of this id in the collection
├── QueryError                     a question or a number of hits that cannot be searched with
│   └── FilterError                a condition on metadata that is none
├── SettingsError                  a setting that cannot work
├── EmbedderError                  an embedder that cannot be loaded or used
├── PassageEncoderError            a passage encoder that breaks its contract
└── StoreError                     the database cannot be opened or is damaged
    ├── DiskFullError              there is no room for what was to be written
    ├── DamagedStoreError          the database is not what was written
    └── StoreVersionError          the database was written by a newer version
"""

from collections.abc import Sequence

__all__ = [
    "CollectionError",
    "CollectionExistsError",
    "DamagedStoreError",
    "DiskFullError",
    "EmbedderError",
    "EmbedderMismatchError",
    "ExtractError",
    "FilterError",
    "MetadataError",
    "PassageEncoderError",
    "QueryError",
    "RetrieverError",
    "SettingsError",
    "SettingsMismatchError",
    "SourceError",
    "StoreError",
    "StoreVersionError",
    "UnknownCollectionError",
    "UnknownDocumentError",
]


class RetrieverError(Exception):
    """Base of every error that the retriever raises for a caller's mistake."""


class SourceError(RetrieverError):
    """Report a path or source that cannot be read."""


class ExtractError(SourceError):
    """Report a file without usable text: binary, empty, encrypted or broken."""


class CollectionError(RetrieverError):
    """Report a collection that cannot be used as asked."""


class UnknownCollectionError(CollectionError):
    """Report that no collection has this name.

    Args:
        name: the one that was asked for.
        known: names of those that there are.
        is_gone: it was there when the work began.
    """

    def __init__(self, name: str, known: Sequence[str] = (), *, is_gone: bool = False) -> None:
        what_to_do = f"choose one of: {', '.join(known)}" if known else "ingest documents into it first"
        gone = f"collection {name!r} was deleted meanwhile; ingest documents again"
        super().__init__(gone if is_gone else f"there is no collection {name!r}; {what_to_do}")
        self.name = name
        self.known = tuple(known)


class CollectionExistsError(CollectionError):
    """Report that a collection of this name is already there."""


class EmbedderMismatchError(CollectionError):
    """Report that the collection was made with another embedder."""


class SettingsMismatchError(CollectionError):
    """Report that the collection was made with other settings."""


class UnknownDocumentError(RetrieverError):
    """Report that the collection has no document of this id."""


class QueryError(RetrieverError):
    """Report a question or a number of hits that cannot be searched with."""


class FilterError(QueryError):
    """Report a condition on metadata that is none."""


class MetadataError(SourceError):
    """Report metadata that cannot be kept."""


class SettingsError(RetrieverError):
    """Report a setting that cannot work."""


class EmbedderError(RetrieverError):
    """Report an embedder that cannot be loaded or used."""


class PassageEncoderError(RetrieverError):
    """Report a passage encoder that breaks its contract."""


class StoreError(RetrieverError):
    """Report a database that cannot be opened or is damaged."""


class DiskFullError(StoreError):
    """Report a disk without room for what was to be written; nothing was changed."""


class DamagedStoreError(StoreError):
    """Report a database whose content is not what was written."""


class StoreVersionError(StoreError):
    """Report a database that was written by a newer version."""
