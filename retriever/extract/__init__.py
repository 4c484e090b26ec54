"""One extractor a file format."""
