"""Runs `serve` in a process of its own, with an embedder that needs no model: DATA_DIR MODEL PORT."""

import sys
from functools import partial
from pathlib import Path

from server_helpers import make_config

from rag.errors import RagError
from rag.server import app
from rag.service import Service
from retriever.hash_embedder import HashEmbedder

if __name__ == "__main__":
    data_dir, model, port = sys.argv[1:]
    app.Service = partial(Service, embedder=HashEmbedder())
    config = make_config(Path(data_dir), Path(model), server={"shutdown_seconds": 20})
    try:
        app.serve(config.model_copy(update={"port": int(port)}))
    except RagError as error:
        sys.exit(f"error: {error}")
