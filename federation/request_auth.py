"""Request authentication: the `X-Matrix` scheme. Spec: server-server-api/#request-authentication

Sender and receiver build the same object from a request (`signed_object`). Its signature travels in the Authorization
header. `uri` is the request target as sent: path and query string, without scheme and host.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from homeserver.federation import canonical_json
from homeserver.federation.canonical_json import NotCanonical
from homeserver.federation.identifiers import InvalidIdentifier, ServerName, parse_server_name
from homeserver.federation.signing import SigningKey, encode_base64, verify_parts

SCHEME = "X-Matrix"
HEADER_LENGTH_MAX = 4096
"""Two server names, a key ID and a signature need at most about 1000 characters, escapes included."""

# RFC 9110, as quoted by the spec:
#   credentials   = auth-scheme 1*SP #auth-param            §11.4, §11.2
#   auth-param    = token BWS "=" BWS ( token / quoted-string )
#   #element      = [ element ] *( OWS "," OWS [ element ] ) §5.6.1.2, what a recipient must accept
#   token         = 1*tchar                                 §5.6.2
#   quoted-string = DQUOTE *( qdtext / quoted-pair ) DQUOTE §5.6.4
#   qdtext        = HTAB / SP / %x21 / %x23-5B / %x5D-7E / obs-text
#   quoted-pair   = "\" ( HTAB / SP / VCHAR / obs-text )
# with one addition: "the recipient should allow colons to be included in values without requiring the value to be
# enclosed in quotes".
_SCHEME = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) +", re.ASCII)
_PARAM = re.compile(
    r"""
    (?P<name>[!#$%&'*+\-.^_`|~0-9A-Za-z]+)
    [ \t]*=[ \t]*
    (?:
      "(?P<quoted>(?:[\t !\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*)"
      | (?P<token>[!#$%&'*+\-.^_`|~0-9A-Za-z:]+)
    )
    """,
    re.ASCII | re.VERBOSE,
)
_SEPARATOR = re.compile(r"[ \t]*(?:,[ \t]*)+", re.ASCII)
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)


class InvalidAuthorization(ValueError):
    """The header is not well-formed `X-Matrix` credentials; the message says why."""


class XMatrix(msgspec.Struct, frozen=True):
    """The credentials of a request. `destination` is None if the sender implements a spec version before v1.3."""

    origin: ServerName
    destination: ServerName | None
    key_id: str
    signature: str


def signed_object(
    method: str, uri: str, origin: ServerName, destination: ServerName, content: Any | None
) -> dict[str, Any]:
    """Returns the object to sign for a request. `content` is the decoded body, None if there is no body."""
    signed = {"method": method, "uri": uri, "origin": origin, "destination": destination}
    if content is not None:
        signed["content"] = content
    return signed


def signed_bytes(method: str, uri: str, origin: ServerName, destination: ServerName, body: bytes | None) -> bytes:
    """Returns the canonical JSON of `signed_object`. `body` is the content's canonical JSON, None if there is none."""
    signed = canonical_json.encode(signed_object(method, uri, origin, destination, None))
    return signed if body is None else b'{"content":' + body + b"," + signed[1:]


def build_authorization(
    method: str, uri: str, origin: ServerName, destination: ServerName, key: SigningKey, content: Any | None
) -> str:
    """Returns the Authorization header's value. Raises NotCanonical if the content cannot be signed."""
    return authorize_body(method, uri, origin, destination, key, None if content is None else encode_content(content))


def encode_content(content: Any) -> bytes:
    """Returns the canonical JSON of the content of a request. Raises NotCanonical."""
    return canonical_json.encode(content, strict=False, depth_max=canonical_json.WRAPPED_DEPTH_MAX)


def authorize_body(
    method: str, uri: str, origin: ServerName, destination: ServerName, key: SigningKey, body: bytes | None
) -> str:
    """Does the same as `build_authorization` for a body that is already canonical JSON."""
    signature = encode_base64(key.sign(signed_bytes(method, uri, origin, destination, body)))
    # "For compatibility with older servers": one space, lower-case names, no backslashes, no whitespace around commas.
    return f'{SCHEME} origin="{origin}",destination="{destination}",key="{key.key_id}",sig="{signature}"'


def is_x_matrix(header: str) -> bool:
    """Returns whether an Authorization header uses this scheme, well-formed or not."""
    match = _SCHEME.match(header)
    return match is not None and match[1].lower() == SCHEME.lower()


def parse_authorization(header: str) -> XMatrix:
    """Returns the credentials in an Authorization header. Raises InvalidAuthorization. Ignores unknown parameters."""
    params = _parse_params(header)
    # The spec's list of parameters has `signature`, but its examples and all servers use `sig`.
    signature = params.get("sig") or params.get("signature")
    origin, destination, key_id = params.get("origin"), params.get("destination"), params.get("key")
    if not origin or not key_id or not signature:
        raise InvalidAuthorization("The parameters `origin`, `key` and `sig` are required.")
    try:
        return XMatrix(
            origin=parse_server_name(origin),
            destination=None if destination is None else parse_server_name(destination),
            key_id=key_id,
            signature=signature,
        )
    except InvalidIdentifier as error:
        raise InvalidAuthorization(str(error)) from None


def verify_text(
    credentials: XMatrix, method: str, uri: str, destination: ServerName, text: bytes | None, verify_key_base64: str
) -> bool:
    """Returns whether the origin signed this request to `destination` (our name) with this key. Never raises.

    text: the content as canonical JSON, None if there is none. Most servers send canonical JSON, so try the received
    body first: it then need not be decoded.
    Also returns False if the credentials name another destination: the receiving server must then answer 401.
    """
    if credentials.destination is not None and credentials.destination != destination:
        return False
    about = canonical_json.encode(signed_object(method, uri, credentials.origin, destination, None))
    parts = (about,) if text is None else (b'{"content":', text, b",", about[1:])
    return verify_parts(parts, credentials.signature, verify_key_base64)


def verify(
    credentials: XMatrix,
    method: str,
    uri: str,
    destination: ServerName,
    content: Any | None,
    verify_key_base64: str,
) -> bool:
    """Does the same as `verify_text` for decoded content, which may have been sent in any form of JSON."""
    text = None
    if content is not None:
        try:
            text = canonical_json.encode(content, strict=False, depth_max=canonical_json.PARTS_DEPTH_MAX)
        except NotCanonical:
            return False
    return verify_text(credentials, method, uri, destination, text, verify_key_base64)


def _parse_params(header: str) -> dict[str, str]:
    if len(header) > HEADER_LENGTH_MAX:
        raise InvalidAuthorization("The header is too long.")
    header = header.strip(" \t")
    if not is_x_matrix(header):
        raise InvalidAuthorization("The authorization scheme must be X-Matrix.")
    scheme = _SCHEME.match(header)
    assert scheme is not None  # is_x_matrix has matched it
    at, params = scheme.end(), {}
    leading = _SEPARATOR.match(header, at)
    at = leading.end() if leading is not None else at
    while at < len(header):
        match = _PARAM.match(header, at)
        if match is None:
            raise InvalidAuthorization("The parameters are malformed.")
        name = match["name"].lower()
        if name in params:
            raise InvalidAuthorization("A parameter occurs twice.")
        quoted = match["quoted"]
        params[name] = match["token"] if quoted is None else _QUOTED_PAIR.sub(r"\1", quoted)
        at = match.end()
        separator = _SEPARATOR.match(header, at)
        if separator is None and at < len(header):
            raise InvalidAuthorization("The parameters must be separated by commas.")
        at = separator.end() if separator is not None else at
    return params
