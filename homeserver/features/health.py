"""Health and metrics, for those who run the server: no part of the Matrix specification."""

from __future__ import annotations

from homeserver.api import Response, Routes
from homeserver.feature import Feature, JsonObject
from homeserver.resources import Resources

routes = Routes()


@routes.get("/_homeserver/health/ready", rate_limit="")
async def get_ready(hs: Resources) -> Response:
    """200 while the server takes requests; 503 once it has been told to stop.

    Sockets are bound together before the first of them accepts, so who gets an answer knows that all of them listen.
    """
    return Response(200 if hs.is_ready else 503, {"ready": hs.is_ready})


@routes.get("/_homeserver/health/live", rate_limit="")
async def get_live(hs: Resources) -> JsonObject:
    """200 as long as the process can answer at all."""
    return {"live": True}


@routes.get("/_homeserver/metrics", rate_limit="")
async def get_metrics(hs: Resources) -> Response:
    """Counters and gauges as Prometheus text."""
    return Response(200, hs.metrics.text().encode(), {"content-type": "text/plain; version=0.0.4; charset=utf-8"})


FEATURE = Feature(name="health", spec="", routes=routes)
