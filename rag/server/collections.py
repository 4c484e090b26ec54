"""Collections: made, listed, changed, deleted."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Path
from starlette.responses import Response

from rag.idempotency import fingerprint_of
from rag.schemas import CollectionInfo, CollectionList, CollectionPatch, NewCollection
from rag.server.access import AccessDep
from rag.server.answers import require_json
from rag.server.idempotent import IdempotencyKey, Keep, once
from rag.server.problems import problem_responses
from rag.server.state import SharedState

__all__ = ["CollectionPath", "router"]

router = APIRouter(prefix="/v1/collections", tags=["collections"])

CollectionPath = Annotated[str, Path(description="The collection's name.")]


@router.get("", responses=problem_responses())
def list_collections(state: SharedState, access: AccessDep) -> CollectionList:
    """Return every collection that the key may read, by name."""
    found = state.service.collections()
    return CollectionList(collections=[item for item in found if access.may("read", item.name)])


@router.post(
    "",
    status_code=201,
    response_model=CollectionInfo,
    dependencies=[Depends(require_json)],
    responses=problem_responses(400, 409, 415),
)
async def create_collection(
    body: NewCollection, state: SharedState, access: AccessDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Make an empty collection with settings of its own.

    How its documents are cut and indexed (`settings`) stays as it is; how questions over it are answered (`answering`)
    can be changed.
    """
    access.require("write", body.name)

    async def create(_keep: Keep) -> tuple[int, CollectionInfo]:
        return 201, await asyncio.to_thread(state.service.create_collection, body)

    return await once(
        state, access, idempotency_key, lambda: fingerprint_of("collections", body.model_dump_json()), create
    )


@router.get("/{collection}", responses=problem_responses(404))
def get_collection(collection: CollectionPath, state: SharedState, access: AccessDep) -> CollectionInfo:
    """Return a collection."""
    access.require("read", collection)
    return state.service.collection(collection)


@router.patch(
    "/{collection}",
    dependencies=[Depends(require_json)],
    responses=problem_responses(400, 404, 415),
)
def update_collection(
    collection: CollectionPath, body: CollectionPatch, state: SharedState, access: AccessDep
) -> CollectionInfo:
    """Change how questions over a collection are answered.

    Fields that are given replace those that it has, null gives a field back to the server. With other words around the
    passages (`prompt`), every passage is read anew.
    """
    access.require("admin", collection)
    return state.service.update_collection(collection, body)


@router.delete("/{collection}", status_code=204, responses=problem_responses(404))
def delete_collection(collection: CollectionPath, state: SharedState, access: AccessDep) -> None:
    """Delete a collection with everything in it."""
    access.require("admin", collection)
    state.service.delete_collection(collection)
