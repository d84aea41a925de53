"""Refreshing access tokens. Spec: client-server-api/#refreshing-access-tokens"""

from __future__ import annotations

import msgspec

from homeserver import authenticate
from homeserver.api.routes import Routes
from homeserver.feature import Feature, JsonObject
from homeserver.resources import Resources

routes = Routes()


class RefreshBody(msgspec.Struct, frozen=True):
    refresh_token: str


@routes.post("/_matrix/client/v3/refresh")  # hourly for each device, with hundreds of devices behind one address
async def refresh(hs: Resources, body: RefreshBody) -> JsonObject:
    tokens = await hs.database.write(authenticate.replace_tokens, body.refresh_token)
    return tokens.body()


FEATURE = Feature(name="refresh", spec="client-server-api/#refreshing-access-tokens", routes=routes)
