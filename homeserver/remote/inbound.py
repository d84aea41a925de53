"""Transactions of other servers. Spec: server-server-api/#transactions, #checks-performed-on-receipt-of-a-pdu

Transactions of one origin are processed one after another, those of different origins in parallel. What a
transaction was answered is kept, so that a repeated one is answered alike and does nothing.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import Any, TypeVar

import orjson
import trio

from homeserver import limits
from homeserver.api.arguments import decode_parts
from homeserver.api.bodies import count_nodes
from homeserver.api.routes import Response, Routes
from homeserver.background import start_aside
from homeserver.database import Transaction
from homeserver.database.lane import PARKED_COUNTER, try_each
from homeserver.errors import MatrixError, bad_json, invalid_param
from homeserver.feature import Edu, JsonObject
from homeserver.federation.edus import InvalidEdu, parse_edu
from homeserver.federation.event import Event
from homeserver.federation.identifiers import InvalidIdentifier, RoomID, ServerName, parse_room_id, server_name_of
from homeserver.federation.pdu_checks import required_signatures
from homeserver.federation.transaction import InvalidTransaction, decode_part, find_room, parse_transaction
from homeserver.federation.transaction import Transaction as ReceivedTransaction
from homeserver.process.outages import is_outage
from homeserver.process.peers import peer
from homeserver.process.rate_limits import limit_exceeded
from homeserver.remote.access import RoomAccess, find_access
from homeserver.remote.checking import Dropped, check_signed, list_keyless, parse_pdus
from homeserver.remote.gaps import close_gaps, park_unchecked, receive_events
from homeserver.remote.outside import receive_outside
from homeserver.remote.requests import is_sparse
from homeserver.resources import Resources
from homeserver.rooms.membership import is_server_joined

P = TypeVar("P")

_log = logging.getLogger("homeserver.federation")

TXN_ID_CHARACTERS_MAX = 255
PDUS_COUNTER = "homeserver_federation_pdus_received_total"


def transaction_routes(edus: Mapping[str, Edu[Any]]) -> Routes:
    """PUT /send, which receives EDUs of the given types and ignores all others."""
    routes = Routes()

    @routes.put(
        "/_matrix/federation/v1/send/{txn_id}",
        rate_limit="federation",
        max_body_bytes=limits.peers.TRANSACTION_BODY_BYTES_MAX,
        max_json_nodes=limits.peers.TRANSACTION_JSON_NODES_MAX,
        decode=decode_parts,
    )
    async def send_transaction(hs: Resources, origin: ServerName, txn_id: str, body: dict) -> Response:
        if len(txn_id) > TXN_ID_CHARACTERS_MAX:
            raise invalid_param(f"A transaction ID has at most {TXN_ID_CHARACTERS_MAX} characters.")
        try:
            transaction = parse_transaction(body)
        except InvalidTransaction as error:
            raise bad_json(str(error)) from None
        if transaction.origin != origin:
            raise invalid_param("The transaction is of another origin than its request.")
        key = ("transaction", origin, txn_id)
        answer = await hs.flights.join(hs.nursery, key, _work_off, hs, edus, origin, txn_id, transaction)
        return Response(200, answer, {"content-type": "application/json"})

    return routes


async def _work_off(
    hs: Resources, edus: Mapping[str, Edu[Any]], origin: ServerName, txn_id: str, transaction: ReceivedTransaction
) -> bytes:
    if hs.peers.locks.waiting(("origin", origin)) >= limits.peers.TRANSACTIONS_WAITING_MAX:
        raise limit_exceeded(1000)
    async with hs.peers.locks.hold(("origin", origin)):
        answer = await hs.database.read(find_answer, origin, txn_id)
        if answer is None:
            results = await _receive_pdus(hs, origin, transaction.pdus)
            await _receive_edus(hs, edus, origin, transaction.edus)
            answer = orjson.dumps({"pdus": results})
            await hs.database.write(store_answer, origin, txn_id, answer)
    return answer


# PDUs


async def _receive_pdus(hs: Resources, origin: ServerName, pdus: Sequence[object]) -> dict[str, JsonObject]:
    """What became of each PDU by event id: {} or why it was not accepted. Rooms are processed in parallel."""
    by_room: dict[RoomID, list[object]] = defaultdict(list)
    nodes = 0
    for pdu in pdus:
        try:
            by_room[parse_room_id(find_room(pdu))].append(pdu)
        except InvalidIdentifier:
            continue  # without a room there is no version, hence no event id to answer under
        if isinstance(pdu, bytes):
            nodes += count_nodes(pdu)
            await trio.lowlevel.checkpoint()
    is_dense = nodes > limits.peers.PDUS_NODES_AT_ONCE
    turns = trio.CapacityLimiter(1 if is_dense else inf)
    access, failed = await hs.database.read(_try_accesses, hs.server_name, list(by_room), origin)
    for room_id, error in failed:
        _leave_out(hs, "event", error, {"room_id": room_id, "origin": origin})
        del by_room[room_id]
    results: dict[str, JsonObject] = {}

    async def receive(room_id: RoomID, room_pdus: Sequence[JsonObject]) -> None:
        try:
            outcome = await _receive_room(hs, origin, room_id, access[room_id], room_pdus, is_dense=is_dense)
        except MatrixError as error:  # e.g. too much is under way; the other rooms are not concerned
            about = {"room_id": room_id, "origin": origin, "reason": str(error)}
            _log.warning("PDUs of a room not received", extra=about)
            return
        except Exception as error:
            if is_outage(error):
                raise
            if len(room_pdus) > 1:
                half = len(room_pdus) // 2
                await receive(room_id, room_pdus[:half])
                await receive(room_id, room_pdus[half:])
            else:
                _leave_out(hs, "event", error, {"room_id": room_id, "origin": origin})
            return
        results.update((event_id, {"error": reason} if reason else {}) for event_id, reason in outcome.items())
        refused = sum(1 for reason in outcome.values() if reason)
        hs.metrics.count(PDUS_COUNTER, (("outcome", "accepted"),), len(outcome) - refused)
        hs.metrics.count(PDUS_COUNTER, (("outcome", "refused"),), refused)

    async def receive_all(room_id: RoomID, room_pdus: Sequence[object]) -> None:
        for batch in _in_batches(room_pdus):
            async with turns:
                decoded = [await _decode(hs, pdu) for pdu in batch]
                await receive(room_id, [pdu for pdu in decoded if isinstance(pdu, dict)])

    async with trio.open_nursery() as nursery:
        for room_id, room_pdus in by_room.items():
            nursery.start_soon(receive_all, room_id, room_pdus)
    return results


def _in_batches(pdus: Sequence[object]) -> Iterator[Sequence[object]]:
    """The PDUs in order, as many at a time as are decoded at once: all of them, unless they are very dense."""
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


async def _decode(hs: Resources, part: object) -> object:
    """The value of a PDU or EDU, None if it has none or has too many values in it."""
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
    """The access to each of the rooms, and the rooms that cannot be read."""

    def find(part: Sequence[RoomID]) -> list[tuple[RoomID, RoomAccess | None]]:
        return list(_find_accesses(tx, own, part, origin).items())

    found, failed = try_each(tx, rooms, find)
    return dict(found), failed


def _find_accesses(
    tx: Transaction, own: ServerName, rooms: Sequence[RoomID], origin: ServerName
) -> dict[RoomID, RoomAccess | None]:
    return {room_id: find_access(tx, own, room_id, origin) for room_id in rooms}


async def _receive_room(
    hs: Resources,
    origin: ServerName,
    room_id: RoomID,
    access: RoomAccess | None,
    pdus: Sequence[JsonObject],
    *,
    is_dense: bool = False,
) -> dict[str, str]:
    """By event id "" or why it was not accepted. is_dense: the PDUs have very many values."""
    if access is None or not access.is_resident:
        if hs.peers.locks.is_held(("join", room_id)):
            # We have been let in, and are taking over the room: what comes meanwhile waits, or it would be lost. Not so
            # the origin, which may have more to tell, about other rooms: entering one takes minutes.
            if hs.peers.locks.waiting(("join", room_id)) < limits.peers.JOIN_WAITING_MAX:
                start_aside(hs, _receive_after_join, hs, origin, room_id, pdus)
            return {}
        # Nobody is entering it any more: somebody may have come in since the access was read.
        access = (await hs.database.read(_find_accesses, hs.server_name, [room_id], origin))[room_id]
    if access is None:
        named = (pdu.get("event_id") for pdu in pdus)
        return {event_id: "This server is not in that room." for event_id in named if isinstance(event_id, str)}
    parsed = await parse_pdus(hs, pdus, access.version, room_id, is_dense=is_dense)
    if not access.is_allowed:
        return {each.event_id: "The room's server ACL does not allow your server." for each in parsed if each.event_id}
    # Before a key is fetched: anyone may name as many servers as they like in events that are not signed at all.
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
    """The servers whose keys may be fetched to check the events: the origin, those in the room, those just joining.

    A server that is not in the room itself cannot make us ask anyone else.
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
        access = (await hs.database.read(_find_accesses, hs.server_name, [room_id], origin))[room_id]
    await _receive_room(hs, origin, room_id, access, pdus)


async def _receive_all(hs: Resources, origin: ServerName, events: Sequence[Event], deadline_s: float) -> dict[str, str]:
    try:
        outcomes = await receive_events(hs, events, origin, deadline_s - trio.current_time())
    except Exception as error:
        # An event that we cannot digest must not keep what comes with it, nor be sent to us for ever. If it is the
        # storage that fails, the transaction has to come again.
        if is_outage(error):
            raise
        if len(events) == 1:
            _leave_out(hs, "event", error, {"origin": origin, "item": events[0].event_id})
            return {events[0].event_id: "Something unexpected happened."}
        results: dict[str, str] = {}
        for event in events:
            results |= await _receive_all(hs, origin, [event], deadline_s)
        return results
    return {event.event_id: outcome or "" for event, outcome in zip(events, outcomes, strict=True)}


def _leave_out(hs: Resources, what: str, error: Exception, about: Mapping[str, str]) -> None:
    """Notes that something of a transaction is left out, since this server fails of it."""
    hs.metrics.count(PARKED_COUNTER, (("lane", "inbound"),))
    _log.error(f"{what} not received: something unexpected happened", exc_info=error, extra={**about})


def _server_of(user_id: str | None) -> str:
    return "" if user_id is None else user_id.partition(":")[2]


# EDUs


async def _receive_edus(
    hs: Resources, declared: Mapping[str, Edu[Any]], origin: ServerName, edus: Sequence[object]
) -> None:
    for each in edus:
        try:
            edu_type, content = parse_edu(await _decode(hs, each))
            edu = declared.get(edu_type)
            parts = [] if edu is None else edu.parts_from(origin, content)
        except InvalidEdu:
            continue
        if edu is None or not parts:
            continue
        try:
            allowed = await _leave_out_rooms(hs, edu, origin, parts)
            if allowed:
                await edu.handler(hs, origin, allowed)
        except MatrixError as error:
            _log.info("EDU refused", extra={"edu_type": edu_type, "origin": origin, "reason": error.error})
        except Exception as error:  # one EDU that we cannot digest must not keep the others, nor be sent for ever
            if is_outage(error):
                raise
            _leave_out(hs, "EDU", error, {"edu_type": edu_type, "origin": origin})


async def _leave_out_rooms(hs: Resources, edu: Edu[P], origin: ServerName, parts: Sequence[P]) -> Sequence[P]:
    """The parts without those about a room that this server or the origin is not in, or whose ACL bars the origin."""
    if edu.room is None:
        return parts
    rooms = [edu.room(part) for part in parts]
    accesses = await hs.database.read(_find_accesses, hs.server_name, list(dict.fromkeys(rooms)), origin)
    return [part for part, room_id in zip(parts, rooms, strict=True) if _may_speak(accesses[room_id])]


def _may_speak(access: RoomAccess | None) -> bool:
    return access is not None and access.is_resident and access.is_allowed and access.has_origin


# Storage


def find_answer(tx: Transaction, origin: ServerName, txn_id: str) -> bytes | None:
    """What the transaction was answered, None if it is new."""
    row = tx.one("SELECT answer FROM transactions WHERE origin_nid = ? AND txn_id = ?", tx.find(origin), txn_id)
    return None if row is None else bytes(row[0])


def store_answer(tx: Transaction, origin: ServerName, txn_id: str, answer: bytes) -> None:
    """Keeps the answer; older ones of the origin are forgotten, since it has gone on."""
    nid = tx.intern(origin)
    (newest_ms,) = tx.one("SELECT COALESCE(MAX(received_ms), 0) FROM transactions WHERE origin_nid = ?", nid) or (0,)
    tx.run(
        "INSERT INTO transactions (origin_nid, txn_id, received_ms, answer) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (origin_nid, txn_id) DO NOTHING",
        nid, txn_id, max(tx.now_ms, newest_ms + 1), answer,
    )  # fmt: skip
    rows = tx.values("SELECT txn_id FROM transactions WHERE origin_nid = ? ORDER BY received_ms DESC, txn_id", nid)
    for old in rows[limits.peers.TRANSACTIONS_KEPT :]:
        if old == txn_id:
            continue
        tx.run("DELETE FROM transactions WHERE origin_nid = ? AND txn_id = ?", nid, old)
