"""Returns the owner of an access token. Spec: client-server-api/#get_matrixclientv3accountwhoami"""

from __future__ import annotations

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.feature import Feature, JsonObject
from homeserver.resources import Resources

routes = Routes()


@routes.get("/_matrix/client/v3/account/whoami", allow_guest=True)
async def get_token_owner(hs: Resources, requester: Requester) -> JsonObject:
    owner: JsonObject = {"user_id": requester.user_id, "is_guest": requester.is_guest}
    if requester.device_id:
        owner["device_id"] = requester.device_id
    return owner


FEATURE = Feature(name="whoami", spec="client-server-api/#get_matrixclientv3accountwhoami", routes=routes)
