"""The PDUs of a transaction. Spec: server-server-api/#checks-performed-on-receipt-of-a-pdu

Theory of operation. PDUs are grouped by room. Rooms run in parallel, the PDUs of one room in order. For each room:

1. Access: is this server in the room, and is the origin? PDUs of unknown rooms are refused. While this server is
   joining the room, they wait for the join.
2. Format. Then the room's server ACL may refuse the origin.
3. Keys. Only the keys of `_list_askable` servers are fetched. Events whose keys are not at hand are parked
   (`park_unchecked`), and their room fetches the keys beside everything else.
4. Signatures and hashes (`checking`).
5. The room (`gaps.receive_events`): an event with missing ancestors is parked too, which counts as accepted.

If this server is not in the room, only an event that ends one of our users' invites or knocks matters (`outside`).

Costs. PDUs stay bytes until it is their turn. If a transaction has more than PDUS_NODES_AT_ONCE values, its rooms take
turns, and are decoded in batches below that size.

Failures. An outage of storage ends the transaction without an answer. Any other unexpected error concerns single
events: the PDUs are halved until the event that causes it is alone. It is left out, logged and counted.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import inf

import trio

from homeserver import limits
from homeserver.api.bodies import count_nodes
from homeserver.background import start_aside
from homeserver.database import Transaction
from homeserver.database.lane import PARKED_COUNTER, try_each
from homeserver.errors import MatrixError
from homeserver.feature import JsonObject
from homeserver.federation.event import Event
from homeserver.federation.identifiers import InvalidIdentifier, RoomID, ServerName, parse_room_id, server_name_of
from homeserver.federation.pdu_checks import required_signatures
from homeserver.federation.transaction import decode_part, find_room
from homeserver.process.outages import is_outage
from homeserver.process.peers import peer
from homeserver.remote.access import RoomAccess, find_accesses
from homeserver.remote.checking import Dropped, check_signed, list_keyless, parse_pdus
from homeserver.remote.gaps import Rejection, close_gaps, park_unchecked, receive_events
from homeserver.remote.outside import receive_outside
from homeserver.remote.requests import is_sparse
from homeserver.resources import Resources
from homeserver.rooms.membership import is_server_joined

_log = logging.getLogger("homeserver.federation")

PDUS_COUNTER = "homeserver_federation_pdus_received_total"


async def receive_pdus(hs: Resources, origin: ServerName, pdus: Sequence[object]) -> dict[str, JsonObject]:
    """Returns the result for each PDU, by event ID: {} if it was received, else an error. Rooms run in parallel."""
    by_room: dict[RoomID, list[object]] = defaultdict(list)
    nodes = 0
    for pdu in pdus:
        try:
            by_room[parse_room_id(find_room(pdu))].append(pdu)
        except InvalidIdentifier:
            continue  # without its room's version there is no event ID to answer under
        if isinstance(pdu, bytes):
            nodes += count_nodes(pdu)
            await trio.lowlevel.checkpoint()
    is_dense = nodes > limits.peers.PDUS_NODES_AT_ONCE
    turns = trio.CapacityLimiter(1 if is_dense else inf)
    access, failed = await hs.database.read(_try_accesses, hs.server_name, list(by_room), origin)
    for room_id, error in failed:
        leave_out(hs, "event", error, {"room_id": room_id, "origin": origin})
        del by_room[room_id]
    results: dict[str, JsonObject] = {}

    async def receive(room_id: RoomID, room_pdus: Sequence[JsonObject]) -> None:
        try:
            outcome = await _receive_room(hs, origin, room_id, access[room_id], room_pdus, is_dense=is_dense)
        except MatrixError as error:  # for example too much is in progress; this concerns only the one room
            about = {"room_id": room_id, "origin": origin, "reason": str(error)}
            _log.warning("PDUs of a room not received", extra=about)
            return
        except Exception as error:  # an event that this server fails on must not block the others of its room
            if is_outage(error):
                raise
            if len(room_pdus) > 1:
                half = len(room_pdus) // 2
                await receive(room_id, room_pdus[:half])
                await receive(room_id, room_pdus[half:])
            else:
                leave_out(hs, "event", error, {"room_id": room_id, "origin": origin})
            return
        results.update((event_id, _answer(reason)) for event_id, reason in outcome.items())
        refused = sum(1 for reason in outcome.values() if reason)
        hs.metrics.count(PDUS_COUNTER, (("outcome", "accepted"),), len(outcome) - refused)
        hs.metrics.count(PDUS_COUNTER, (("outcome", "refused"),), refused)

    async def receive_all(room_id: RoomID, room_pdus: Sequence[object]) -> None:
        for batch in _in_batches(room_pdus):
            async with turns:
                decoded = [await decode_one(hs, pdu) for pdu in batch]
                await receive(room_id, [pdu for pdu in decoded if isinstance(pdu, dict)])

    async with trio.open_nursery() as nursery:
        for room_id, room_pdus in by_room.items():
            nursery.start_soon(receive_all, room_id, room_pdus)
    return results


def _answer(reason: str) -> JsonObject:
    """Returns the result of a PDU. A rejected event has been received like any other, and is part of the graph.

    Spec: server-server-api/#rejection
    """
    return {"error": reason} if reason and not isinstance(reason, Rejection) else {}


def _in_batches(pdus: Sequence[object]) -> Iterator[Sequence[object]]:
    """Yields the PDUs in order, all at once unless they have too many values to be decoded together."""
    batch: list[object] = []
    nodes = 0
    for pdu in pdus:
        more = count_nodes(pdu) if isinstance(pdu, bytes) else 0
        if batch and nodes + more > limits.peers.PDUS_NODES_AT_ONCE:
            yield batch
            batch, nodes = [], 0
        batch.append(pdu)
        nodes += more
    yield batch


async def decode_one(hs: Resources, part: object) -> object:
    """Decodes a PDU or EDU. Returns None if it is not JSON or has too many values."""
    if not isinstance(part, bytes):
        return part
    if not is_sparse(part):
        return None
    if len(part) <= limits.peers.PART_BYTES_INLINE_MAX:
        return decode_part(part)
    return await hs.workers.run(decode_part, part)


def _try_accesses(
    tx: Transaction, own: ServerName, rooms: Sequence[RoomID], origin: ServerName
) -> tuple[dict[RoomID, RoomAccess | None], list[tuple[RoomID, Exception]]]:
    """Returns the access to each of the rooms, and the rooms whose rows are damaged."""

    def find(part: Sequence[RoomID]) -> list[tuple[RoomID, RoomAccess | None]]:
        return list(find_accesses(tx, own, part, origin).items())

    found, failed = try_each(tx, rooms, find)
    return dict(found), failed


async def _receive_room(
    hs: Resources,
    origin: ServerName,
    room_id: RoomID,
    access: RoomAccess | None,
    pdus: Sequence[JsonObject],
    *,
    is_dense: bool = False,
) -> dict[str, str]:
    """Returns the result for each event ID: "" or why it was not accepted. is_dense: the PDUs have very many values."""
    if access is None or not access.is_resident:
        if hs.peers.locks.is_held(("join", room_id)):
            # A resident has accepted our join, and we are storing the room's state, which may take minutes. The PDUs
            # wait for that, or they would be lost. The origin does not wait: it may have PDUs for other rooms.
            if hs.peers.locks.waiting(("join", room_id)) < limits.peers.JOIN_WAITING_MAX:
                start_aside(hs, _receive_after_join, hs, origin, room_id, pdus)
            return {}
        # The access may have been read before a join was completed that is no longer in progress.
        access = (await hs.database.read(find_accesses, hs.server_name, [room_id], origin))[room_id]
    if access is None:
        named = (pdu.get("event_id") for pdu in pdus)
        return {event_id: "This server is not in that room." for event_id in named if isinstance(event_id, str)}
    parsed = await parse_pdus(hs, pdus, access.version, room_id, is_dense=is_dense)
    if not access.is_allowed:
        return {each.event_id: "The room's server ACL does not allow your server." for each in parsed if each.event_id}
    # This comes before fetching keys, because events that nobody has signed may claim to be from any number of servers.
    askable = await hs.database.read(_list_askable, room_id, access, origin, parsed)
    keyless = await list_keyless(hs, [each for each in parsed if isinstance(each, Event)], access.version, askable)
    signed = [each for each in parsed if each not in keyless]
    checked = await check_signed(hs, signed, access.version, peer(origin), (), is_dense=is_dense)
    dropped = [each for each in checked if isinstance(each, Dropped)]
    results: dict[str, str] = {each.event_id: each.reason for each in dropped if each.event_id is not None}
    events = [each for each in checked if isinstance(each, Event)]
    if not access.is_resident:
        for event in events:
            concerns_us = event.membership in ("leave", "ban") and hs.server_name == _server_of(event.state_key)
            results[event.event_id] = "This server is not in that room."
            if concerns_us:
                results[event.event_id] = await hs.database.write(receive_outside, hs.server_name, event)
        return results
    deadline_s = trio.current_time() + limits.peers.GAP_WAIT_S
    if keyless:
        await park_unchecked(hs, keyless, origin)
    results |= await _receive_all(hs, origin, events, deadline_s)
    if keyless:
        done = await close_gaps(hs, room_id, deadline_s - trio.current_time())
        # A parked event is accepted: it is stored, and received once what it lacks is there.
        results |= {event.event_id: done.get(event.event_id, "") for event in keyless}
    return results


def _list_askable(
    tx: Transaction, room_id: RoomID, access: RoomAccess, origin: ServerName, parsed: Sequence[Event | Dropped]
) -> set[ServerName]:
    """Returns the servers whose keys may be fetched to check the events: the origin, residents, and joining servers.

    An origin that is not in the room cannot make us ask any other server.
    """
    askable = {origin}
    if not (access.is_resident and access.has_origin):
        return askable
    for event in parsed:
        if isinstance(event, Event):
            if event.type == "m.room.member" and event.sender == event.state_key:
                askable.add(server_name_of(event.sender))
            askable.update(server for server in required_signatures(event) if is_server_joined(tx, room_id, server))
    return askable


async def _receive_after_join(hs: Resources, origin: ServerName, room_id: RoomID, pdus: Sequence[JsonObject]) -> None:
    async with hs.peers.locks.hold(("join", room_id)):
        access = (await hs.database.read(find_accesses, hs.server_name, [room_id], origin))[room_id]
    await _receive_room(hs, origin, room_id, access, pdus)


async def _receive_all(hs: Resources, origin: ServerName, events: Sequence[Event], deadline_s: float) -> dict[str, str]:
    try:
        outcomes = await receive_events(hs, events, origin, deadline_s - trio.current_time())
    except Exception as error:
        # An event that this server fails on must not block the others, and must not make the origin repeat the
        # transaction forever. If storage fails, the origin has to repeat it.
        if is_outage(error):
            raise
        if len(events) == 1:
            leave_out(hs, "event", error, {"origin": origin, "item": events[0].event_id})
            return {events[0].event_id: "Something unexpected happened."}
        results: dict[str, str] = {}
        for event in events:
            results |= await _receive_all(hs, origin, [event], deadline_s)
        return results
    return {event.event_id: outcome or "" for event, outcome in zip(events, outcomes, strict=True)}


def leave_out(hs: Resources, what: str, error: Exception, about: Mapping[str, str]) -> None:
    """Logs and counts a part of a transaction that is left out, because this server fails on it."""
    hs.metrics.count(PARKED_COUNTER, (("lane", "inbound"),))
    _log.error(f"{what} not received: something unexpected happened", exc_info=error, extra={**about})


def _server_of(user_id: str | None) -> str:
    return "" if user_id is None else user_id.partition(":")[2]
