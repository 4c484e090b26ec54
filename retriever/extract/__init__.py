"""One extractor a file format: bytes in, text with its structure out."""

from retriever.extract.extract import EXTRACT_VERSION, extract, is_told_by_name, media_type_of

__all__ = ["EXTRACT_VERSION", "extract", "is_told_by_name", "media_type_of"]
