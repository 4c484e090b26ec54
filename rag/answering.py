"""How questions over a collection are answered: as it says, and where it says nothing as the server does."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rag.config import RetrieverSettings
from rag.prompt_template import PromptTemplate
from rag.schemas import Answering, AnswerRequest, Splitting

if TYPE_CHECKING:
    from retriever.config import CollectionSettings
    from retriever.records import Collection

__all__ = ["answering_json", "answering_of", "filled_in", "patched", "settings_of", "template_of"]

OF_REQUESTS = ("k", "max_tokens", "extractive", "reuse", "order")


def answering_of(collection: "Collection") -> Answering:
    """Return what a collection says of how its questions are answered."""
    return _parsed(collection.answering)


def answering_json(answering: Answering) -> str:
    """Return how questions are answered as it is stored."""
    return answering.model_dump_json(exclude_none=True)


def filled_in(request: AnswerRequest, collection: "Collection") -> AnswerRequest:
    """Return a question with what it leaves out and its collection says."""
    answering = answering_of(collection)
    given = {name: getattr(answering, name) for name in OF_REQUESTS if getattr(request, name) is None}
    changed = {name: value for name, value in given.items() if value is not None}
    return request.model_copy(update=changed) if changed else request


def template_of(answering: Answering, default: PromptTemplate) -> PromptTemplate:
    """Return the words around the passages."""
    if answering.prompt is None:
        return default
    return PromptTemplate(**{**default.model_dump(), **answering.prompt.model_dump(exclude_none=True)})


def patched(answering: Answering, patch: Answering) -> Answering:
    """Return settings with those that a patch gives; what it gives as null is left out again."""
    return Answering.model_validate({**answering.model_dump(), **patch.model_dump(exclude_unset=True)})


def settings_of(splitting: Splitting, default: RetrieverSettings) -> "CollectionSettings":
    """Return how a new collection cuts and indexes its documents.

    Raises:
        SettingsError: a setting cannot work.
    """
    given: dict[str, Any] = splitting.model_dump(exclude_none=True)
    return default.model_copy(update=given).build().collection


@lru_cache(256)
def _parsed(text: str) -> Answering:
    return Answering.model_validate_json(text)
