"""The opening handshake on our own listeners. Spec: RFC 6455, section 4.2; RFC 7692, section 7.1"""

from __future__ import annotations

import base64
import binascii
import hashlib

from homeserver.api.routes import Request, Response
from homeserver.errors import MatrixError
from homeserver.websocket.deflate import Deflate, negotiate

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
UPGRADE_REQUIRED = Response(
    426,
    {"errcode": "M_UNRECOGNIZED", "error": "This is the address of a WebSocket: connect with one, of version 13."},
    {"upgrade": "websocket", "sec-websocket-version": "13"},
)


def shake_hands(request: Request) -> tuple[Response, Deflate | None]:
    """Returns the answer to the request, and the compression agreed on. Raises MatrixError 400 for a bad request."""
    version = request.find_header(b"sec-websocket-version")
    if version is not None and version.strip() != "13":
        return UPGRADE_REQUIRED, None
    key = request.find_header(b"sec-websocket-key") or ""
    if version is None or not _is_key(key):
        raise MatrixError(400, "M_UNKNOWN", "The opening handshake of the WebSocket is not valid.")
    accept = base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()
    headers = {"upgrade": "websocket", "connection": "upgrade", "sec-websocket-accept": accept}
    offers = request.headers.get("sec-websocket-extensions")
    deflate = None if offers is None else negotiate(offers)
    if deflate is not None:
        headers["sec-websocket-extensions"] = deflate.agreed
    return Response(101, b"", headers), deflate


def _is_key(key: str) -> bool:
    try:
        return len(base64.b64decode(key.encode(), validate=True)) == 16
    except (binascii.Error, UnicodeEncodeError):
        return False
