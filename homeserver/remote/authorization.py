"""Identifies the server that sends a request, by the X-Matrix header and its signature.

Spec: server-server-api/#request-authentication

Everything that does not need the body is checked first, and a request that fails is refused with its body unread. The
signature is checked on the bytes of the body as received, because most servers send canonical JSON. Otherwise the body
must be decoded before its sender is certain, so this is done only if it is cheap; a large transaction is only tried
with its parts put in order. The cost of wrong signatures is charged to the address that sent them.
"""

from __future__ import annotations

import msgspec

from homeserver import limits
from homeserver.api.bodies import Body
from homeserver.api.routes import Request
from homeserver.errors import MatrixError
from homeserver.federation import canonical_json
from homeserver.federation.canonical_json import NotCanonical
from homeserver.federation.identifiers import ServerName
from homeserver.federation.request_auth import InvalidAuthorization, XMatrix, parse_authorization, verify_text
from homeserver.federation.transaction import sort_parts
from homeserver.process.rate_limits import address_key
from homeserver.remote.keys import find_request_key
from homeserver.resources import Resources


async def identify_origin(hs: Resources, request: Request) -> Claim:
    """Returns the server that the request claims to come from, before its body is read.

    Raises 401 M_UNAUTHORIZED if the claim cannot be true, and 429 if the address makes too many claims.
    """
    header = request.headers.get("authorization")
    if header is None:
        raise _unauthorized("This request must be signed.")
    try:
        credentials = parse_authorization(header)
    except InvalidAuthorization as error:
        raise _unauthorized(str(error)) from None
    if credentials.destination is not None and credentials.destination != hs.server_name:
        raise _unauthorized(f"This server is {hs.server_name}, not the destination in the Authorization header.")
    origin = credentials.origin
    if origin == hs.server_name:
        raise _unauthorized("This server sends no requests to itself.")
    hs.rate_limits.require("signatures", address_key(request.client_ip), hs.now_ms())
    key = await find_request_key(hs, origin, credentials.key_id, request.client_ip)
    if key is None:
        raise _unauthorized(f"{origin} has no such key, or its keys are unavailable.")
    return Claim(credentials, key.key_base64)


class Claim(msgspec.Struct, frozen=True):
    """A claim to be another server: an `authenticate.OriginClaim`."""

    credentials: XMatrix
    key_base64: str

    @property
    def origin(self) -> ServerName:
        return self.credentials.origin

    async def check(self, hs: Resources, request: Request, body: Body | None) -> None:
        """Raises 401 M_UNAUTHORIZED if the signature is wrong, 429 after too many wrong ones from the address."""
        address = address_key(request.client_ip)
        # Checked again, because many requests may have arrived at the same time.
        hs.rate_limits.require("signatures", address, hs.now_ms())
        if not await self._is_signed(hs, request, body):
            units = 1 + (len(body.text) // limits.http.SIGNATURE_UNIT_BYTES if body is not None else 0)
            hs.rate_limits.charge("signatures", address, hs.now_ms(), units)
            raise _unauthorized("The signature is wrong.")
        hs.peers.note_contact(self.origin)

    async def _is_signed(self, hs: Resources, request: Request, body: Body | None) -> bool:
        if body is None or not body.text:
            return self._covers(hs, request, None)
        if not body.is_large:
            return self._covers(hs, request, body.text) or self._covers_otherwise(hs, request, body)
        async with hs.flights.limiter("signatures", 1):  # each holds several copies of the body
            if await hs.workers.run(self._covers, hs, request, body.text):
                return True
            return await hs.workers.run(self._covers_otherwise, hs, request, body)

    def _covers(self, hs: Resources, request: Request, text: bytes | None) -> bool:
        return verify_text(self.credentials, request.method, request.uri, hs.server_name, text, self.key_base64)

    def _covers_otherwise(self, hs: Resources, request: Request, body: Body) -> bool:
        """Returns whether the signature fits a body that was not sent as canonical JSON."""
        if len(body.text) > limits.http.UNVERIFIED_BODY_BYTES_MAX:
            return False
        text = _canonical(body) if body.nodes <= limits.http.UNVERIFIED_JSON_NODES_MAX else sort_parts(body.text)
        return text is not None and text != body.text and self._covers(hs, request, text)


def _canonical(body: Body) -> bytes | None:
    try:
        content = canonical_json.decode_parts(body.text)
        return canonical_json.encode(content, strict=False, depth_max=canonical_json.PARTS_DEPTH_MAX)
    except NotCanonical:
        return None


def _unauthorized(error: str) -> MatrixError:
    return MatrixError(401, "M_UNAUTHORIZED", error)
