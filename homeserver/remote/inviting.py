"""Invites between servers: getting the signature of the invited user's server, and signing invites for our users.

Theory of operation. To invite a user of another server, we build the event at its place in the room without storing it,
and send it to that server. It checks and signs the event. We verify its signature, use nothing else of its answer, and
append the event if it is still allowed. A lock per room and user is held meanwhile: other servers that ask about this
membership, such as the invited user's server with a quick join, wait for it (`wait_for_invite`).

In the other direction we check and sign an invite for one of our users. If this server is in the room, the event will
arrive like any other one. Otherwise it is stored as an out-of-band invite (`outside`) with the stripped state that the
inviter sent.

Spec: server-server-api/#inviting-to-a-room
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import trio
from msgspec.structs import replace

from homeserver import limits
from homeserver.api.arguments import decode_wrapped
from homeserver.api.routes import Response, Routes
from homeserver.background import start_aside
from homeserver.database import Transaction
from homeserver.errors import MatrixError, bad_json, forbidden, invalid_param, missing_param, not_found
from homeserver.feature import JsonObject
from homeserver.federation import canonical_json
from homeserver.federation.build import SIGNATURE_BYTES_MAX, Draft, countersign
from homeserver.federation.event import PDU_BYTES_MAX, Event, InvalidEvent, parse_event
from homeserver.federation.hashing import signed_part
from homeserver.federation.identifiers import EventID, RoomID, ServerName, UserID, server_name_of
from homeserver.federation.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.federation.signing import verify_json, with_signature
from homeserver.process.peers import ACTION, peer
from homeserver.remote.access import is_allowed
from homeserver.remote.application_services import provide_invited
from homeserver.remote.checking import Dropped, check_good_pdus, check_pdu
from homeserver.remote.handshakes import invite_key, list_stripped_pdus
from homeserver.remote.keys import WantedKey, find_keys
from homeserver.remote.outside import check_room_for_invite, is_outside, read_stripped, store_outside
from homeserver.remote.policy_servers import recommend
from homeserver.remote.requests import Answer, Unreachable, put_event
from homeserver.resources import Resources
from homeserver.rooms.append import append_local, build_unplaced
from homeserver.rooms.blocking import check_not_blocked
from homeserver.rooms.graph import Missing
from homeserver.rooms.heads import find_head, get_head, state_content
from homeserver.rooms.membership import check_joined, find_membership
from homeserver.rooms.receive import receive_event
from homeserver.rooms.storage import Status
from homeserver.users.accounts import is_active
from homeserver.users.blocking import check_audience, check_takes_invites
from homeserver.users.profile import get_member_profile

_log = logging.getLogger("homeserver.federation")

routes = Routes()
_TAKES_AN_INVITE: dict[str, Any] = {
    "rate_limit": "federation_invite",
    "max_body_bytes": limits.peers.INVITE_BODY_BYTES_MAX,
    "decode": decode_wrapped,
}

# Inviting


async def invite_anyone(hs: Resources, draft: Draft) -> None:
    """Invites a user of this server or of another one. draft: the m.room.member event, which gets our user's profile.

    Raises MatrixError: 403 if it is not allowed; for users of other servers see `invite_user`.
    """
    assert draft.state_key is not None
    if server_name_of(draft.state_key) == hs.server_name:
        await provide_invited(hs, UserID(draft.state_key), draft.sender)
        await hs.database.write(_invite_ours, draft)
        return
    await hs.database.read(_check_may_invite, draft)
    await invite_user(hs, draft)


def _invite_ours(tx: Transaction, draft: Draft) -> None:
    _check_may_invite(tx, draft)
    target = UserID(draft.state_key or "")
    check_takes_invites(tx, target, UserID(draft.sender), draft.room_id or "")
    append_local(tx, replace(draft, content={**draft.content, **get_member_profile(tx, target)}))


def invite_here(tx: Transaction, draft: Draft) -> None:
    """Appends an invitation without asking anybody: for one that is undone, see `homeserver/users/shadow_bans.py`."""
    _check_may_invite(tx, draft)
    append_local(tx, draft)


def _check_may_invite(tx: Transaction, draft: Draft) -> None:
    """Raises MatrixError 403 with a better reason than the authorisation rules would give."""
    room_id, target = draft.room_id or "", draft.state_key or ""
    check_joined(tx, room_id, draft.sender)
    check_not_blocked(tx, room_id)
    membership = find_membership(tx, room_id, target)
    if membership == "join":
        raise forbidden(f"{target} is already in the room.")
    if membership == "ban":
        raise forbidden(f"{target} is banned from the room.")


async def invite_user(hs: Resources, draft: Draft) -> Event:
    """Invites a user of another server: appends the draft, an m.room.member, once that server has signed it.

    Until then, requests for the user's membership over federation wait: see `wait_for_invite`.
    Raises MatrixError: 403 not allowed here or there, 400 M_UNSUPPORTED_ROOM_VERSION, 502 the server does not answer.
    """
    assert draft.room_id is not None and draft.state_key is not None
    async with hs.peers.locks.hold(invite_key(draft.room_id, draft.state_key)):
        return await _invite_user(hs, draft, server_name_of(draft.state_key))


async def invite_users(hs: Resources, drafts: Sequence[Draft], seconds: float) -> None:
    """Invites users of other servers, different servers in parallel. Failures are logged, not raised.

    Returns when all servers have answered, but after `seconds` at the latest; the others continue. A server that does
    not answer is asked only once, however many of its users are invited.
    """
    by_server: dict[ServerName, list[Draft]] = defaultdict(list)
    for draft in drafts:
        assert draft.state_key is not None
        by_server[server_name_of(draft.state_key)].append(draft)
    answered = [trio.Event() for _ in by_server]
    for event, of_server in zip(answered, by_server.values(), strict=True):
        start_aside(hs, _invite_one_by_one, hs, of_server, event)
    with trio.move_on_after(seconds):
        for event in answered:
            await event.wait()


async def _invite_one_by_one(hs: Resources, drafts: Sequence[Draft], answered: trio.Event) -> None:
    try:
        for draft in drafts:
            try:
                await invite_user(hs, draft)
            except MatrixError as error:
                about = {"room_id": draft.room_id, "user_id": draft.state_key, "reason": error.error}
                _log.info("invitation not delivered", extra=about)
                if isinstance(error.__cause__, Unreachable):
                    return
    finally:
        answered.set()


async def _invite_user(hs: Resources, draft: Draft, destination: ServerName) -> Event:
    event = await recommend(hs, await hs.database.read(_build, draft))
    _check_size(event)
    state = await hs.database.read(list_stripped_pdus, event.room_id, event.sender)
    try:
        answer = await _ask_to_sign(hs, destination, event, state)
    except Unreachable as error:
        raise MatrixError(502, "M_UNKNOWN", f"The invitation could not be delivered: {error}") from error
    if answer.status != 200:
        raise _refusal(answer, destination)
    signed = await _with_their_signature(hs, destination, event, answer.content)
    return await hs.database.write(_append, signed)


def _build(tx: Transaction, draft: Draft) -> Event:
    """Returns the event, not appended yet. Raises MatrixError 403 if it is not allowed.

    The authorisation rules let users of other servers be invited to a room that they could never join.
    """
    create = state_content(tx, get_head(tx, draft.room_id or "").state_root, "m.room.create")
    if create is not None and create.get("m.federate") is False:
        raise forbidden("The room is only for users of this server: m.federate is false.")
    return build_unplaced(tx, draft)


def _check_size(event: Event) -> None:
    """Raises MatrixError 413 if the event would be too large with the other server's signature."""
    if len(canonical_json.encode(event.pdu, strict=False)) > PDU_BYTES_MAX - SIGNATURE_BYTES_MAX:
        raise MatrixError(413, "M_TOO_LARGE", "The invitation is too large: another server must sign it as well.")


async def _ask_to_sign(hs: Resources, destination: ServerName, event: Event, state: Sequence[JsonObject]) -> Answer:
    body = {"event": event.pdu, "room_version": event.version.id, "invite_room_state": list(state)}
    # By /v1 the peer could not learn the room version, and must assume one of the first two.
    has_old_version = event.version.references_with_hashes
    v1 = {**event.pdu, "unsigned": {"invite_room_state": list(state)}} if has_old_version else None
    return await put_event(hs, destination, ("invite", event.room_id, event.event_id), body, v1, cause=ACTION)


def _refusal(answer: Answer, destination: ServerName) -> MatrixError:
    if answer.errcode == "M_INCOMPATIBLE_ROOM_VERSION":
        return MatrixError(400, "M_UNSUPPORTED_ROOM_VERSION", f"{destination} does not know the version of that room.")
    return answer.error_for_event(destination)


async def _with_their_signature(hs: Resources, destination: ServerName, event: Event, content: object) -> Event:
    """Returns our event with their verified signature. Nothing else of their answer is used."""
    pdu = content.get("event") if isinstance(content, dict) else None
    signatures = pdu.get("signatures") if isinstance(pdu, dict) else None
    theirs = signatures.get(destination) if isinstance(signatures, dict) else None
    given = theirs if isinstance(theirs, dict) else {}
    wanted = [WantedKey(destination, key_id, event.origin_server_ts) for key_id in given]
    covered, signed = signed_part(event.pdu, event.version), event.pdu
    known = (await find_keys(hs, wanted, ACTION)).get(destination, {})
    for key_id in given.keys() & known.keys():  # the server may have more keys than it signed with
        with_theirs = with_signature(covered, destination, key_id, given[key_id])
        if verify_json(with_theirs, destination, key_id, known[key_id].key_base64):
            signed = with_signature(signed, destination, key_id, given[key_id])
    if signed is event.pdu:
        raise MatrixError(502, "M_UNKNOWN", f"{destination} did not sign the invitation.")
    try:
        return parse_event(signed, event.version)
    except InvalidEvent as error:
        raise MatrixError(502, "M_UNKNOWN", f"{destination} did not sign correctly: {error}") from error


def _append(tx: Transaction, event: Event) -> Event:
    outcome = receive_event(tx, event)
    if isinstance(outcome, Missing) or outcome.status != Status.TIMELINE:
        raise forbidden("The room has changed in the meantime, and you may not invite users any more.")
    return event


# Being invited


@routes.put("/_matrix/federation/v2/invite/{room_id}/{event_id}", **_TAKES_AN_INVITE)
async def send_invite_v2(
    hs: Resources, origin: ServerName, room_id: RoomID, event_id: EventID, body: dict
) -> JsonObject:
    version = _read_version(body.get("room_version"))
    if not isinstance(body.get("event"), dict):
        raise bad_json("event must be an object.")
    event = await _receive_invite(hs, origin, room_id, event_id, body["event"], version)
    stripped = await _read_room_state(hs, event, body.get("invite_room_state"))
    await hs.database.read(_check_wanted, event, stripped)
    await hs.database.write(_store_if_outside, hs.server_name, event, stripped)
    return {"event": event.pdu}


@routes.put("/_matrix/federation/v1/invite/{room_id}/{event_id}", **_TAKES_AN_INVITE)
async def send_invite_v1(hs: Resources, origin: ServerName, room_id: RoomID, event_id: EventID, body: dict) -> Response:
    unsigned = body.get("unsigned")
    state = unsigned.get("invite_room_state") if isinstance(unsigned, dict) else None
    # "Servers which receive a v1 invite request must assume that the room version is either "1" or "2"."
    event = await _receive_invite(hs, origin, room_id, event_id, body, ROOM_VERSIONS["1"])
    stripped = read_stripped(state)
    await hs.database.read(_check_wanted, event, stripped)
    await hs.database.write(_store_if_outside, hs.server_name, event, stripped)
    return Response(200, [200, {"event": event.pdu}])


def _read_version(room_version: object) -> RoomVersion:
    if not isinstance(room_version, str):
        raise missing_param("room_version is required.")
    version = ROOM_VERSIONS.get(room_version)
    if version is None:
        error = "This server does not know that room version."
        raise MatrixError(400, "M_INCOMPATIBLE_ROOM_VERSION", error, room_version=room_version)
    return version


async def _receive_invite(
    hs: Resources,
    origin: ServerName,
    room_id: RoomID,
    event_id: EventID,
    pdu: Mapping[str, Any],
    version: RoomVersion,
) -> Event:
    """Returns the invite with our signature. Raises MatrixError 400, 403 or 404 as specified for PUT /v2/invite."""
    checked = await check_pdu(hs, dict(pdu), version, room_id, peer(origin), {origin})
    if isinstance(checked, Dropped):
        raise checked.error()
    event = checked
    if event.event_id != event_id:
        raise invalid_param("The event does not have the ID in the path.")
    if event.type != "m.room.member" or event.membership != "invite":
        raise invalid_param("The event is not an invite.")
    if server_name_of(event.sender) != origin:
        raise invalid_param("The inviter is not a user of your server.")
    if event.state_key is None or event.state_key.partition(":")[2] != hs.server_name:
        raise invalid_param("The invited user does not belong to this server.")
    await provide_invited(hs, UserID(event.state_key))
    await hs.database.read(_check_invite, hs.server_name, event, UserID(event.state_key), origin)
    try:
        return parse_event(countersign(event, hs.server_name, hs.signing_key).pdu, version)
    except InvalidEvent as error:
        raise MatrixError(413, "M_TOO_LARGE", f"The event has no room for our signature: {error}") from None


def _check_invite(tx: Transaction, own: ServerName, event: Event, invited: UserID, origin: ServerName) -> None:
    if not is_active(tx, invited):
        raise not_found("There is no such user.")
    check_not_blocked(tx, event.room_id)
    head = find_head(tx, event.room_id)
    if head is None or is_outside(tx, own, event.room_id):
        return
    if not is_allowed(tx, head, origin):
        raise forbidden("The room's server ACL does not allow your server.")
    if head.version is not event.version:
        raise invalid_param("The room has another version.")
    if find_membership(tx, event.room_id, invited) in ("join", "ban"):
        raise forbidden("The user is already in the room, or banned from it.")


async def _read_room_state(hs: Resources, event: Event, state: object) -> list[JsonObject]:
    """Returns the stripped state. From room version 12 on it must be whole PDUs, including the create event."""
    stripped = read_stripped(state)
    if not event.version.room_id_is_create_event_id:
        return stripped
    if not isinstance(state, list):
        raise missing_param("invite_room_state is required.")
    if len(state) > limits.peers.STRIPPED_EVENTS_MAX:
        raise invalid_param(f"invite_room_state has more than {limits.peers.STRIPPED_EVENTS_MAX} events.")
    events = await check_good_pdus(hs, state, event.version, event.room_id, peer(server_name_of(event.sender)))
    if len(events) != len(state):
        raise invalid_param("invite_room_state contains something that is not a signed event of the room.")
    if not any(each.type == "m.room.create" for each in events):
        raise invalid_param("invite_room_state has no m.room.create.")
    return stripped


def _check_wanted(tx: Transaction, event: Event, stripped: list[JsonObject]) -> None:
    """Raises MatrixError 403 if the invited user's settings do not include the inviter."""
    check_audience(tx, UserID(event.state_key or ""), UserID(event.sender), stripped)


def _store_if_outside(tx: Transaction, own: ServerName, event: Event, stripped: list[JsonObject]) -> None:
    """Stores the invite for the user, unless this server is in the room: then it arrives like every other event.

    Raises MatrixError 403 if the user has too many pending invites.
    """
    if is_outside(tx, own, event.room_id):
        check_room_for_invite(tx, event, stripped)
        store_outside(tx, event, stripped)
