"""Health and metrics, for operators of the server. Not part of the Matrix specification."""

from __future__ import annotations

import trio

from homeserver.api.routes import Response, Routes
from homeserver.blobs import BlobError
from homeserver.database import DatabaseError
from homeserver.feature import Feature, JsonObject
from homeserver.process.outages import BLOBS, DATABASE_READS, DATABASE_WRITES, OUTAGE_PROBE_SECONDS_MAX
from homeserver.resources import Resources

routes = Routes()

# Anyone who can reach the listener can read these, so they reveal no paths, hosts or contents; the log does.
_REASONS = {
    DATABASE_WRITES: "Nothing can be written to the database.",
    DATABASE_READS: "The database cannot be read.",
    BLOBS: "Media cannot be stored.",
    "damage": "Some of what was stored is damaged.",
}


@routes.get("/_homeserver/health/ready", rate_limit="")
async def get_ready(hs: Resources) -> Response:
    """Returns 200 while the server takes requests; 503 with a reason while it cannot do all of its work.

    It cannot when it has been told to stop, while the storage takes no writes, and after it has found damaged data.
    Storage is probed with a write, unless a recent write has succeeded. All sockets are bound before the first one
    accepts, so an answer means that all of them listen.
    """
    if not hs.is_ready:
        return _not_ready("The server has been told to stop.")
    with trio.move_on_after(OUTAGE_PROBE_SECONDS_MAX) as scope:
        try:
            await hs.database.prove_writable()
            await hs.blobs.prove_writable()
        except (DatabaseError, BlobError):
            pass  # the failure is among the reasons now
    reasons = hs.outages.reasons
    if reasons:
        return _not_ready(" ".join(_REASONS[part] for part in reasons))
    if scope.cancelled_caught:
        return _not_ready("A write takes too long.")
    return Response(200, {"ready": True})


def _not_ready(reason: str) -> Response:
    return Response(503, {"ready": False, "reason": reason})


@routes.get("/_homeserver/health/live", rate_limit="")
async def get_live(hs: Resources) -> JsonObject:
    """Returns 200 as long as the process can respond at all."""
    return {"live": True}


@routes.get("/_homeserver/metrics", rate_limit="")
async def get_metrics(hs: Resources) -> Response:
    """Returns counters and gauges in Prometheus text format."""
    return Response(200, hs.metrics.text().encode(), {"content-type": "text/plain; version=0.0.4; charset=utf-8"})


FEATURE = Feature(name="health", spec="", routes=routes)
