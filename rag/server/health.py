"""Whether the server lives, and whether it is ready."""

from importlib.metadata import version
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from rag.schemas import KVStoreInfo
from rag.server.access import AccessDep
from rag.server.problems import ProblemError, problem_responses
from rag.server.state import ReadyState, SharedState
from rag.shadow import ShadowStats

__all__ = ["Health", "Liveness", "Readiness", "router"]

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """What the server says about itself.

    `kv_store` is null where no KV is stored and before the models are loaded, `shadow` where no answers are looked at
    again. Both move with every question, so that where keys are on only an administrator sees them.
    """

    status: Literal["ok"] = "ok"
    ready: bool
    model: str
    embedder: str
    version: str
    kv_store: KVStoreInfo | None
    shadow: ShadowStats | None


class Liveness(BaseModel):
    """That the server works, whether or not it takes questions now."""

    status: Literal["alive"] = "alive"


class Readiness(BaseModel):
    """That the server takes questions."""

    status: Literal["ready"] = "ready"


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def healthz(state: SharedState, access: AccessDep) -> Health:
    """Tell that the process lives, and what it runs."""
    config, components = state.service.config, state.service.components
    seen = access.may("admin")
    store = components.store.if_made if seen else None
    shadow = components.shadow.if_made if seen else None
    return Health(
        ready=state.is_ready,
        model=config.model,
        embedder=config.embedder,
        version=version("preread"),
        kv_store=store.info() if store else None,
        shadow=shadow.stats() if shadow else None,
    )


@router.head("/livez", include_in_schema=False)
@router.get("/livez", responses=problem_responses())
async def livez(state: SharedState) -> Liveness:
    """Tell whether the process works: 503 where only a restart helps. It lives while models load and while it stops."""
    if state.is_broken:
        raise ProblemError(503, "not-alive", "the engine hangs or has ended; restart the server, its log says why")
    return Liveness()


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses=problem_responses())
async def readyz(_state: ReadyState) -> Readiness:
    """Tell whether questions can be answered: 503 while models load, while the engine fails, and while it stops."""
    return Readiness()
