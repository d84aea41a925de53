"""Key backups: this server keeps none, and says so. Clients ask at login, and some do not go on without an answer.

Spec: client-server-api/#server-side-key-backups
"""

from __future__ import annotations

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.errors import not_found
from homeserver.feature import Feature, JsonObject
from homeserver.resources import Resources

routes = Routes()


@routes.get("/_matrix/client/v3/room_keys/version")
async def get_room_keys_version_current(hs: Resources, requester: Requester) -> JsonObject:
    raise not_found("There is no backup of keys.")


FEATURE = Feature(name="key_backup", spec="client-server-api/#server-side-key-backups", routes=routes)
