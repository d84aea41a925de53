"""What this server and this user may do. Spec: client-server-api/#capabilities-negotiation"""

from __future__ import annotations

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.feature import Feature, JsonObject
from homeserver.federation.room_versions import ROOM_VERSIONS
from homeserver.resources import Resources

routes = Routes()


@routes.get("/_matrix/client/v3/capabilities", allow_guest=True)
async def get_capabilities(hs: Resources, requester: Requester) -> JsonObject:
    is_user = not requester.is_guest
    profile_fields: JsonObject = {"enabled": True}
    if requester.is_guest:
        profile_fields["allowed"] = ["displayname"]
    return {
        "capabilities": {
            "m.room_versions": {
                "default": hs.config.rooms.default_version,
                "available": dict.fromkeys(ROOM_VERSIONS, "stable"),
            },
            "m.change_password": {"enabled": is_user},
            "m.profile_fields": profile_fields,
            "m.set_displayname": {"enabled": True},
            "m.set_avatar_url": {"enabled": is_user},
            "m.3pid_changes": {"enabled": False},
            "m.get_login_token": {"enabled": False},
            "m.forget_forced_upon_leave": {"enabled": False},
        }
    }


FEATURE = Feature(name="capabilities", spec="client-server-api/#capabilities-negotiation", routes=routes)
