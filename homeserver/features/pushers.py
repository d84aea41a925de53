"""Pushers, which clients set to get push notifications. Not supported. Spec: client-server-api/#push-notifications"""

from __future__ import annotations

import msgspec

from homeserver.api.routes import Empty, Routes
from homeserver.authenticate import Requester
from homeserver.errors import MatrixError
from homeserver.feature import Feature, JsonObject
from homeserver.resources import Resources

routes = Routes()


class PusherBody(msgspec.Struct, frozen=True):
    """The fields that identify a pusher. If `kind` is null, it is to be deleted."""

    app_id: str
    pushkey: str
    kind: str | None


@routes.get("/_matrix/client/v3/pushers")
async def get_pushers(hs: Resources, requester: Requester) -> JsonObject:
    return {"pushers": []}


@routes.post("/_matrix/client/v3/pushers/set", allow_suspended=True)
async def post_pusher(hs: Resources, requester: Requester, body: PusherBody) -> Empty:
    if body.kind is not None:
        raise MatrixError(404, "M_UNRECOGNIZED", "This server does not send push notifications.")
    return Empty()


FEATURE = Feature(name="pushers", spec="client-server-api/#push-notifications", routes=routes)
