"""Third-party networks that rooms and users may be bridged to. Not supported.

Spec: client-server-api/#third-party-networks
"""

from __future__ import annotations

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.errors import MatrixError, not_found
from homeserver.feature import Feature, JsonObject
from homeserver.resources import Resources

routes = Routes()


@routes.get("/_matrix/client/v3/thirdparty/protocols")
async def get_protocols(hs: Resources, requester: Requester) -> JsonObject:
    return {}


@routes.get("/_matrix/client/v3/thirdparty/protocol/{protocol}")
async def get_protocol_metadata(hs: Resources, requester: Requester, protocol: str) -> JsonObject:
    raise _no_network()


@routes.get("/_matrix/client/v3/thirdparty/location/{protocol}")
async def query_location_by_protocol(hs: Resources, requester: Requester, protocol: str) -> JsonObject:
    raise _no_network()


@routes.get("/_matrix/client/v3/thirdparty/user/{protocol}")
async def query_user_by_protocol(hs: Resources, requester: Requester, protocol: str) -> JsonObject:
    raise _no_network()


@routes.get("/_matrix/client/v3/thirdparty/location")
async def query_location_by_alias(hs: Resources, requester: Requester) -> JsonObject:
    raise _no_network()


@routes.get("/_matrix/client/v3/thirdparty/user")
async def query_user_by_id(hs: Resources, requester: Requester) -> JsonObject:
    raise _no_network()


def _no_network() -> MatrixError:
    return not_found("This server has no bridges to other networks.")


FEATURE = Feature(name="third_party_networks", spec="client-server-api/#third-party-networks", routes=routes)
