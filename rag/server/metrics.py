"""Figures for Prometheus, and a dashboard for Grafana that shows them."""

import asyncio
from importlib import resources
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from rag.server.access import AccessDep
from rag.server.problems import problem_responses
from rag.server.state import SharedState

__all__ = ["router"]

router = APIRouter(tags=["health"])

TEXT: dict[int | str, dict[str, Any]] = {
    200: {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
}
DASHBOARD: dict[int | str, dict[str, Any]] = {
    200: {"description": "Grafana's JSON model.", "content": {"application/json": {"schema": {"type": "object"}}}}
}


@router.get("/metrics", response_class=Response, responses=TEXT | problem_responses(401, 403))
async def metrics(state: SharedState, access: AccessDep) -> Response:
    """Return every metric, for Prometheus.

    They tell of all collections and all questions, so that where keys are on an administrator's is needed, unless the
    setting `open_metrics` lets everyone read them.
    """
    if not state.settings.open_metrics:
        access.require("admin")
    components = state.service.components
    telemetry = components.telemetry.if_made
    if telemetry is None:
        telemetry = await asyncio.to_thread(components.telemetry)
    return Response(await telemetry.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/metrics/grafana.json", response_class=Response, responses=DASHBOARD | problem_responses(401, 403))
async def dashboard(state: SharedState, access: AccessDep) -> Response:
    """Return a Grafana dashboard of these metrics, to be imported there."""
    if not state.settings.open_metrics:
        access.require("admin")
    text = resources.files("rag.telemetry").joinpath("grafana.json").read_text("utf-8")
    return Response(text, media_type="application/json")
