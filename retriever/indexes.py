"""Keeps one FAISS index a collection in step with the store, in memory and on disk.

The store decides what lives. An index file that is missing, damaged, of another kind or behind the store is made
good from the stored vectors, so that a crash between the two never matters.
"""

import logging
import threading
from pathlib import Path

import numpy as np

from retriever.config import RetrieverConfig
from retriever.embedder import Vectors
from retriever.index_spec import IndexSpec
from retriever.records import Collection, Reader
from retriever.store import Store
from retriever.vector_index import Ids, VectorIndex, overwrite

__all__ = ["Indexes"]

logger = logging.getLogger(__name__)

MIN_DEAD = 64  # fewer deleted vectors are never worth a rebuild
SAVE_FRACTION = 0.1  # share of vectors not on disk yet at which the file is written; the rest is written on close


class Indexes:
    """The indexes of a library.

    Args:
        folder: where index files are kept.
        store: what they are derived from.
        config: device and rebuild settings.
    """

    def __init__(self, folder: Path, store: Store, config: RetrieverConfig) -> None:
        self._folder = folder
        self._store = store
        self._config = config
        self._lock = threading.RLock()  # taken after the store's write lock, never before
        self._loaded: dict[int, VectorIndex] = {}
        self._unsaved: dict[int, int] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._remove_orphans()

    def get(self, collection: Collection) -> VectorIndex:
        """Return the index of a collection, holding at least every vector that lives in its generation."""
        index = self._loaded.get(collection.id)
        if index is not None and index.generation >= collection.generation:
            return index
        with self._lock, self._store.read() as reader:
            current = reader.refresh(collection)
            index = self._loaded.get(collection.id)
            if index is not None and index.generation >= current.generation:
                return index
            index = index or self._load(current)
            self._catch_up(index, current, reader)
            if self._wants_rebuild(index, current, reader):
                index = self._rebuild(current, reader)
            self._loaded[collection.id] = index
            return index

    def add(self, collection: Collection, generation: int, ids: Ids, vectors: Vectors) -> None:
        """Add vectors that are about to be committed as `generation`; until then no search resolves them."""
        index = self.get(collection)
        with self._lock:
            index.add(ids, vectors)
            index.generation = generation
            self._unsaved[collection.id] = self._unsaved.get(collection.id, 0) + len(ids)

    def take_back(self, collection: Collection) -> None:
        """Forget that vectors were added: their commit failed, and the generation may be used for others."""
        with self._lock:
            index = self._loaded.get(collection.id)
            if index is not None:
                index.generation = min(index.generation, collection.generation)

    def maintain(self, collection: Collection) -> str:
        """Rebuild and save the index where it is worth it, and return a notice for people, mostly empty."""
        index = self.get(collection)
        with self._lock, self._store.read() as reader:
            current = reader.refresh(collection)
            if self._wants_rebuild(index, current, reader):
                index = self._loaded[collection.id] = self._rebuild(current, reader)
            if self._unsaved.get(collection.id, 0) > SAVE_FRACTION * len(index):
                self._save(collection.id)
            if index.is_trained:
                return ""
            return (
                f"index {index.spec.factory!r} stays flat until there are {index.training_size} vectors to train on "
                f"(now {reader.num_vectors(current)}); answers are exact meanwhile"
            )

    def rebuild(self, collection: Collection) -> VectorIndex:
        """Make the index anew from the stored vectors, save it and return it; the old file is overwritten.

        Raises:
            OSError: the old file cannot be overwritten.
        """
        with self._lock, self._store.read() as reader:
            index = self._rebuild(reader.refresh(collection), reader)
            self._loaded[collection.id] = index
            overwrite(self._path(collection.id))
            self._save(collection.id)
            return index

    def drop(self, collection: Collection) -> None:
        """Forget the index of a collection that is deleted."""
        with self._lock:
            self._loaded.pop(collection.id, None)
            self._unsaved.pop(collection.id, None)
            self._path(collection.id).unlink(missing_ok=True)

    def close(self) -> None:
        """Save what is not on disk yet."""
        with self._lock:
            for collection_id in list(self._loaded):
                if self._unsaved.get(collection_id):
                    self._save(collection_id)
            self._loaded.clear()

    def _path(self, collection_id: int) -> Path:
        return self._folder / f"{collection_id}.faiss"

    def _spec(self, collection: Collection) -> IndexSpec:
        settings = collection.settings
        assert collection.dimension is not None, f"collection {collection.name!r} has vectors but no dimension"
        fingerprint = collection.embedder_fingerprint or ""
        parameters, device = settings.index_parameters, self._config.index_device
        return IndexSpec(collection.dimension, settings.index_factory, parameters, fingerprint, device)

    def _load(self, collection: Collection) -> VectorIndex:
        path = self._path(collection.id)
        spec = self._spec(collection)
        index = VectorIndex.load(path, spec, lambda why: logger.warning("rebuilding index %s: %s", path.name, why))
        return index or VectorIndex(spec)

    def _catch_up(self, index: VectorIndex, collection: Collection, reader: Reader) -> None:
        missing = np.setdiff1d(reader.vector_ids(collection), index.ids)
        if len(missing):
            index.add(*reader.vectors(collection, missing if len(index) else None))
            self._unsaved[collection.id] = self._unsaved.get(collection.id, 0) + len(missing)
        index.generation = index.base_generation = collection.generation

    def _wants_rebuild(self, index: VectorIndex, collection: Collection, reader: Reader) -> bool:
        live = reader.num_vectors(collection)
        dead = len(index) - live
        trainable = not index.is_trained and live >= index.training_size
        return trainable or dead > max(MIN_DEAD, self._config.rebuild_dead_fraction * len(index))

    def _rebuild(self, collection: Collection, reader: Reader) -> VectorIndex:
        ids, vectors = reader.vectors(collection)
        self._unsaved[collection.id] = max(1, len(ids))
        return VectorIndex.build(self._spec(collection), ids, vectors, collection.generation)

    def _save(self, collection_id: int) -> None:
        try:
            self._loaded[collection_id].save(self._path(collection_id))
        except OSError as error:  # the store has everything: the next start only takes longer
            logger.warning("index %s was not saved (%s); it will be rebuilt", self._path(collection_id).name, error)
        else:
            self._unsaved[collection_id] = 0

    def _remove_orphans(self) -> None:
        with self._store.read() as reader:
            known = {self._path(collection.id) for collection in reader.collections()}
        for path in self._folder.iterdir():
            if path.suffix == ".tmp" or (path.suffix == ".faiss" and path not in known):
                path.unlink(missing_ok=True)
