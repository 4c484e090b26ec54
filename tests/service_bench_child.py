"""The service benchmark's server with an embedder that needs no model."""

import json
import sys

from rag.bench.service_child import serve_and_inspect
from rag.config import RagConfig
from retriever.hash_embedder import HashEmbedder

if __name__ == "__main__":
    inspection = serve_and_inspect(RagConfig(**json.loads(sys.argv[1])), embedder=HashEmbedder())
    sys.stdout.write(inspection.model_dump_json())
