"""Who sends a request: the X-Matrix header is checked, and its origin is what the handlers get.

Spec: server-server-api/#request-authentication
"""

from __future__ import annotations

from homeserver.api import Request
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import ServerName
from homeserver.federation.request_auth import InvalidAuthorization, parse_authorization, verify
from homeserver.remote.keys import find_request_key
from homeserver.resources import Resources


async def verify_origin(hs: Resources, request: Request) -> ServerName:
    """The server that has signed the request. MatrixError 401 M_UNAUTHORIZED, 429 for who claims to be too many."""
    header = request.headers.get("authorization")
    if header is None:
        raise _unauthorized("This request has to be signed.")
    try:
        credentials = parse_authorization(header)
    except InvalidAuthorization as error:
        raise _unauthorized(str(error)) from None
    if credentials.destination is not None and credentials.destination != hs.server_name:
        raise _unauthorized(f"This server is {hs.server_name}, not the destination that was signed.")
    origin = credentials.origin
    if origin == hs.server_name:
        raise _unauthorized("This server sends no requests to itself.")
    key = await find_request_key(hs, origin, credentials.key_id, request.client_ip)
    if key is None:
        raise _unauthorized(f"{origin} has no such key, or its keys cannot be had.")
    body, request.data = request.data, None
    if not verify(
        credentials, request.method, request.uri, hs.server_name, request.content, key.key_base64, body=body
    ):
        raise _unauthorized("The signature is wrong.")
    hs.peers.note_contact(origin)
    return origin


def _unauthorized(error: str) -> MatrixError:
    return MatrixError(401, "M_UNAUTHORIZED", error)
