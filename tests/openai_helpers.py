"""What the tests of OpenAI's routes share: a server over a tiny model, and the real client."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import openai
from rag_helpers import make_chat_model
from server_helpers import DOCUMENTS, Running, make_config, running

from rag.service import Service
from retriever.hash_embedder import HashEmbedder

BARE, DOCS, EMBEDDER = "tiny", "rag/docs", "embedder"


@dataclass(frozen=True)
class Api:
    """A server and a client of it."""

    running: Running
    client: openai.OpenAI

    def chat(self, *messages: str, model: str = DOCS, **fields):
        """Send a conversation that begins with the user's message."""
        roles = ("user", "assistant")
        said = [{"role": roles[number % 2], "content": text} for number, text in enumerate(messages)]
        return self.client.chat.completions.create(model=model, messages=said, **fields)


@contextmanager
def openai_api(folder: Path, **engine: object) -> Iterator[Api]:
    """Serve two documents as the collection `docs`."""
    model = make_chat_model(folder / BARE)
    (folder / EMBEDDER).symlink_to(model)  # a folder that is there; what embeds is another
    config = make_config(folder / "data", model, **engine).model_copy(update={"embedder": str(folder / EMBEDDER)})
    with Service(config, embedder=HashEmbedder()) as service, running(service) as api, connect(api) as client:
        assert api.add(*DOCUMENTS).status_code == 200
        yield Api(api, client)


@contextmanager
def connect(api: Running, key: str = "none") -> Iterator[openai.OpenAI]:
    """Open a client."""
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key=key, max_retries=0, timeout=60) as client:
        yield client
