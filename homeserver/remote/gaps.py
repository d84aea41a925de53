"""Events whose ancestors, auth events or keys are missing: they are parked, and each room closes its gaps by itself.

Theory of operation
- A server sends one transaction after another and waits for each answer. So an answer must not wait until missing
  events have been fetched. An event that needs them is *parked*: stored as it arrived, in the write that finds the gap.
  From then on this server is responsible for it, and the transaction may be answered.
- Each room has a worker (`_close_gaps`, one flight for each room), which takes the parked events of the room by depth,
  fetches the missing events or keys, and receives the parked ones. A transaction waits GAP_WAIT_S for the workers of
  its rooms: most gaps are closed within a second, and then the answer can say whether the event was accepted.
- An event that cannot be received yet stays parked. It is tried again after a delay that doubles (`retry_parked`),
  after another event of the room was received, and when a server that was asked in vain can be reached again. An event
  is deleted when it has been received or refused, or was parked for PARKED_MS_MAX.
- Limits: the parked events of a room and of all rooms (the oldest are deleted, because newer ones lead back to them),
  the time that a worker spends on a room at a stretch, and the connections that one origin may cause
  (`homeserver.process.peers`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Sequence

import msgspec
import trio

from homeserver import limits
from homeserver.background import single_error, start_aside
from homeserver.database import Transaction
from homeserver.database.lane import PARKED_COUNTER
from homeserver.encoding import to_json
from homeserver.errors import MatrixError
from homeserver.federation import canonical_json
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID, RoomID, ServerName
from homeserver.federation.pdu_checks import required_signatures
from homeserver.federation.policy import POLICY_TYPE, PolicyServer
from homeserver.federation.room_versions import RoomVersion
from homeserver.moments import latest
from homeserver.process.outages import is_outage
from homeserver.process.peers import peer
from homeserver.remote.access import choose_servers, is_resident
from homeserver.remote.checking import check_signed, list_keyless, parse_pdu
from homeserver.remote.policy_servers import list_unmet, sign_unmet
from homeserver.remote.receiving import Gap, receive, receive_behind_gap
from homeserver.resources import Resources
from homeserver.rooms.graph import Missing
from homeserver.rooms.keys import open_sealed, seal
from homeserver.rooms.receive import Received
from homeserver.rooms.state_before import resolve_beforehand
from homeserver.rooms.storage import Status
from homeserver.rooms.versions import find_room_version

_log = logging.getLogger("homeserver.federation")


class Rejection(str):
    """Why an event was rejected: it is stored and has its place in the graph, but takes no effect."""

    __slots__ = ()


class Parked(msgspec.Struct, frozen=True):
    """An event that waits for missing events or keys."""

    event_id: EventID
    origin: ServerName
    attempts: int
    pdu: bytes


async def receive_events(hs: Resources, events: Sequence[Event], origin: ServerName, wait_s: float) -> list[str | None]:
    """Receives checked events of one room in order. Returns for each "" or why it was refused; None if it is parked.

    origin: the server to ask first for what is missing, if it is in the room. wait_s: how long to wait for that.
    """
    outcomes: list[str | None] = []
    for part in _in_parts(events):
        unmet = await hs.database.read(_prepare, part)
        if unmet:
            part = await sign_unmet(hs, part, unmet, peer(origin))
        outcomes += await hs.database.write(_receive_or_park, part, origin)
    if None in outcomes:
        hs.peers.note_parked()
        found = await close_gaps(hs, events[0].room_id, wait_s)
        for number, event in enumerate(events):
            if outcomes[number] is None:
                outcomes[number] = found.get(event.event_id)
    return outcomes


async def park_unchecked(hs: Resources, events: Sequence[Event], origin: ServerName) -> None:
    """Parks events of one room whose keys have to be fetched first. `close_gaps` fetches them."""
    await hs.database.write(_park_all, events, origin)
    hs.peers.note_parked()


async def close_gaps(hs: Resources, room_id: RoomID, wait_s: float) -> dict[EventID, str]:
    """Starts the worker of a room unless it runs, and waits for it for `wait_s`.

    Returns the result for each event that is no longer parked: "" or why it was refused.
    """
    with trio.move_on_after(max(0, wait_s)):
        try:
            return await hs.flights.join(hs.nursery, ("gap", room_id), _close_gaps, hs, room_id)
        except MatrixError:  # too many flights, or the server is closing: they stay parked
            return {}
    return {}


async def retry_parked(hs: Resources) -> None:
    """Tries parked events again, also those from before a restart. Runs until it is cancelled."""
    while True:
        is_any_parked = await hs.database.read(_is_any_parked)
        heard = await hs.peers.wait_rooms(limits.peers.PARKED_SWEEP_S if is_any_parked else math.inf)
        now_ms = hs.now_ms()
        if await hs.database.read(_is_any_due, now_ms) or heard:
            for room_id in await hs.database.write(_begin_sweep, heard, now_ms):
                start_aside(hs, close_gaps, hs, room_id, 0)


def _in_parts(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    """Yields the events in order, as many as one write takes. A new m.room.policy counts for the events after it."""
    part: list[Event] = []
    for event in events:
        part.append(event)
        if len(part) == limits.peers.EVENTS_PER_WRITE or event.type == POLICY_TYPE:
            yield part
            part = []
    if part:
        yield part


def _prepare(tx: Transaction, events: Sequence[Event]) -> list[tuple[int, PolicyServer]]:
    """Resolves states, so that the write need not, and returns what policy servers have to sign: see `list_unmet`."""
    coming = {event.event_id for event in events}
    for event in events:
        if coming.isdisjoint(event.prev_events):  # otherwise the state before it is still unknown
            resolve_beforehand(tx, event)
    return list_unmet(tx, events)


def _receive_or_park(tx: Transaction, events: Sequence[Event], origin: ServerName) -> list[str | None]:
    outcomes: list[str | None] = []
    for event in events:
        outcome = receive(tx, event)
        if isinstance(outcome, Missing) and not (outcome.prev_events or outcome.auth_events):
            outcomes.append("The events before this event are not available.")
        elif isinstance(outcome, Missing):
            _store_parked(tx, event, origin)
            outcomes.append(None)
        else:
            outcomes.append(_reason(outcome))
    return outcomes


def _reason(outcome: Received) -> str:
    return Rejection(outcome.reason) if outcome.status == Status.REJECTED else ""


# The worker of a room


async def _close_gaps(hs: Resources, room_id: RoomID) -> dict[EventID, str]:
    """Tries each parked event of a room. Returns, for each that is no longer parked, "" or why it was refused."""
    done: dict[EventID, str] = {}
    tried: set[EventID] = set()
    gaps: dict[ServerName, Gap] = {}
    async with hs.peers.locks.hold(("gap", room_id)):
        deadline = trio.current_time() + limits.peers.GAP_SECONDS_MAX
        while trio.current_time() < deadline:
            version, waiting = await hs.database.read(_list_parked, hs.server_name, room_id, hs.now_ms())
            waiting = [each for each in waiting if each.event_id not in tried]
            if version is None:
                await hs.database.write(_forget_room, room_id)
            if version is None or not waiting:
                break
            for parked in waiting:
                if trio.current_time() >= deadline:
                    break  # the others stay due, and come before the ones that were tried
                tried.add(parked.event_id)
                reason = None
                with trio.move_on_at(deadline):
                    if parked.origin not in gaps:
                        servers = await choose_servers(hs, room_id, parked.origin)
                        gaps[parked.origin] = Gap(servers, peer(parked.origin))
                    reason = await _try(hs, room_id, version, parked, gaps[parked.origin])
                if reason is None:
                    await hs.database.write(_set_retry, room_id, parked, hs.now_ms())
                else:
                    done[parked.event_id] = reason
                    await hs.database.write(_forget, room_id, parked.event_id)
    if len(done) < len(tried):
        hs.peers.expect(room_id, {server for gap in gaps.values() for server in gap.servers}, hs.now_ms())
    return done


async def _try(hs: Resources, room_id: RoomID, version: RoomVersion, parked: Parked, gap: Gap) -> str | None:
    """Receives a parked event. Returns "" or why it was refused; None if something it needs is not available now."""
    try:
        event = parse_pdu(canonical_json.decode(parked.pdu), version, room_id)
        if not isinstance(event, Event):
            return event.reason
        checked = (await check_signed(hs, [event], version, gap.cause, required_signatures(event)))[0]
        if not isinstance(checked, Event):
            return None if await list_keyless(hs, [event], version) else checked.reason
        outcome = await receive_behind_gap(hs, checked, gap)
        return None if outcome is None else _reason(outcome)
    except Exception as error:  # any error of one event, see below
        if is_outage(error):
            raise
        if isinstance(single_error(error), MatrixError):
            return None  # for example no disk space for the fetched events
        # An event that this server fails on must not block the others of its room, or be tried forever.
        hs.metrics.count(PARKED_COUNTER, (("lane", "gaps"),))
        about = {"origin": parked.origin, "event_id": parked.event_id}
        _log.exception("parked event not received", extra=about)
        return "Something unexpected happened."


# Storage


def _park_all(tx: Transaction, events: Sequence[Event], origin: ServerName) -> None:
    for event in events:
        _store_parked(tx, event, origin)


def _store_parked(tx: Transaction, event: Event, origin: ServerName) -> None:
    room_nid = tx.intern(event.room_id)
    tx.run(
        "INSERT INTO parked_events (room_nid, event_id, origin_nid, depth, received_ms, attempts, retry_ms, pdu)"
        " VALUES (?, ?, ?, ?, ?, 0, 0, ?) ON CONFLICT (room_nid, event_id) DO NOTHING",
        room_nid, event.event_id, tx.intern(origin), event.depth, tx.now_ms,
        seal(tx, room_nid, _place(event.event_id), to_json(event.pdu)),
    )  # fmt: skip
    in_room = tx.values(
        "SELECT event_id FROM parked_events WHERE room_nid = ? ORDER BY received_ms DESC, depth DESC", room_nid
    )
    for event_id in in_room[limits.peers.PARKED_PER_ROOM_MAX :]:
        tx.run("DELETE FROM parked_events WHERE room_nid = ? AND event_id = ?", room_nid, event_id)
    count = tx.one("SELECT COUNT(*) FROM parked_events")
    if count is not None and count[0] > limits.peers.PARKED_MAX:
        tx.run(
            "DELETE FROM parked_events WHERE received_ms <="
            " (SELECT received_ms FROM parked_events ORDER BY received_ms LIMIT 1 OFFSET ?)",
            count[0] - limits.peers.PARKED_MAX - 1,
        )


def _list_parked(
    tx: Transaction, own: ServerName, room_id: RoomID, now_ms: int
) -> tuple[RoomVersion | None, list[Parked]]:
    """The version of the room, None if this server is not in it, and what is due there.

    Events that were tried less often come first, so that no hopeless event holds up others; then the shallowest.
    """
    if not is_resident(tx, own, room_id):
        return None, []
    room_nid = tx.intern(room_id)
    rows = tx.all(
        "SELECT event_id, origin_nid, attempts, pdu FROM parked_events"
        " WHERE room_nid = ? AND (retry_ms <= ? OR retry_ms > ?)"
        " ORDER BY attempts, depth, received_ms",
        room_nid,
        *_due(now_ms),
    )
    names = tx.names({row[1] for row in rows})
    listed = [
        Parked(EventID(row[0]), ServerName(names[row[1]]), row[2], pdu)
        for row in rows
        if (pdu := open_sealed(tx, room_nid, _place(row[0]), bytes(row[3]))) is not None
    ]
    return find_room_version(tx, room_id), listed


def forget_parked(tx: Transaction, room_id: RoomID) -> None:
    """Deletes the parked events of a room whose contents are forgotten."""
    tx.run("DELETE FROM parked_events WHERE room_nid = ?", tx.find(room_id))


def _place(event_id: str) -> bytes:
    return b"parked event " + event_id.encode()


class WaitingEvent(msgspec.Struct, frozen=True):
    """A parked event as shown to an administrator."""

    event_id: EventID
    room_id: RoomID
    origin: ServerName
    received_ms: int
    attempts: int


def list_waiting(tx: Transaction) -> list[WaitingEvent]:
    """Returns all parked events, newest first."""
    rows = tx.all(
        "SELECT event_id, room_nid, origin_nid, received_ms, attempts FROM parked_events"
        " ORDER BY received_ms DESC, event_id"
    )
    names = tx.names({nid for row in rows for nid in row[1:3]})
    return [WaitingEvent(row[0], RoomID(names[row[1]]), ServerName(names[row[2]]), *row[3:]) for row in rows]


def set_waiting_due(tx: Transaction, event_id: str | None = None) -> int:
    """Makes all parked events, or one of them, due for the next sweep. Returns how many there are."""
    return tx.run("UPDATE parked_events SET retry_ms = 0 WHERE event_id = COALESCE(?, event_id)", event_id)


def delete_waiting(tx: Transaction, event_id: str | None = None) -> int:
    """Deletes all parked events, or one of them. Returns how many there were."""
    return tx.run("DELETE FROM parked_events WHERE event_id = COALESCE(?, event_id)", event_id)


def _is_any_parked(tx: Transaction) -> bool:
    return tx.one("SELECT 1 FROM parked_events LIMIT 1") is not None


def _is_any_due(tx: Transaction, now_ms: int) -> bool:
    oldest_ms = now_ms - limits.peers.PARKED_MS_MAX
    sql = "SELECT 1 FROM parked_events WHERE retry_ms <= ? OR retry_ms > ? OR received_ms < ? LIMIT 1"
    return tx.one(sql, *_due(now_ms), oldest_ms) is not None


def _due(now_ms: int) -> tuple[int, int]:
    """Returns two times: events are due up to the first, and after the second, which only a wrong clock sets."""
    return now_ms, latest(now_ms, limits.peers.PARKED_RETRY_MS_MAX)


def _begin_sweep(tx: Transaction, heard: Collection[RoomID], now_ms: int) -> list[RoomID]:
    """Returns rooms with parked events to be tried again, such as those `heard`. Deletes events that are too old."""
    for room_id in heard:
        _set_due(tx, room_id)
    _delete_old(tx, now_ms)
    return _list_due(tx, now_ms)


def _set_due(tx: Transaction, room_id: RoomID) -> None:
    tx.run("UPDATE parked_events SET retry_ms = 0 WHERE room_nid = ?", tx.find(room_id))


def _delete_old(tx: Transaction, now_ms: int) -> None:
    tx.run("DELETE FROM parked_events WHERE received_ms < ?", now_ms - limits.peers.PARKED_MS_MAX)


def _list_due(tx: Transaction, now_ms: int) -> list[RoomID]:
    sql = "SELECT DISTINCT room_nid FROM parked_events WHERE retry_ms <= ? OR retry_ms > ? LIMIT 50"
    nids = tx.values(sql, *_due(now_ms))
    return [RoomID(name) for name in tx.names(nids).values()]


def _set_retry(tx: Transaction, room_id: RoomID, parked: Parked, now_ms: int) -> None:
    delay_ms = min(limits.peers.PARKED_RETRY_MS << min(parked.attempts, 20), limits.peers.PARKED_RETRY_MS_MAX)
    tx.run(
        "UPDATE parked_events SET attempts = attempts + 1, retry_ms = ? WHERE room_nid = ? AND event_id = ?",
        now_ms + delay_ms,
        tx.find(room_id),
        parked.event_id,
    )


def _forget_room(tx: Transaction, room_id: RoomID) -> None:
    tx.run("DELETE FROM parked_events WHERE room_nid = ?", tx.find(room_id))


def _forget(tx: Transaction, room_id: RoomID, event_id: EventID) -> None:
    """Deletes a parked event. Postponed events of its room may have waited for it, so they are due again."""
    nid = tx.find(room_id)
    tx.run("DELETE FROM parked_events WHERE room_nid = ? AND event_id = ?", nid, event_id)
    tx.run("UPDATE parked_events SET retry_ms = 0 WHERE room_nid = ? AND attempts > 0", nid)
