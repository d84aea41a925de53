"""Voice over IP: what a client needs for calls besides the room. Spec: client-server-api/#voice-over-ip"""

from __future__ import annotations

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.feature import Feature, JsonObject
from homeserver.resources import Resources

routes = Routes()


@routes.get("/_matrix/client/v3/voip/turnServer", allow_guest=True)
async def get_turn_server(hs: Resources, requester: Requester) -> JsonObject:
    return {}  # there is none: clients try to reach each other directly


FEATURE = Feature(name="voice_over_ip", spec="client-server-api/#voice-over-ip", routes=routes)
