"""Keys for end-to-end encryption. This server stores none, and tells so the clients that query them.

At login, clients query whether their user has keys, and some (Element) do not continue without an answer. The answer is
always that there are none, and the clients then work without encryption. Key uploads are not offered, so that no client
assumes that others can find its keys.

Spec: client-server-api/#key-management-api, #server-side-key-backups
"""

from __future__ import annotations

import msgspec

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.errors import invalid_param, not_found
from homeserver.feature import Feature, JsonObject
from homeserver.federation.identifiers import InvalidIdentifier, UserID, parse_user_id
from homeserver.resources import Resources

routes = Routes()


class QueryBody(msgspec.Struct, frozen=True):
    """`device_keys`: user ID → device IDs, empty for all. `timeout` is for servers that query others."""

    device_keys: dict[str, list[str]]
    timeout: int = 0


@routes.post("/_matrix/client/v3/keys/query", allow_guest=True, allow_suspended=True)
async def query_keys(hs: Resources, requester: Requester, body: QueryBody) -> JsonObject:
    return {"device_keys": {_parse_user_id(user_id): {} for user_id in body.device_keys}}


def _parse_user_id(user_id: str) -> UserID:
    try:
        return parse_user_id(user_id)
    except InvalidIdentifier as error:
        raise invalid_param(f"device_keys must have user IDs as its keys: {error}") from error


@routes.get("/_matrix/client/v3/room_keys/version")
async def get_room_keys_version_current(hs: Resources, requester: Requester) -> JsonObject:
    raise not_found("There is no key backup.")


FEATURE = Feature(name="encryption_keys", spec="client-server-api/#key-management-api", routes=routes)
