"""Third-party invites: inviting by email address or phone number, and turning such an invite into one of a user.

Theory of operation
1. `invite_by_address` asks the identity server that the client names for the owner of the address, who is invited like
   anybody else. If there is none, the identity server stores an invite, and an m.room.third_party_invite event with its
   token and public keys goes to the room. Sending that event again without keys revokes the invite.
2. When a user gets the address, the identity server notifies the user's server (`on_bind_third_party_identifier`) with
   a proof: the token and the user ID, signed. A client may also bring the proof when it joins.
3. That server turns each proof into an invite (`claim_invite`). If it is in the room, it appends an m.room.member with
   the proof. Otherwise it asks the inviter's server to do so (`exchange_third_party_invite`).
4. The server that appends it checks the proof by the authorisation rules, then whether the key is still valid. No
   other server may check the latter: all must come to the same result.

Repeating a request changes nothing while the user is invited with this token, or in the room. Notifications come from
anybody, since nothing in them says who sent them. So they do only what their proofs allow, and the requests that they
cause are counted against the sender's address. A notification counts as processed when each of its invites was sent or
refused; if a server could not be reached, the identity server gets an error, and has to repeat it.

Spec: client-server-api/#third-party-invites, server-server-api/#third-party-invites
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
import trio
from msgspec import Meta
from msgspec.structs import replace

from homeserver import limits
from homeserver.api.routes import Empty, Request, Routes
from homeserver.background import start_aside
from homeserver.database import Transaction
from homeserver.errors import MatrixError, bad_json, forbidden, invalid_param, missing_param, not_found
from homeserver.feature import JsonObject
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import (
    InvalidIdentifier,
    RoomID,
    ServerName,
    UserID,
    parse_room_id,
    parse_user_id,
    server_name_of,
)
from homeserver.federation.third_party_invites import InviteKey, find_proving_keys
from homeserver.process.peers import PERSON, Cause
from homeserver.remote.access import is_resident, resident_head
from homeserver.remote.identity_server import Address, StoredInvite, is_key_valid, look_up, store_invite
from homeserver.remote.inviting import invite_anyone, invite_user
from homeserver.remote.keys import take_stranger
from homeserver.remote.receiving import note_relay
from homeserver.remote.requests import ask, path_to
from homeserver.resources import Resources
from homeserver.rooms.append import append_local, build_unplaced
from homeserver.rooms.heads import get_head, state_content, state_events
from homeserver.rooms.membership import check_joined
from homeserver.rooms.storage import find_position
from homeserver.users.accounts import is_active
from homeserver.users.blocking import check_takes_invites
from homeserver.users.profile import get_member_profile

_log = logging.getLogger("homeserver.federation")

EVENT_TYPE = "m.room.third_party_invite"
# What the owner of an address is told about the room: field, type of state event, key of its content.
_TOLD_OF_ROOM = (
    ("room_alias", "m.room.canonical_alias", "alias"),
    ("room_avatar_url", "m.room.avatar", "url"),
    ("room_join_rules", "m.room.join_rules", "join_rule"),
    ("room_name", "m.room.name", "name"),
    ("room_type", "m.room.create", "type"),
)

routes = Routes()


class Claim(msgspec.Struct, frozen=True):
    """A claim to a third-party invite. signed: the proof, with `mxid` (the user) and `token`, as it was signed."""

    room_id: RoomID
    sender: UserID
    user_id: UserID
    signed: Mapping[str, Any]


# Inviting


async def invite_by_address(hs: Resources, draft: Draft, address: Address) -> None:
    """Invites the owner of the address, now or once there is one.

    draft: the m.room.member event for an owner, without state key.
    Raises MatrixError: 403 not allowed in the room or by the identity server, 400 the identity server is of no use.
    """
    assert draft.room_id is not None
    details = await hs.database.read(_check_may_invite, draft.room_id, UserID(draft.sender))
    owner = await look_up(hs, address)
    stored = owner if owner is not None else await store_invite(hs, address, details)
    if isinstance(stored, StoredInvite):
        invite = Draft(draft.room_id, draft.sender, EVENT_TYPE, _invite_content(stored), state_key=stored.token)
        await hs.database.write(append_local, invite)
    else:
        await invite_anyone(hs, replace(draft, state_key=stored))


async def invite_addresses(hs: Resources, draft: Draft, addresses: Sequence[Address], seconds: float) -> None:
    """Invites the owners of several addresses, one after another. Failures are logged, not raised.

    Returns when all have been invited, but after `seconds` at the latest; the others continue.
    """
    done = trio.Event()
    start_aside(hs, _invite_one_by_one, hs, draft, addresses, done)
    with trio.move_on_after(seconds):
        await done.wait()


async def _invite_one_by_one(hs: Resources, draft: Draft, addresses: Sequence[Address], done: trio.Event) -> None:
    try:
        for address in addresses:
            try:
                await invite_by_address(hs, draft, address)
            except MatrixError as error:
                about = {"room_id": draft.room_id, "identity_server": address.server, "reason": error.error}
                _log.info("invitation by address not sent", extra=about)
    finally:
        done.set()


def _check_may_invite(tx: Transaction, room_id: RoomID, sender: UserID) -> dict[str, str]:
    """Returns what an identity server is told about the room and the inviter. Raises MatrixError 403."""
    check_joined(tx, room_id, sender)
    build_unplaced(tx, Draft(room_id, sender, EVENT_TYPE, {}, state_key="token"))
    root = get_head(tx, room_id).state_root
    profile = get_member_profile(tx, sender)
    told: dict[str, object] = {
        name: (state_content(tx, root, event_type) or {}).get(key) for name, event_type, key in _TOLD_OF_ROOM
    }
    told |= {"sender_display_name": profile.get("displayname"), "sender_avatar_url": profile.get("avatar_url")}
    texts = {name: value for name, value in told.items() if isinstance(value, str)}
    return {**texts, "room_id": room_id, "sender": sender}


def _invite_content(stored: StoredInvite) -> JsonObject:
    keys = [{"public_key": key.public_key, "key_validity_url": key.key_validity_url} for key in stored.public_keys]
    return {"display_name": stored.display_name, **keys[0], "public_keys": keys}


# Claiming


def read_claim(room_id: RoomID, sender: object, user_id: UserID, signed: object) -> Claim:
    """Returns the claim of a request. Raises MatrixError 400 if its parts do not fit together, 403 for another user."""
    if not isinstance(signed, dict):
        raise bad_json("signed must be an object.")
    for name, kind in (("mxid", str), ("token", str), ("signatures", dict)):
        if name not in signed:
            raise missing_param(f"signed has no {name}.")
        if not isinstance(signed[name], kind):
            raise bad_json(f"{name} of signed is of the wrong type.")
    if signed["mxid"] != user_id:
        raise forbidden("The invite is for another user.")
    try:
        return Claim(room_id, parse_user_id(sender), user_id, signed)
    except InvalidIdentifier as error:
        raise invalid_param(f"sender is invalid: {error}") from error


async def claim_invite(hs: Resources, claim: Claim, cause: Cause = PERSON) -> None:
    """Turns the third-party invite into an invite of a user of this server.

    Raises MatrixError: 403 the proof is not right or not valid any more, 404 unknown room, 502 no answer.
    """
    await hs.database.read(check_takes_invites, claim.user_id, claim.sender, claim.room_id)
    if await hs.database.read(is_resident, hs.server_name, claim.room_id):
        await _append_invite(hs, claim, hs.server_name)
        return
    destination = server_name_of(claim.sender)
    if destination == hs.server_name:
        raise not_found("This server is not in that room.")
    body = {
        "type": "m.room.member",
        "room_id": claim.room_id,
        "sender": claim.sender,
        "state_key": claim.user_id,
        "content": {"membership": "invite", "third_party_invite": {"display_name": "", "signed": claim.signed}},
    }
    await ask(hs, destination, "PUT", path_to("v1", "exchange_third_party_invite", claim.room_id), body, cause=cause)


async def _append_invite(hs: Resources, claim: Claim, origin: ServerName) -> None:
    """Appends the invite with its proof, after checking both. origin: the server that asks for it."""
    found = await hs.database.read(_check_claim, claim, origin)
    if found is None:
        return
    draft, keys = found
    if not await _is_any_valid(hs, keys):
        raise forbidden("The identity server has revoked the key of this invite.")
    if server_name_of(claim.user_id) == hs.server_name:
        await hs.database.write(_append_of_ours, claim, draft)
    else:
        await invite_user(hs, draft)


def _check_claim(tx: Transaction, claim: Claim, origin: ServerName) -> tuple[Draft, list[InviteKey]] | None:
    """Returns the invite and the keys that prove it, None if it was placed before. Raises MatrixError 403 or 404."""
    head = resident_head(tx, tx.server.name, claim.room_id, origin)
    token = claim.signed["token"]
    key, member = (EVENT_TYPE, token), ("m.room.member", claim.user_id)
    state = state_events(tx, head.state_root, (key, member))
    if member in state and state[member].membership == "join":
        raise forbidden("The user is already in the room.")
    if member in state and state[member].membership == "invite" and _token_of(state[member].content) == token:
        return None
    if key not in state:
        raise forbidden("The room has no such third-party invite.")
    invite = state[key].content
    name = invite.get("display_name")
    proof = {"display_name": name if isinstance(name, str) else "", "signed": claim.signed}
    content: JsonObject = {"membership": "invite", "third_party_invite": proof}
    draft = Draft(claim.room_id, claim.sender, "m.room.member", content, state_key=claim.user_id)
    build_unplaced(tx, draft)
    keys = list(dict.fromkeys(find_proving_keys(claim.signed, invite)))
    return draft, keys[: limits.peers.INVITE_KEYS_ASKED_MAX]


def _token_of(content: Mapping[str, Any]) -> object:
    proof = content.get("third_party_invite")
    signed = proof.get("signed") if isinstance(proof, dict) else None
    return signed.get("token") if isinstance(signed, dict) else None


async def _is_any_valid(hs: Resources, keys: Sequence[InviteKey]) -> bool:
    """Returns whether one of the keys has not been revoked. Raises MatrixError 502 if that cannot be found out."""
    failure: MatrixError | None = None
    for key in keys:
        try:
            if key.validity_url is None or await is_key_valid(hs, key.validity_url, key.public_key):
                return True
        except MatrixError as error:
            failure = error
    if failure is not None:
        raise failure
    return False


def _append_of_ours(tx: Transaction, claim: Claim, draft: Draft) -> None:
    """Invites a user of this server. If the inviter is not one of ours, only we have the event, and send it."""
    if _check_claim(tx, claim, tx.server.name) is None:
        return  # another request was faster
    check_takes_invites(tx, claim.user_id, claim.sender, claim.room_id)
    content = {**draft.content, **get_member_profile(tx, claim.user_id)}
    event = append_local(tx, replace(draft, content=content))
    position = find_position(tx, event.event_id)
    if server_name_of(draft.sender) != tx.server.name and position is not None:
        note_relay(tx, position, is_ours=True)


# Requests of others


class ProofContent(msgspec.Struct, frozen=True):
    class Proof(msgspec.Struct, frozen=True):
        signed: dict[str, Any]

    membership: Literal["invite"]
    third_party_invite: Proof


class ExchangeBody(msgspec.Struct, frozen=True):
    """Spec: server-server-api/#put_matrixfederationv1exchange_third_party_inviteroomid"""

    type: Literal["m.room.member"]
    room_id: RoomID
    sender: UserID
    state_key: UserID
    content: ProofContent


class BoundInvite(msgspec.Struct, frozen=True):
    """A pending invite for an address that has got an owner."""

    mxid: str
    room_id: str
    sender: str
    signed: dict[str, Any]


class BindingBody(msgspec.Struct, frozen=True):
    """Spec: server-server-api/#put_matrixfederationv13pidonbind"""

    medium: str
    address: str
    mxid: UserID
    invites: Annotated[list[BoundInvite], Meta(max_length=limits.peers.BINDING_INVITES_MAX)]


@routes.put(
    "/_matrix/federation/v1/exchange_third_party_invite/{room_id}",
    rate_limit="federation_invite",
    max_body_bytes=limits.peers.PDU_BODY_BYTES_MAX,
)
async def exchange_third_party_invite(hs: Resources, origin: ServerName, room_id: RoomID, body: ExchangeBody) -> Empty:
    if body.room_id != room_id:
        raise invalid_param("room_id is not the room in the path.")
    if server_name_of(body.state_key) != origin:
        raise forbidden("The invited user does not belong to your server.")
    if server_name_of(body.sender) != hs.server_name:
        raise forbidden("The inviter does not belong to this server.")
    claim = read_claim(room_id, body.sender, body.state_key, body.content.third_party_invite.signed)
    await _append_invite(hs, claim, origin)
    return Empty()


@routes.put("/_matrix/federation/v1/3pid/onbind", rate_limit="third_party_bindings")
async def on_bind_third_party_identifier(hs: Resources, body: BindingBody, request: Request) -> Empty:
    claims = [_read_invite(invite, body.mxid) for invite in body.invites]
    if server_name_of(body.mxid) != hs.server_name or not await hs.database.read(is_active, body.mxid):
        raise not_found("There is no such user on this server.")
    cause = take_stranger(hs, request.client_ip, len(claims))
    turns = trio.CapacityLimiter(limits.peers.BINDING_INVITES_AT_ONCE)
    unreached: list[MatrixError] = []

    async def claim_one(claim: Claim) -> None:
        async with turns:
            try:
                await claim_invite(hs, claim, cause)
            except MatrixError as error:
                about = {"room_id": claim.room_id, "user_id": claim.user_id, "reason": error.error}
                _log.info("third-party invite not delivered", extra=about)
                if error.status >= 500:
                    unreached.append(error)

    with trio.move_on_after(limits.peers.BINDING_SECONDS_MAX) as deadline:
        async with trio.open_nursery() as nursery:
            for claim in claims:
                nursery.start_soon(claim_one, claim)
    if deadline.cancelled_caught:
        raise MatrixError(504, "M_UNKNOWN", "The servers of the inviters are too slow: repeat the notification later.")
    if unreached:
        raise unreached[0]
    return Empty()


def _read_invite(invite: BoundInvite, user_id: UserID) -> Claim:
    if invite.mxid != user_id:
        raise invalid_param("The invites must be for the user that the address belongs to.")
    try:
        room_id = parse_room_id(invite.room_id)
    except InvalidIdentifier as error:
        raise invalid_param(f"room_id is invalid: {error}") from error
    return read_claim(room_id, invite.sender, user_id, invite.signed)
