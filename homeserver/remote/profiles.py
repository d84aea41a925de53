"""Profiles of users of other servers. Spec: server-server-api/#get_matrixfederationv1queryprofile"""

from __future__ import annotations

from typing import Any

from homeserver.errors import MatrixError, not_found
from homeserver.federation.identifiers import UserID, server_name_of
from homeserver.remote.requests import ask, path_to
from homeserver.resources import Resources

PROFILE_BYTES_MAX = 256 * 1024


async def fetch_profile(hs: Resources, user_id: UserID, field: str | None = None) -> dict[str, Any]:
    """Returns a remote user's profile, or one field of it. Raises MatrixError 404, or 502 if there is no answer."""
    query = {"user_id": user_id} if field is None else {"user_id": user_id, "field": field}
    uri = path_to("v1", "query", "profile", query=query)
    try:
        return await ask(hs, server_name_of(user_id), "GET", uri, max_bytes=PROFILE_BYTES_MAX)
    except MatrixError as error:
        if error.status == 404:
            raise not_found("There is no such user, or no such field.") from None
        raise
