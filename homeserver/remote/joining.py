"""Entering a room that this server is not in, by a handshake with a server that is. `leaves` uses it to leave a room.

Theory of operation. A handshake has two steps, and each may fail:

1. `make`: a resident server proposes a template. We use only its place in the graph (prev_events, auth_events, depth),
   and build and sign an event of our own. Templates are requested from one candidate after another; a slow one does
   not block the next. The first template to arrive is used.
2. `send`: the resident server adds our event to the room. Its answer to a join is the state of the room, which may not
   fit into memory, so it is collected in a file (`collecting`).

A refusal by one server may not be final, because another may be able to decide (_WORTH_ANOTHER). If all fail, the user
sees the most informative refusal. `_enter` checks the collected state, stores it, and adopts the room with our join as
its only extremity (`rooms.receive.adopt_room`).

A resident server may accept a join that we then cannot complete, be it because of a crash. Other servers would go on
believing that our user is in the room. So a join is noted before it is sent (`pending_leaves`), and is undone there
unless the room is entered.

Spec: server-server-api/#joining-rooms, #knocking-rooms, #leaving-rooms-rejecting-invites
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import msgspec
import trio

from homeserver import limits
from homeserver.database import Transaction
from homeserver.errors import MatrixError, StorageError, forbidden, not_found
from homeserver.feature import JsonObject
from homeserver.federation.build import Draft, sign_event
from homeserver.federation.event import Event, InvalidEvent, check_references, parse_event
from homeserver.federation.identifiers import EventID, InvalidIdentifier, RoomID, ServerName, UserID, server_name_of
from homeserver.federation.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.federation.wire.racing import race
from homeserver.process.peers import ACTION
from homeserver.remote.answers import ask_many
from homeserver.remote.checking import Dropped, check_pdu
from homeserver.remote.collecting import Collected
from homeserver.remote.fetching import store_collected
from homeserver.remote.gaps import receive_events
from homeserver.remote.outside import (
    forget_outside,
    is_outside,
    list_outside_servers,
    read_stripped,
    store_outside,
)
from homeserver.remote.pending_leaves import forget_join, note_failed_join, note_join
from homeserver.remote.receiving import note_relay
from homeserver.remote.requests import Answer, Unreachable, ask, path_to, put_event, send_signed
from homeserver.resources import Resources
from homeserver.rooms.append import append_local
from homeserver.rooms.blocking import check_not_blocked
from homeserver.rooms.graph import Missing
from homeserver.rooms.membership import find_membership
from homeserver.rooms.receive import Received, adopt_room
from homeserver.rooms.storage import Status, find_positions
from homeserver.users.blocking import check_pending

_log = logging.getLogger("homeserver.federation")

Handshake = Literal["join", "leave", "knock"]

# After one of these another server may decide differently, or may be able to decide. All other refusals are final.
_WORTH_ANOTHER = frozenset({"M_UNABLE_TO_AUTHORISE_JOIN", "M_UNABLE_TO_GRANT_JOIN", "M_NOT_FOUND", "M_UNKNOWN"})


class Accepted(msgspec.Struct, frozen=True):
    """Our event as accepted by a resident server, and its answer. `state`: the events in its answer to a join."""

    server: ServerName
    event: Event
    answer: JsonObject
    state: Collected | None = None


async def join_room(
    hs: Resources, user_id: UserID, room_id: RoomID, via: Sequence[ServerName], content: Mapping[str, Any]
) -> RoomID:
    """Joins through one of the servers `via`, which are tried in turn. Raises MatrixError with the best refusal."""
    async with hs.peers.locks.hold(("join", room_id)):
        if not await hs.database.read(is_outside, hs.server_name, room_id):
            # Another local user has joined meanwhile. A restricted room may still require more than we can provide.
            draft = Draft(room_id, user_id, "m.room.member", {**content, "membership": "join"}, state_key=user_id)
            try:
                await hs.database.write(_append, draft)
                return room_id
            except MatrixError as error:
                if error.errcode != "M_FORBIDDEN":
                    raise
        candidates = await list_candidates(hs, user_id, room_id, via)
        try:
            accepted = await _join_as_invited(hs, user_id, room_id, candidates, content)
            await _enter(hs, accepted)
        except (MatrixError, StorageError):
            await hs.database.note(note_failed_join, room_id, user_id)
            raise
    return room_id


async def _join_as_invited(
    hs: Resources, user_id: UserID, room_id: RoomID, candidates: Sequence[ServerName], content: Mapping[str, Any]
) -> Accepted:
    """Returns our accepted join. If the user was invited, a refusal is not considered final at once."""
    for pause_s in limits.peers.INVITED_JOIN_PAUSES_S:
        try:
            return await _shake_hands(hs, "join", user_id, room_id, candidates, content)
        except MatrixError as error:
            if error.errcode != "M_FORBIDDEN":
                raise
            if await hs.database.read(find_membership, room_id, user_id) != "invite":
                raise
        await trio.sleep(pause_s)
    return await _shake_hands(hs, "join", user_id, room_id, candidates, content)


async def knock_room(
    hs: Resources, user_id: UserID, room_id: RoomID, via: Sequence[ServerName], content: Mapping[str, Any]
) -> RoomID:
    """Knocks through one of the servers `via`. Raises MatrixError with the best refusal."""
    async with hs.peers.locks.hold(("join", room_id)):
        if not await hs.database.read(is_outside, hs.server_name, room_id):
            draft = Draft(room_id, user_id, "m.room.member", {**content, "membership": "knock"}, state_key=user_id)
            await hs.database.write(_append, draft)
            return room_id
        await hs.database.read(check_pending, user_id)
        candidates = await list_candidates(hs, user_id, room_id, via)
        accepted = await _shake_hands(hs, "knock", user_id, room_id, candidates, content)
        stripped = read_stripped(accepted.answer.get("knock_room_state"))
        await hs.database.write(store_outside, accepted.event, stripped)
    return room_id


def _append(tx: Transaction, draft: Draft) -> EventID:
    return append_local(tx, draft).event_id


async def list_candidates(
    hs: Resources, user_id: UserID, room_id: RoomID, via: Iterable[ServerName]
) -> list[ServerName]:
    """Returns the servers to ask: `via`, the inviter's, that of the room ID. Raises MatrixError 404 without any."""
    found = [*via, *await hs.database.read(list_outside_servers, room_id, user_id)]
    try:
        found.append(server_name_of(room_id))
    except InvalidIdentifier:
        pass  # from room version 12 on, room IDs contain no server
    others = [server for server in dict.fromkeys(found) if server != hs.server_name]
    if not others:
        raise not_found("This server does not know any server in that room.")
    return others[: limits.peers.JOIN_SERVERS_MAX]


async def _shake_hands(
    hs: Resources,
    handshake: Handshake,
    user_id: UserID,
    room_id: RoomID,
    candidates: Sequence[ServerName],
    content: Mapping[str, Any],
) -> Accepted:
    """Returns our event as accepted by the first server that accepts it.

    The servers are asked for a template one after another, if one is slow the next one as well (`race`). The first one
    to answer gets the event, before any other does.
    """
    # No server has answered yet: the first refusal replaces this.
    failure = not_found("This server does not know any server in that room.")

    async def ask_for_template(server: ServerName) -> tuple[ServerName, Event | MatrixError]:
        try:
            return server, await make(hs, handshake, server, user_id, room_id, content)
        except MatrixError as error:
            return server, error

    async def give_event(answer: tuple[ServerName, Event | MatrixError]) -> Accepted | None:
        nonlocal failure
        server, made = answer
        try:
            if isinstance(made, MatrixError):
                raise made
            return await (_give_join(hs, server, made) if handshake == "join" else send(hs, handshake, server, made))
        except MatrixError as error:
            # A resident's refusal is worth more than the answer that another server is unreachable or not there.
            if failure.errcode in _WORTH_ANOTHER:
                failure = error
            return None

    attempts = [partial(ask_for_template, server) for server in candidates]
    accepted = await race(attempts, limits.peers.JOIN_NEXT_SERVER_SECONDS, give_event)
    if accepted is None:
        raise failure
    return accepted


async def make(
    hs: Resources,
    handshake: Handshake,
    server: ServerName,
    user_id: UserID,
    room_id: RoomID,
    content: Mapping[str, Any],
) -> Event:
    """Returns our signed event, placed as in the server's template. Raises MatrixError: its refusal, or 502."""
    versions = [] if handshake == "leave" else [("ver", version) for version in ROOM_VERSIONS]
    uri = path_to("v1", f"make_{handshake}", room_id, user_id, query=versions)
    try:
        answer = await send_signed(hs, server, "GET", uri, cause=ACTION)
    except Unreachable as error:
        raise MatrixError(502, "M_UNKNOWN", str(error)) from error
    if answer.status != 200 or not isinstance(answer.content, dict):
        raise _refusal(answer, server)
    template = answer.content.get("event")
    version = ROOM_VERSIONS.get(str(answer.content.get("room_version", "1")))  # spec: assumed to be "1" or "2"
    if version is None:
        raise MatrixError(400, "M_UNSUPPORTED_ROOM_VERSION", "This server does not know the version of that room.")
    if not isinstance(template, dict) or not _is_as_expected(template, handshake, user_id, room_id):
        raise MatrixError(502, "M_UNKNOWN", f"{server} proposed a different event than requested.")
    own_content = {**content, "membership": handshake}
    vouching = template["content"].get("join_authorised_via_users_server")
    if handshake == "join" and version.restricted_join and isinstance(vouching, str):
        own_content["join_authorised_via_users_server"] = vouching
    return _build(hs, server, version, template, own_content)


def _refusal(answer: Answer, server: ServerName) -> MatrixError:
    if answer.errcode == "M_INCOMPATIBLE_ROOM_VERSION":
        return MatrixError(
            400,
            "M_INCOMPATIBLE_ROOM_VERSION",
            "This server does not know the version of that room.",
            room_version=str(answer.content.get("room_version", ""))[:255],
        )
    return answer.error(server)


def _is_as_expected(template: Mapping[str, Any], membership: str, user_id: UserID, room_id: RoomID) -> bool:
    """Returns whether the template passes the checks that a joining server MUST make.

    Spec: server-server-api/#get_matrixfederationv1makejoinroomiduserid
    """
    content = template.get("content")
    return (
        template.get("type") == "m.room.member"
        and template.get("room_id") == room_id
        and template.get("sender") == user_id
        and template.get("state_key") == user_id
        and isinstance(content, dict)
        and content.get("membership") == membership
    )


def _build(
    hs: Resources, server: ServerName, version: RoomVersion, template: Mapping[str, Any], content: dict[str, Any]
) -> Event:
    """Returns our own event, which has only its place in the graph from the template."""
    pdu: dict[str, Any] = {
        "type": "m.room.member",
        "room_id": template["room_id"],
        "sender": template["sender"],
        "state_key": template["state_key"],
        "content": content,
        "origin_server_ts": hs.now_ms(),
        "depth": template.get("depth"),
        "prev_events": template.get("prev_events"),
        "auth_events": template.get("auth_events"),
    }
    if not version.event_id_is_reference_hash:
        pdu["event_id"] = f"${secrets.token_urlsafe(18)}:{hs.server_name}"
    try:
        check_references(pdu, version)
        return parse_event(sign_event(pdu, version, hs.server_name, hs.signing_key), version)
    except (InvalidEvent, InvalidIdentifier) as error:
        raise MatrixError(502, "M_UNKNOWN", f"{server} proposed an invalid event: {error}") from error


async def send(hs: Resources, handshake: Handshake, server: ServerName, event: Event) -> Accepted:
    """Lets the server add our event to the room. Raises MatrixError: its refusal, or 502."""
    place = (f"send_{handshake}", event.room_id, event.event_id)
    if handshake == "knock":
        uri = path_to("v1", *place)
        return Accepted(server, event, await ask(hs, server, "PUT", uri, event.pdu, cause=ACTION))
    if handshake == "join":
        return await _send_join(hs, server, event, place)
    try:
        answer = await put_event(hs, server, place, event.pdu, event.pdu, cause=ACTION)
    except Unreachable as error:
        raise MatrixError(502, "M_UNKNOWN", str(error)) from error
    return Accepted(server, event, _content_of(answer, server))


async def _send_join(hs: Resources, server: ServerName, event: Event, place: tuple[str, ...]) -> Accepted:
    """Collects the events of the answer, because there may be more of them than fit into memory."""
    for version in ("v2", "v1"):
        collected = Collected(hs.config.data_path(""), event.version, event.room_id, hs.blobs.failure)
        is_kept = False
        try:
            answer = await ask_many(
                hs, server, "PUT", path_to(version, *place), event.pdu,
                cause=ACTION,
                take={"state": collected.take_state, "auth_chain": collected.take},
                members={"event"},
                timeout_s=limits.peers.JOIN_TIMEOUT_S,
                max_bytes=limits.peers.STATE_BYTES_MAX,
            )  # fmt: skip
            if not answer.is_unknown_endpoint:
                accepted = Accepted(server, event, _content_of(answer, server), collected)
                is_kept = True
                return accepted
        except Unreachable as error:
            raise MatrixError(502, "M_UNKNOWN", str(error)) from error
        finally:
            if not is_kept:
                collected.close()
    raise answer.error(server)


def _content_of(answer: Answer, server: ServerName) -> JsonObject:
    if answer.status != 200 or not isinstance(answer.content, dict):
        raise answer.error_for_event(server)
    return answer.content


async def _give_join(hs: Resources, server: ServerName, join: Event) -> Accepted:
    """Lets the server add our join. It is noted first, because it must be undone there unless we complete it."""
    await hs.database.write(_note_join, hs.server_name, server, join)
    try:
        return await send(hs, "join", server, join)
    except MatrixError as error:
        if error.status < 500:  # otherwise the server may have accepted it anyway
            await hs.database.write(forget_join, join)
        raise


def _note_join(tx: Transaction, own: ServerName, server: ServerName, join: Event) -> None:
    if is_outside(tx, own, join.room_id):  # otherwise we get the join back, like every event of the room
        note_join(tx, server, join)


# Entering the room


async def _enter(hs: Resources, accepted: Accepted) -> None:
    """Takes over the room in the state given by the resident server."""
    assert accepted.state is not None  # it is the answer to a join
    with accepted.state as collected:
        await _take_over(hs, accepted, collected)


async def _take_over(hs: Resources, accepted: Accepted, collected: Collected) -> None:
    server, version, room_id = accepted.server, accepted.event.version, accepted.event.room_id
    join = await _countersigned(hs, accepted)
    if not await hs.database.read(is_outside, hs.server_name, room_id):
        reason = (await receive_events(hs, [join], server, limits.peers.GAP_SECONDS_MAX))[0]
        if reason is None:
            raise MatrixError(
                502, "M_UNKNOWN", "The other server's answer does not allow this server to enter the room."
            )
        if reason:
            raise forbidden(f"The room does not allow this: {reason}")
        return
    create_key = ("m.room.create", "")
    _check_create(collected.find(collected.state.get(create_key)), version)
    lacking = await store_collected(hs, collected, server, ACTION)
    if lacking:
        _log.warning(
            "state of a joined room is incomplete",
            extra={"room_id": room_id, "server": server, "lacking": sorted(lacking)[:5]},
        )
    state = collected.state
    _check(await hs.database.write(_adopt, join, state.get(create_key), list(state.values())))


async def _countersigned(hs: Resources, accepted: Accepted) -> Event:
    """Returns our join, with the signature that the server adds if it had to authorise the join."""
    given = accepted.answer.get("event")
    event = accepted.event
    if isinstance(given, dict):
        checked = await check_pdu(hs, given, event.version, event.room_id, ACTION)
        if isinstance(checked, Event) and checked.event_id == event.event_id and checked.content == event.content:
            return checked
    checked = await check_pdu(hs, event.pdu, event.version, event.room_id, ACTION)
    if isinstance(checked, Dropped):
        raise MatrixError(502, "M_UNKNOWN", f"{accepted.server} did not sign our join correctly: {checked.reason}")
    return event


def _check_create(create: Event | None, version: RoomVersion) -> None:
    if create is None:
        raise MatrixError(502, "M_UNKNOWN", "The room's m.room.create is missing, or its signature cannot be checked.")
    if create.content.get("room_version", "1") != version.id:
        raise MatrixError(502, "M_UNKNOWN", "The other server's state belongs to a room of another version.")


def _adopt(tx: Transaction, join: Event, create_id: EventID | None, state_ids: Sequence[EventID]) -> Received | Missing:
    check_not_blocked(tx, join.room_id)  # an administrator may have blocked the room since the handshake began
    stored = find_positions(tx, state_ids)
    outcome = adopt_room(tx, join, create_id, [event_id for event_id in state_ids if event_id in stored])
    if isinstance(outcome, Received):
        note_relay(tx, outcome.position, is_ours=False)
        forget_outside(tx, join.room_id)
    return outcome


def _check(outcome: Received | Missing) -> None:
    if isinstance(outcome, Missing):
        raise MatrixError(502, "M_UNKNOWN", "The other server's answer does not allow this server to enter the room.")
    if outcome.status == Status.REJECTED:
        raise forbidden(f"The room does not allow that: {outcome.reason}")
