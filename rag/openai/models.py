"""`/v1/models`: what can be asked."""

from typing import Literal

from fastapi import APIRouter

from rag.openai.documentation import error_responses
from rag.openai.results import Result
from rag.openai.targets import all_models, unknown_model
from rag.server.access import AccessDep
from rag.server.state import SharedState

__all__ = [
    "Model",
    "ModelList",
    "router",
]

router = APIRouter(prefix="/v1/models", tags=["openai"], responses=error_responses())


class Model(Result):
    """Something that can be asked: the language model, a collection as `rag/<collection>`, or the embedder."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["preread"] = "preread"


class ModelList(Result):
    """Everything that can be asked with this key."""

    object: Literal["list"] = "list"
    data: list[Model]


@router.get("")
def list_models(state: SharedState, access: AccessDep) -> ModelList:
    """Return everything that can be asked."""
    return ModelList(data=[Model(id=name, created=created) for name, created in all_models(state.service, access)])


@router.get("/{model:path}")
def get_model(model: str, state: SharedState, access: AccessDep) -> Model:
    """Return one of them."""
    for name, created in all_models(state.service, access):
        if name == model:
            return Model(id=name, created=created)
    raise unknown_model(model, state.service, access)
