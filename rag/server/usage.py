"""What was used, and what it cost."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.responses import Response

from rag.schemas.usage import PatternsRequest, UsagePatterns, UsageReport, UsageRequest
from rag.server.access import AccessDep
from rag.server.problems import problem_responses
from rag.server.state import SharedState
from rag.usage import as_csv

__all__ = ["UsageQuery", "router"]

router = APIRouter(prefix="/v1/usage", tags=["usage"])

CSV: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The report; with `format=csv` its rows as a table.",
        "content": {"text/csv": {"schema": {"type": "string"}}},
    }
}


class UsageQuery(UsageRequest):
    """Which part of the ledger to show, and how."""

    format: Literal["json", "csv"] = "json"


@router.get("", response_model=UsageReport, responses=CSV | problem_responses())
def usage(query: Annotated[UsageQuery, Query()], state: SharedState, access: AccessDep) -> Response | UsageReport:
    """Return used tokens, their cost, and what the cache saved, by day, key, collection, pipeline and model.

    A key that is no administrator's sees its own use only. Without a price book there are no costs.
    """
    wanted = UsageRequest(**query.model_dump(exclude={"format"}))
    if not access.may("admin"):
        wanted = wanted.model_copy(update={"key": access.key_id})
    report = state.service.usage.report(wanted)
    return Response(as_csv(report), media_type="text/csv") if query.format == "csv" else report


@router.get("/patterns", responses=problem_responses(404))
def patterns(query: Annotated[PatternsRequest, Query()], state: SharedState, access: AccessDep) -> UsagePatterns:
    """Return how the latest answers have read passages, and what a cache of another size would find.

    Everybody's questions are in it, so that an administrator's key is needed: of all collections, or of the one that is
    asked about.
    """
    access.require("admin", query.collection)
    return state.service.usage.patterns(query)
