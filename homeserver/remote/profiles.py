"""Profiles of users of other servers. Spec: server-server-api/#get_matrixfederationv1queryprofile"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from federation import canonical_json
from federation.identifiers import UserID, server_name_of
from federation.request_auth import build_authorization
from federation.wire import WireError
from homeserver.errors import MatrixError, not_found
from homeserver.resources import Resources


async def fetch_profile(hs: Resources, user_id: UserID, field: str | None = None) -> dict[str, Any]:
    """The profile, or the one field of it, as the user's server tells it. MatrixError 404: no such user; 502: no answer."""
    destination = server_name_of(user_id)
    query = {"user_id": user_id} if field is None else {"user_id": user_id, "field": field}
    uri = f"/_matrix/federation/v1/query/profile?{urlencode(query)}"
    header = build_authorization("GET", uri, hs.server_name, destination, hs.signing_key, None)
    try:
        response = await hs.wire.request(
            destination, "GET", uri, headers={"authorization": header}, body=None, timeout_s=10, max_bytes=1 << 18
        )
        profile = canonical_json.decode(response.body)
    except (WireError, canonical_json.NotCanonical) as error:
        raise MatrixError(502, "M_UNKNOWN", "The user's server does not answer.") from error
    if response.status == 404:
        raise not_found("There is no such user.")
    if response.status != 200 or not isinstance(profile, dict):
        raise MatrixError(502, "M_UNKNOWN", "The user's server does not tell.")
    return profile
