"""Model ids: the language model itself, `rag/<collection>` for answers from a collection, and the embedder."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePath

from rag.config import RagConfig
from rag.schemas import CollectionInfo
from rag.server.access import Access
from rag.server.problems import ProblemError
from rag.service import Service

__all__ = ["PIPELINE", "Target", "all_models", "bare_id", "embedder_id", "resolve", "unknown_model"]

PIPELINE = "rag/"


@dataclass(frozen=True, slots=True)
class Target:
    """What answers: a collection's pipeline, or the language model itself.

    Attributes:
        id: as the client knows it.
        collection: None for the language model itself.
    """

    id: str
    collection: str | None = None


def bare_id(config: RagConfig) -> str:
    """Return the id of the language model itself."""
    return _short(config.model)


def embedder_id(config: RagConfig) -> str:
    """Return the id of the embedder."""
    return _short(config.embedder)


def all_models(service: Service, access: Access) -> Iterable[tuple[str, int]]:
    """Yield the ids that a request may use, and when each was made, in seconds since 1970."""
    config = service.config
    if access.may("read"):
        yield bare_id(config), 0
    collections = {info.name: info for info in service.collections()}
    for name in access.visible(collections):
        yield f"{PIPELINE}{name}", _created(collections[name])
    yield embedder_id(config), 0


def resolve(model: str, service: Service, access: Access) -> Target:
    """Find what a model id stands for, and whether the request may use it.

    Raises:
        ProblemError: 401 or 403 where it may not; 404 where there is no such model.
    """
    if model.startswith(PIPELINE):
        collection = model.removeprefix(PIPELINE)
        access.require("read", collection)
        service.collection(collection)  # a wrong name is told before anything else
        return Target(model, collection)
    if model == bare_id(service.config):
        access.require("read")
        return Target(model)
    raise unknown_model(model, service, access)


def unknown_model(model: str, service: Service, access: Access) -> ProblemError:
    """Make the refusal of a model that does not exist."""
    known = ", ".join(name for name, _ in all_models(service, access))
    return ProblemError(404, "unknown-model", f"there is no model {model!r} for this; there are: {known}")


def _created(info: CollectionInfo) -> int:
    when = datetime.fromisoformat(info.created_at)
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())


def _short(model: str) -> str:
    """Return the last part of a path; a name or a hub id is as it is."""
    path = PurePath(model)
    return path.name if path.is_absolute() else model
