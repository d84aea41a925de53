"""Refreshing access tokens. Spec: client-server-api/#refreshing-access-tokens"""

from __future__ import annotations

import msgspec

from homeserver import authenticate
from homeserver.api.routes import Routes
from homeserver.authenticate import IssuedTokens
from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.feature import Feature, JsonObject
from homeserver.resources import Resources
from homeserver.users.oauth.sessions import find_session

routes = Routes()


class RefreshBody(msgspec.Struct, frozen=True):
    refresh_token: str


@routes.post("/_matrix/client/v3/refresh")  # hourly for each device, with hundreds of devices behind one address
async def refresh(hs: Resources, body: RefreshBody) -> JsonObject:
    """Tokens that a client got by the OAuth 2.0 API are refreshed there."""
    tokens = await hs.database.write(_refresh, body.refresh_token)
    if tokens is None:
        raise MatrixError(401, "M_UNKNOWN_TOKEN", "This refresh token is not known.")
    return tokens.body()


def _refresh(tx: Transaction, refresh_token: str) -> IssuedTokens | None:
    """Returns None if the token is not known. If it was used before, the tokens of its device end."""
    found = authenticate.find_refresh_token(tx, refresh_token)
    if found is None or find_session(tx, found.user_id, found.device_id) is not None:
        return None
    if found.is_spent:
        authenticate.delete_tokens_of_device(tx, found.user_id, found.device_id)
        return None
    if authenticate.get_account_flags(tx, found.user_id).is_locked:
        raise authenticate.user_locked()
    return authenticate.replace_tokens(tx, refresh_token)


FEATURE = Feature(name="refresh", spec="client-server-api/#refreshing-access-tokens", routes=routes)
