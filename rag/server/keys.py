"""API keys, and who may do what with a collection."""

from typing import Annotated

from fastapi import APIRouter, Path

from rag.key_operations import StoredKeys
from rag.schemas.keys import AccessList, AccessRequest, CreatedKey, KeyInfo, KeyList, KeyRequest
from rag.server.access import Access, AccessDep, key_required
from rag.server.problems import problem_responses
from rag.server.state import ServerState, SharedState

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["keys"])

KeyName = Annotated[str, Path(description="The key's id, or its name.")]
Collection = Annotated[str, Path(description="The collection's name.")]


@router.post("/keys", status_code=201, responses=problem_responses(400))
def create_key(body: KeyRequest, state: SharedState, access: AccessDep) -> CreatedKey:
    """Make a key; its token is in this answer and nowhere else.

    From the first key on, every request needs one.
    """
    return _administered(state, access).create(body)


@router.get("/keys", responses=problem_responses())
def list_keys(state: SharedState, access: AccessDep) -> KeyList:
    """Return every key without its secret, oldest first."""
    return _administered(state, access).list()


@router.delete("/keys/{key}", responses=problem_responses(404))
def revoke_key(key: KeyName, state: SharedState, access: AccessDep) -> KeyInfo:
    """Refuse a key from now on, for good, and return it. What it has used stays in the books."""
    return _administered(state, access).revoke(key)


@router.get("/collections/{collection}/access", responses=problem_responses(404))
def get_access(collection: Collection, state: SharedState, access: AccessDep) -> AccessList:
    """Return which keys may do what with a collection."""
    keys = _administered(state, access, collection)
    state.service.collection(collection)
    return keys.access(collection)


@router.put("/collections/{collection}/access", responses=problem_responses(400, 404))
def set_access(collection: Collection, body: AccessRequest, state: SharedState, access: AccessDep) -> AccessList:
    """Say which keys may do what with a collection, and return the list.

    Keys that are not named lose what they had by this collection's name; what a key may do with every collection stays.
    """
    keys = _administered(state, access, collection)
    state.service.collection(collection)
    return keys.set_access(collection, body)


def _administered(state: ServerState, access: Access, collection: str | None = None) -> StoredKeys:
    """Return the keys for whoever may administrate them. An open server takes nobody's word for that."""
    access.require("admin", collection)
    if not access.is_proven:
        raise key_required(
            "keys are made by whoever may read the server's data directory; run `rag keys create` there, beside the "
            "running server"
        )
    return state.service.keys
