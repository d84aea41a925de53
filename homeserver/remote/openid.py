"""OpenID tokens of users of this server and of others. Spec: server-server-api/#openid"""

from __future__ import annotations

from homeserver.errors import MatrixError
from homeserver.federation.identifiers import InvalidIdentifier, ServerName, UserID, parse_user_id, server_name_of
from homeserver.remote.requests import Unreachable, path_to, send_signed
from homeserver.resources import Resources
from homeserver.users.proof_tokens import Purpose, find_proven

ANSWER_BYTES_MAX = 4 * 1024  # a user ID


async def find_openid_user(hs: Resources, server_name: ServerName, token: str) -> UserID | None:
    """Returns whose OpenID token it is, by the word of the server that issued it; None if it is not valid there.

    A server speaks for its own users only. Raises MatrixError 502 if it does not answer.
    """
    if server_name == hs.server_name:
        return await hs.database.read(find_proven, Purpose.OPENID, token)
    uri = path_to("v1", "openid", "userinfo", query={"access_token": token})
    try:
        answer = await send_signed(hs, server_name, "GET", uri, max_bytes=ANSWER_BYTES_MAX)
    except Unreachable:
        raise MatrixError(502, "M_UNKNOWN", f"{server_name} cannot be asked whose token this is.") from None
    try:
        user_id = parse_user_id(answer.content.get("sub") if isinstance(answer.content, dict) else None)
    except InvalidIdentifier:
        return None
    return user_id if answer.status == 200 and server_name_of(user_id) == server_name else None
