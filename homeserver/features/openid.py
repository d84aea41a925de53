"""OpenID: a user proves to another service who they are, without giving it an access token.

Spec: client-server-api/#openid, server-server-api/#openid
"""

from __future__ import annotations

import msgspec

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.errors import MatrixError, forbidden
from homeserver.feature import Feature, JsonObject
from homeserver.federation.identifiers import UserID
from homeserver.limits import Bucket
from homeserver.resources import Resources
from homeserver.users.proof_tokens import LIFETIMES_MS, Purpose, create_proof, find_proven

routes = Routes()


@routes.post("/_matrix/client/v3/user/{user_id}/openid/request_token", rate_limit="openid")
async def request_open_id_token(hs: Resources, requester: Requester, user_id: UserID) -> JsonObject:
    if user_id != requester.user_id:
        raise forbidden("You can only prove who you are yourself.")
    token = await hs.database.write(create_proof, Purpose.OPENID, user_id, requester.device_id)
    return {
        "access_token": token,
        "token_type": "Bearer",
        "matrix_server_name": hs.config.server_name,
        "expires_in": LIFETIMES_MS[Purpose.OPENID] // 1000,
    }


class UserInfoQuery(msgspec.Struct, frozen=True):
    access_token: str | None = None


@routes.get("/_matrix/federation/v1/openid/userinfo")
async def exchange_open_id_token(hs: Resources, query: UserInfoQuery) -> JsonObject:
    """Answers any service that was given a token: they do not sign requests."""
    if not query.access_token:
        raise MatrixError(401, "M_MISSING_TOKEN", "This request needs the access_token of an OpenID request.")
    user_id = await hs.database.read(find_proven, Purpose.OPENID, query.access_token)
    if user_id is None:
        raise MatrixError(401, "M_UNKNOWN_TOKEN", "This token is unknown, or has expired.")
    return {"sub": user_id}


FEATURE = Feature(
    name="openid",
    spec="client-server-api/#openid",
    routes=routes,
    limits={"openid": Bucket(20, 0.2)},  # a token is valid for an hour, so a widget asks once
)
