"""Calls of several people: where their media server is, and the tokens that let clients in. Spec: MSC4143, MSC4195

The media of a call goes through LiveKit, which knows no Matrix users. A client proves its user with an OpenID token,
and gets a LiveKit token for the room of the call. The requests are those of lk-jwt-service, which this server replaces:
`/get_token`, and `/sfu/get` for clients from before. Users of every server may come in, because a call has one media
server for each of its members' servers. A room of LiveKit is made for users of this server only, and of those that
`rtc.full_access` lists; LiveKit must not make rooms for others by itself.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from base64 import b64encode, urlsafe_b64encode
from typing import Any

import msgspec

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester, get_account_flags
from homeserver.config import read_secret
from homeserver.encoding import to_json
from homeserver.errors import MatrixError, bad_json, not_found
from homeserver.feature import Feature, JsonObject
from homeserver.federation import canonical_json
from homeserver.federation.canonical_json import NotCanonical
from homeserver.federation.identifiers import InvalidIdentifier, UserID, parse_server_name, server_name_of
from homeserver.federation.wire import WireError
from homeserver.limits import Bucket
from homeserver.remote.openid import find_openid_user
from homeserver.resources import Resources

TOKEN_LIFETIME_S = 3600  # as lk-jwt-service: a client that connects again asks for another
API_TOKEN_LIFETIME_S = 60
API_TIMEOUT_S = 10.0
API_ANSWER_BYTES_MAX = 64 * 1024
# How long LiveKit keeps a room that nobody has entered, and one that everybody has left.
EMPTY_ROOM_S = 5 * 60
DESERTED_ROOM_S = 20
# Identifiers of rooms, slots, devices and members: each is an identifier of Matrix or a UUID.
NAME_CHARACTERS_MAX = 255
# The slot of calls. Requests of older clients do not name one.
CALL_SLOT = "m.call#ROOM"

_log = logging.getLogger(__name__)

routes = Routes()


class OpenIdToken(msgspec.Struct, frozen=True):
    """What a client got from its server, see `openid.py`."""

    access_token: str
    matrix_server_name: str


class Member(msgspec.Struct, frozen=True):
    """The `member` of an m.rtc.member event."""

    id: str
    claimed_user_id: str
    claimed_device_id: str


class TokenBody(msgspec.Struct, frozen=True):
    room_id: str
    slot_id: str
    openid_token: OpenIdToken
    member: Member
    delay_id: str | None = None


class OldTokenBody(msgspec.Struct, frozen=True):
    room: str
    openid_token: OpenIdToken
    device_id: str
    delay_id: str | None = None


@routes.get("/_matrix/client/unstable/org.matrix.msc4143/rtc/transports", allow_guest=True)
async def get_rtc_transports(hs: Resources, requester: Requester) -> JsonObject:
    return {"rtc_transports": hs.config.rtc.list_transports(hs.config.base_url)}


@routes.post("/_homeserver/client/v1/rtc/get_token", rate_limit="rtc_token")
async def get_livekit_token(hs: Resources, body: TokenBody) -> JsonObject:
    member = body.member
    _check_names(body.room_id, body.slot_id, member.id, member.claimed_user_id, member.claimed_device_id)
    user_id = await _find_user(hs, body.openid_token, body.delay_id)
    if user_id != member.claimed_user_id:
        raise _unauthorized()
    identity = _digest(user_id, member.claimed_device_id, member.id)
    return await _let_in(hs, user_id, _digest(body.room_id, body.slot_id), identity)


@routes.post("/_homeserver/client/v1/rtc/sfu/get", rate_limit="rtc_token")
async def get_livekit_token_by_room(hs: Resources, body: OldTokenBody) -> JsonObject:
    """Does the same for clients from before there were slots."""
    _check_names(body.room, body.device_id)
    user_id = await _find_user(hs, body.openid_token, body.delay_id)
    return await _let_in(hs, user_id, _digest(body.room, CALL_SLOT), f"{user_id}:{body.device_id}")


def _check_names(*names: str) -> None:
    if not all(0 < len(name) <= NAME_CHARACTERS_MAX for name in names):
        raise bad_json(f"Room, slot, user, device and member must have 1 to {NAME_CHARACTERS_MAX} characters each.")


async def _find_user(hs: Resources, token: OpenIdToken, delay_id: str | None) -> UserID:
    """Returns who has the token. Raises 401 M_UNAUTHORIZED if it is not valid."""
    if not hs.config.rtc.livekit_url:
        raise not_found("This server does not give out tokens for a media server.")
    if delay_id is not None:  # clients try again without
        raise bad_json("This server does not watch over delayed events: leave out delay_id.")
    try:
        server_name = parse_server_name(token.matrix_server_name)
    except InvalidIdentifier:
        raise _unauthorized() from None
    user_id = await find_openid_user(hs, server_name, token.access_token)
    if user_id is None:
        raise _unauthorized()
    return user_id


def _unauthorized() -> MatrixError:
    return MatrixError(401, "M_UNAUTHORIZED", "The OpenID token is not valid, or is another user's.")


def _digest(*names: str) -> str:
    """Returns the name of a room or a member in LiveKit, as every token service derives it. Spec: MSC4195"""
    try:
        encoded = canonical_json.encode(list(names))
    except NotCanonical as error:
        raise bad_json(str(error)) from None
    return b64encode(hashlib.sha256(encoded).digest()).decode().rstrip("=")


async def _let_in(hs: Resources, user_id: UserID, room: str, identity: str) -> JsonObject:
    """Returns a token for a room of LiveKit, which is made first if the user may begin a call."""
    rtc = hs.config.rtc
    server_name = server_name_of(user_id)
    if server_name == hs.server_name or {server_name, "*"} & set(rtc.full_access):
        await _create_room(hs, room)
    grant = {"room": room, "roomJoin": True, "canPublish": True, "canSubscribe": True, "canUpdateOwnMetadata": True}
    if (await hs.database.read(get_account_flags, user_id)).is_shadow_banned:
        grant |= {"canPublish": False, "canPublishData": False, "canUpdateOwnMetadata": False, "hidden": True}
    return {"url": rtc.livekit_url, "jwt": _sign(hs, {"sub": identity, "video": grant}, TOKEN_LIFETIME_S)}


async def _create_room(hs: Resources, room: str) -> None:
    """Makes a room of LiveKit, unless there is one. Raises 502 if LiveKit does not do so."""
    token = _sign(hs, {"video": {"roomCreate": True}}, API_TOKEN_LIFETIME_S)
    settings = {"name": room, "empty_timeout": EMPTY_ROOM_S, "departure_timeout": DESERTED_ROOM_S}
    try:
        answer = await hs.wire.request_service(
            "POST",
            f"{hs.config.rtc.api_url}/twirp/livekit.RoomService/CreateRoom",
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            body=to_json(settings),
            timeout_s=API_TIMEOUT_S,
            max_bytes=API_ANSWER_BYTES_MAX,
        )
        reason = "" if answer.status == 200 else f"status {answer.status}"
    except WireError as error:
        reason = str(error)
    if reason:
        _log.warning("the media server made no room for a call", extra={"reason": reason})
        raise MatrixError(502, "M_UNKNOWN", "The media server did not make a room for the call.")


def _sign(hs: Resources, claims: dict[str, Any], lifetime_s: int) -> str:
    """Returns a token of LiveKit: a JWT with the signature HS256 (RFC 7519)."""
    rtc, now_s = hs.config.rtc, hs.now_ms() // 1000
    secret = read_secret("rtc.livekit_secret_file", rtc.livekit_secret_file)
    whole = {"iss": rtc.livekit_key, "nbf": now_s, "exp": now_s + lifetime_s, **claims}
    signed = b".".join(map(_encode, (to_json({"alg": "HS256", "typ": "JWT"}), to_json(whole))))
    signature = hmac.digest(secret.encode(), signed, hashlib.sha256)
    return b".".join((signed, _encode(signature))).decode()


def _encode(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")


FEATURE = Feature(
    name="rtc",
    spec="MSC4143, MSC4195",
    routes=routes,
    # For each address. A client asks once for each media server of a call, of which there may be some dozens.
    limits={"rtc_token": Bucket(100, 2)},
    unstable_features={"org.matrix.msc4143": True},
)
