"""The admin API about the server itself: its version, and what tools ask about work in the background."""

from __future__ import annotations

import msgspec

from homeserver import __version__
from homeserver.api.routes import Routes
from homeserver.authenticate import Requester, check_admin
from homeserver.feature import JsonObject
from homeserver.features.administration.common import V1
from homeserver.resources import Resources

routes = Routes()


@routes.get(f"{V1}/server_version")
async def get_server_version(hs: Resources) -> JsonObject:
    """Tools ask before they log in. `/_matrix/federation/v1/version` says the same."""
    return {"server_version": f"homeserver {__version__}"}


@routes.get(f"{V1}/background_updates/status")
async def get_background_updates(hs: Resources, requester: Requester) -> JsonObject:
    """Migrations of this server are done when it starts, so none is ever under way."""
    check_admin(requester)
    return {"enabled": True, "current_updates": {}}


class EnabledBody(msgspec.Struct, frozen=True):
    enabled: bool


@routes.get(f"{V1}/background_updates/enabled")
@routes.post(f"{V1}/background_updates/enabled")
async def set_background_updates_enabled(hs: Resources, requester: Requester, body: EnabledBody | None) -> JsonObject:
    """There is nothing to pause."""
    check_admin(requester)
    return {"enabled": True}
