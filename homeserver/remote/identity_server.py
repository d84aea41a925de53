"""Identity servers: which user owns an email address or phone number, and invites for addresses that nobody owns yet.

Users choose the identity server and bring an access token for it. Requests go through the guard against private
addresses. Spec: identity-service-api
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec
from msgspec import Meta

from homeserver import limits
from homeserver.encoding import to_json
from homeserver.errors import MatrixError, forbidden, invalid_param
from homeserver.feature import JsonObject
from homeserver.federation import canonical_json
from homeserver.federation.canonical_json import NotCanonical
from homeserver.federation.identifiers import InvalidIdentifier, ServerName, UserID, parse_server_name, parse_user_id
from homeserver.federation.request_auth import build_authorization
from homeserver.federation.signing import encode_base64
from homeserver.federation.wire import WireError, WireResponse
from homeserver.remote.requests import ERRORS_OF_ACCOUNTS
from homeserver.resources import Resources

# Characters of a medium and address that an identity server names.
_BOUND_MAX = 512
# Errors of an identity server that a client understands and gets.
_PASSED_STATUSES = frozenset({400, 403, 404, 429})


class Address(msgspec.Struct, frozen=True):
    """An email address or phone number, and the identity server that is asked about it."""

    server: ServerName
    access_token: str
    medium: str
    address: str


class StoredInvite(msgspec.Struct, frozen=True):
    """What an identity server returns for an invite that it has stored. Spec: POST /store-invite"""

    class Key(msgspec.Struct, frozen=True):
        public_key: Annotated[str, Meta(max_length=limits.peers.IDENTITY_KEY_CHARACTERS_MAX)]
        key_validity_url: Annotated[str, Meta(max_length=limits.peers.IDENTITY_URL_CHARACTERS_MAX)]

    token: Annotated[str, Meta(pattern=r"\A[0-9a-zA-Z.=_-]{1,255}\Z")]
    public_keys: Annotated[list[Key], Meta(min_length=1, max_length=limits.peers.IDENTITY_KEYS_MAX)]
    display_name: Annotated[str, Meta(max_length=limits.peers.IDENTITY_NAME_CHARACTERS_MAX)]


def parse_address(id_server: str, id_access_token: str, medium: str, address: str) -> Address:
    """Returns the address of a client's request. Raises M_INVALID_PARAM."""
    try:
        server = parse_server_name(id_server)
    except InvalidIdentifier as error:
        raise invalid_param(f"id_server is invalid: {error}") from error
    if not (id_access_token.isascii() and id_access_token.isprintable() and " " not in id_access_token):
        raise invalid_param("id_access_token is not an access token.")
    # "implementations are expected to apply the unicode case-folding algorithm"
    address = address.casefold() if medium == "email" else address
    if not address or not medium or not (address.isprintable() and medium.isprintable()):
        raise invalid_param("medium and address must be the kind and the text of a third-party identifier.")
    return Address(server, id_access_token, medium, address)


def parse_id_server(id_server: str, id_access_token: str) -> ServerName:
    """Returns the identity server of a client's request. Raises M_INVALID_PARAM, also for an unusable token."""
    return parse_address(id_server, id_access_token, "email", "a").server


async def bind(
    hs: Resources, server: ServerName, access_token: str, sid: str, client_secret: str, user_id: UserID
) -> tuple[str, str]:
    """Tells an identity server that the address it has validated is the user's. Returns medium and address of it.

    Raises MatrixError. Spec: identity-service-api/#post_matrixidentityv23pidbind
    """
    about = Address(server, access_token, "", "")
    answer = await _ask(hs, about, "POST", "3pid/bind", {"sid": sid, "client_secret": client_secret, "mxid": user_id})
    medium, address = answer.get("medium"), answer.get("address")
    if not isinstance(medium, str) or not isinstance(address, str) or len(medium) + len(address) > _BOUND_MAX:
        raise _unusable(server)
    return medium, address


async def unbind(hs: Resources, server: ServerName, user_id: UserID, medium: str, address: str) -> bool:
    """Asks an identity server to forget that an address is the user's. Returns False if it does not take that.

    Raises MatrixError 400 if it cannot be reached. Spec: identity-service-api/#post_matrixidentityv23pidunbind
    """
    content = {"mxid": user_id, "threepid": {"medium": medium, "address": address}}
    uri = "/_matrix/identity/v2/3pid/unbind"
    authorization = build_authorization("POST", uri, hs.server_name, server, hs.signing_key, content)
    response = await _send(hs, server, authorization, "POST", "3pid/unbind", content)
    if response.status in (400, 404, 501):  # as the specification says of servers without support for it
        return False
    _check(server, response, _read_json(response))
    return True


async def look_up(hs: Resources, address: Address) -> UserID | None:
    """Returns the user who owns the address, None if the identity server knows nobody. Raises MatrixError 400, 403."""
    details = await _ask(hs, address, "GET", "hash_details")
    algorithms, pepper = details.get("algorithms"), details.get("lookup_pepper")
    if not isinstance(algorithms, list) or not isinstance(pepper, str):
        raise _unusable(address.server)
    if "sha256" in algorithms:
        digest = sha256(f"{address.address} {address.medium} {pepper}".encode()).digest()
        algorithm, hashed = "sha256", encode_base64(digest).translate(str.maketrans("+/", "-_"))
    elif "none" in algorithms:
        algorithm, hashed = "none", f"{address.address} {address.medium}"
    else:
        raise _useless(f"{address.server} knows no algorithm for look-ups that this server knows.")
    body = {"algorithm": algorithm, "pepper": pepper, "addresses": [hashed]}
    found = (await _ask(hs, address, "POST", "lookup", body)).get("mappings")
    if not isinstance(found, dict):
        raise _unusable(address.server)
    return None if hashed not in found else _read_user(address.server, found[hashed])


async def store_invite(hs: Resources, address: Address, details: Mapping[str, str]) -> StoredInvite | UserID:
    """Asks the identity server to store an invite, which it tells the owner of the address about.

    details: `room_id`, `sender`, and what the owner is told. Returns the user instead if the address has got an owner
    meanwhile. Raises MatrixError.
    """
    body = {**details, "medium": address.medium, "address": address.address}
    response = await _send(hs, address.server, _bearer(address), "POST", "store-invite", body)
    content = _read_json(response)
    if response.status == 400 and content is not None and content.get("errcode") == "M_THREEPID_IN_USE":
        return _read_user(address.server, content.get("mxid"))
    try:
        return msgspec.convert(_check(address.server, response, content), StoredInvite)
    except msgspec.ValidationError:
        raise _unusable(address.server) from None


async def is_key_valid(hs: Resources, url: str, public_key: str) -> bool:
    """Returns whether the URL of a public key says that it is valid. Raises MatrixError 502 if it does not answer.

    Spec: identity-service-api/#get_matrixidentityv2pubkeyisvalid
    """
    joined = "&" if "?" in url else "?"
    try:
        response = await hs.wire.request_url(
            "GET",
            f"{url}{joined}{urlencode({'public_key': public_key})}",
            headers={},
            timeout_s=limits.peers.IDENTITY_TIMEOUT_S,
            max_bytes=limits.peers.IDENTITY_ANSWER_BYTES_MAX,
        )
    except WireError:
        response = None
    content = None if response is None or response.status != 200 else _read_json(response)
    if content is None or not isinstance(content.get("valid"), bool):
        raise MatrixError(502, "M_UNKNOWN", "The identity server does not say whether its key is still valid.")
    return content["valid"] is True


async def _ask(
    hs: Resources, address: Address, method: str, path: str, content: Mapping[str, Any] | None = None
) -> JsonObject:
    response = await _send(hs, address.server, _bearer(address), method, path, content)
    return _check(address.server, response, _read_json(response))


def _bearer(address: Address) -> str:
    return f"Bearer {address.access_token}"


async def _send(
    hs: Resources, server: ServerName, authorization: str, method: str, path: str, content: Mapping[str, Any] | None
) -> WireResponse:
    headers = {"authorization": authorization}
    if content is not None:
        headers["content-type"] = "application/json"
    try:
        return await hs.wire.request_url(
            method,
            f"https://{server}/_matrix/identity/v2/{path}",
            headers=headers,
            body=None if content is None else to_json(content),
            timeout_s=limits.peers.IDENTITY_TIMEOUT_S,
            max_bytes=limits.peers.IDENTITY_ANSWER_BYTES_MAX,
        )
    except WireError as error:
        # Without the text of the error: it could tell users what names in our network resolve to.
        raise _useless(f"The identity server {server} cannot be reached.") from error


def _read_json(response: WireResponse) -> JsonObject | None:
    try:
        content = canonical_json.decode(response.body)
    except NotCanonical:
        return None
    return content if isinstance(content, dict) else None


def _check(server: ServerName, response: WireResponse, content: JsonObject | None) -> JsonObject:
    """Returns the content of a 200. Raises MatrixError for any other response."""
    if response.status == 200 and content is not None:
        return content
    if response.status == 401:
        # Passed on, it would look as if the access token for this server were wrong, and clients would log out.
        raise forbidden(f"{server} does not accept the id_access_token.")
    errcode = None if content is None else content.get("errcode")
    if response.status not in _PASSED_STATUSES or not isinstance(errcode, str) or not errcode.startswith("M_"):
        raise _unusable(server)
    if errcode in ERRORS_OF_ACCOUNTS:
        raise forbidden(f"{server} does not accept the id_access_token.")
    text = content.get("error") if content is not None else None
    shown = text[: limits.peers.IDENTITY_NAME_CHARACTERS_MAX] if isinstance(text, str) else str(server)
    status = 400 if response.status == 429 else response.status
    raise MatrixError(status, errcode[:100], shown)


def _read_user(server: ServerName, user_id: object) -> UserID:
    try:
        return parse_user_id(user_id)
    except InvalidIdentifier:
        raise _unusable(server) from None


def _unusable(server: ServerName) -> MatrixError:
    return _useless(f"The identity server {server} gave an unusable answer.")


def _useless(error: str) -> MatrixError:
    """Returns the error for a request that names an identity server of no use. The client has chosen it."""
    return MatrixError(400, "M_UNKNOWN", error)
