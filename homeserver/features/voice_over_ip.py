"""Voice over IP: TURN servers for calls. Not supported. Spec: client-server-api/#voice-over-ip"""

from __future__ import annotations

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.feature import Feature, JsonObject
from homeserver.resources import Resources

routes = Routes()


@routes.get("/_matrix/client/v3/voip/turnServer", allow_guest=True)
async def get_turn_server(hs: Resources, requester: Requester) -> JsonObject:
    return {}  # without one, clients try to reach each other directly


FEATURE = Feature(name="voice_over_ip", spec="client-server-api/#voice-over-ip", routes=routes)
