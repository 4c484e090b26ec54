"""Turns text into unit vectors. Knows nothing of documents, indexes or the language model.

`Embedder` runs a sentence-transformers model; `hash_embedder.py` holds one for tests that needs no model.
A passage longer than the model's window is embedded window by window, so a passage may own several vectors.
"""

import json
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retriever.document import digest
from retriever.errors import EmbedderError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Embedder", "TextEmbedder", "Vectors"]

Vectors = NDArray[np.float32]

# What decides a model's vectors; paths and readme files do not.
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
MODEL_FILES = (
    "config.json",
    "tokenizer.json",
    "vocab.txt",
    "sentence_bert_config.json",
    "modules.json",
    "*/config.json",
)


class TextEmbedder(Protocol):
    """What the library needs of an embedder; documents and queries may be embedded differently."""

    @property
    def name(self) -> str:
        """Return a name for people."""

    @property
    def fingerprint(self) -> str:
        """Return what vectors depend on; two embedders with one fingerprint give the same vectors."""

    @property
    def dimension(self) -> int:
        """Return the length of a vector."""

    def embed_documents(self, texts: Sequence[str], headers: Sequence[str] | None = None) -> list[Vectors]:
        """Return float32 unit vectors [windows, dimension] of each text; its header goes before every window."""

    def embed_query(self, text: str) -> Vectors:
        """Return the float32 unit vector [dimension] of a question."""

    def num_tokens(self, texts: Sequence[str]) -> int:
        """Count the tokens of texts as the embedder cuts them."""


class Embedder:
    """A sentence-transformers model from a local folder or the Hugging Face hub, loaded when first needed.

    Args:
        model: a folder, or a hub id (found in the local cache; downloaded only with `download`).
        device: torch device; None chooses CUDA when there is one.
        batch_size: windows per forward pass.
        window_overlap: tokens that neighbouring windows of a long passage share.
        download: allow the network for a hub id that is not in the local cache.
        progress: called with (windows done, windows in all) after each forward pass over documents.

    Raises:
        EmbedderError: on first use, when the model is missing or cannot be loaded.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str | None = None,
        batch_size: int = 16,
        window_overlap: int = 32,
        download: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._given = str(model)
        self._device = device
        self._batch_size = batch_size
        self._window_overlap = window_overlap
        self._download = download
        self._progress = progress
        self._loading = threading.Lock()
        self._tokenizing = threading.Lock()  # a fast tokenizer must not change its padding under another thread
        self._loaded: SentenceTransformer | None = None

    @property
    def name(self) -> str:
        """Return the last part of the model's path or hub id."""
        return Path(self._given).name

    @cached_property
    def folder(self) -> Path:
        """Return the folder that holds the model's files."""
        path = Path(self._given).expanduser()
        if path.is_dir():
            return path
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(self._given, local_files_only=not self._download))
        except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
            raise EmbedderError(
                f"embedder {self._given!r} is neither a folder nor a model in the local hub cache; "
                "pull it first, or give the folder that holds its modules.json"
            ) from error

    @cached_property
    def fingerprint(self) -> str:
        """Return weights hash, window and normalisation; the model itself is not loaded for it."""
        weights = [path for pattern in WEIGHT_FILES for path in sorted(self.folder.glob(pattern))]
        if not weights:
            raise EmbedderError(f"{self.folder} holds no weights ({', '.join(WEIGHT_FILES)}); pull the embedder again")
        configs = [path for pattern in MODEL_FILES for path in sorted(self.folder.glob(pattern))]
        fields = [item for path in configs for item in (path.name.encode(), path.read_bytes())]
        fields += [_file_hash(path) for path in weights]
        return f"sentence-transformers/{digest(*fields).hex()[:24]}/overlap-{self._window_overlap}/normalised"

    @property
    def dimension(self) -> int:
        """Return the length of a vector."""
        dimension = self._model.get_embedding_dimension()
        if dimension is None:
            raise EmbedderError(f"{self._given!r} does not say its dimension; choose another embedder")
        return int(dimension)

    @property
    def _model(self) -> "SentenceTransformer":
        with self._loading:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    def _load(self) -> "SentenceTransformer":
        _check_modules(self.folder)
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as hub_logging

        hub_logging.disable_progress_bar()  # type: ignore[no-untyped-call] # loading is quicker than reading its bar
        try:
            model = SentenceTransformer(str(self.folder), device=self._device, local_files_only=True)
        except Exception as error:
            raise EmbedderError(
                f"embedder {self._given!r} cannot be loaded ({type(error).__name__}: {error}); "
                "pull it again, or check that the folder is a sentence-transformers model"
            ) from error
        return model.eval()

    def embed_documents(self, texts: Sequence[str], headers: Sequence[str] | None = None) -> list[Vectors]:
        """Return unit vectors [windows, dimension] of each text; its header goes before every window."""
        if not texts:
            return []
        prompt = self._prompt("document")
        heads = [f"{prompt}{header}" for header in headers] if headers else [prompt] * len(texts)
        windows = self._windows(texts, heads)
        owners = [number for number, parts in enumerate(windows) for _ in parts]
        vectors = self._embed([part for parts in windows for part in parts])
        counts = np.bincount(owners, minlength=len(texts))
        return np.split(vectors, np.cumsum(counts)[:-1])

    def embed_query(self, text: str) -> Vectors:
        """Return the unit vector [dimension] of a question; what exceeds the model's window is cut off."""
        vector: Vectors = self._embed([self._prompt("query") + text], quiet=True)[0]
        return vector

    def num_tokens(self, texts: Sequence[str]) -> int:
        """Count the tokens of texts, without those that frame each."""
        options = {"add_special_tokens": False, "truncation": False, "padding": False, "verbose": False}
        with self._tokenizing:
            return sum(map(len, self._model.tokenizer(list(texts), **options)["input_ids"]))

    def _prompt(self, role: str) -> str:
        return self._model.prompts.get(role) or ""

    def _windows(self, texts: Sequence[str], heads: Sequence[str]) -> list[list[str]]:
        """Return the parts of each text, head first, that fit the model's window."""
        model = self._model
        limit = model.max_seq_length or 512
        with self._tokenizing:
            options = {"add_special_tokens": False, "truncation": False, "padding": False, "verbose": False}
            offsets = model.tokenizer(list(texts), return_offsets_mapping=True, **options)["offset_mapping"]
            head_ids = model.tokenizer(list(heads), **options)["input_ids"]
            room = limit - model.tokenizer.num_special_tokens_to_add()
        parts = []
        for text, head, spans, ids in zip(texts, heads, offsets, head_ids, strict=True):
            kept_head = head if len(ids) <= room // 4 else ""  # a header must not crowd the text out
            size = room - (len(ids) if kept_head else 0)
            step = max(1, size - self._window_overlap)
            starts = range(0, max(1, len(spans) - self._window_overlap), step) if len(spans) > size else range(1)
            windows = [spans[start : start + size] for start in starts]
            parts.append([kept_head + (text[w[0][0] : w[-1][1]] if w else text) for w in windows])
        return parts

    def _embed(self, texts: Sequence[str], *, quiet: bool = False) -> Vectors:
        """Return unit vectors [texts, dimension]; similar lengths share a forward pass, so little is padding."""
        import torch

        model = self._model
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        vectors = np.empty((len(texts), self.dimension), np.float32)
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            with torch.inference_mode():
                out = model(self._features([texts[index] for index in batch]))["sentence_embedding"]
                vectors[batch] = torch.nn.functional.normalize(out.float(), dim=-1).cpu().numpy()
            if self._progress and not quiet:
                self._progress(start + len(batch), len(order))
        return vectors

    def _features(self, texts: list[str]) -> dict[str, Any]:
        model = self._model
        with self._tokenizing:
            encoded = model.tokenizer(
                texts, padding=True, truncation=True, max_length=model.max_seq_length, return_tensors="pt"
            )
        return {name: tensor.to(model.device) for name, tensor in encoded.items()}


def _file_hash(path: Path) -> bytes:
    import blake3

    return blake3.blake3(max_threads=blake3.blake3.AUTO).update_mmap(path).digest()


def _check_modules(folder: Path) -> None:
    """Fail early on a folder that sentence-transformers would complete with guesses or from the network."""
    listing = folder / "modules.json"
    if not listing.is_file():
        raise EmbedderError(f"{folder} has no modules.json; give the folder of a sentence-transformers model")
    for module in json.loads(listing.read_text("utf-8")):
        stateless = module["type"].rsplit(".", 1)[-1] == "Normalize"
        if module["path"] and not stateless and not (folder / module["path"]).is_dir():
            raise EmbedderError(f"{folder} lacks its module folder {module['path']!r}; pull the embedder again")
