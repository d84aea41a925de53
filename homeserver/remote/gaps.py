"""Events whose ancestors, auth events or keys are missing: they are parked, and each room closes its gaps by itself.

Theory of operation
- A server sends one transaction after another and waits for each answer. So an answer must not wait for what one of
  the events lacks. Such an event is *parked*: stored as it came, in the write that finds that something is missing.
  From then on it is ours to care for, and the transaction may be answered.
- Each room has a *lane* (`_work_lane`, one flight for each room), which takes the parked events of the room by their
  depth, fetches what they lack and receives them. A transaction waits GAP_WAIT_S for the lanes of its rooms, since
  most gaps are closed within a second and the answer can then tell what became of the event.
- An event that cannot be received yet stays parked. It is tried again after a while that doubles (`retry_parked`),
  after another event of the room got through, and when a server that should have been asked shows itself. An event that
  has been received, refused, or parked for PARKED_MS_MAX is forgotten.
- Bounds: parked events of one room and of all rooms (the oldest are forgotten: newer ones lead back to them), the time
  that a lane works at a stretch, and the connections that one origin may cause (`homeserver.process.peers`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

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
from homeserver.federation.room_versions import RoomVersion
from homeserver.moments import latest
from homeserver.process.outages import is_outage
from homeserver.process.peers import peer
from homeserver.remote.access import choose_servers, is_resident
from homeserver.remote.checking import check_signed, list_keyless, parse_pdu
from homeserver.remote.receiving import Gap, receive, receive_behind_gap
from homeserver.resources import Resources
from homeserver.rooms.graph import Missing
from homeserver.rooms.receive import Received
from homeserver.rooms.state_before import resolve_beforehand
from homeserver.rooms.storage import Status, find_room_version

_log = logging.getLogger("homeserver.federation")


@dataclass(frozen=True, slots=True)
class Parked:
    """An event that waits for what it lacks."""

    event_id: EventID
    origin: ServerName
    attempts: int
    pdu: bytes


async def receive_events(hs: Resources, events: Sequence[Event], origin: ServerName, wait_s: float) -> list[str | None]:
    """Receives checked events of one room, in order. For each "" or why it was refused; None if it is still parked.

    origin: the server to ask first for what is missing, if it is in the room. wait_s: how long to wait for that.
    """
    outcomes: list[str | None] = []
    for start in range(0, len(events), limits.peers.EVENTS_PER_WRITE):
        part = events[start : start + limits.peers.EVENTS_PER_WRITE]
        await hs.database.read(_resolve_all, part)
        outcomes += await hs.database.write(_receive_or_park, part, origin)
    if None in outcomes:
        hs.peers.note_parked()
        found = await close_gaps(hs, events[0].room_id, wait_s)
        for number, event in enumerate(events):
            if outcomes[number] is None:
                outcomes[number] = found.get(event.event_id)
    return outcomes


async def park_unchecked(hs: Resources, events: Sequence[Event], origin: ServerName) -> None:
    """Parks events of one room whose keys have to be fetched first: see `close_gaps`."""
    await hs.database.write(_park_all, events, origin)
    hs.peers.note_parked()


async def close_gaps(hs: Resources, room_id: RoomID, wait_s: float) -> dict[EventID, str]:
    """Has the lane of a room work on its parked events, and waits for a while. What became of those that are done."""
    with trio.move_on_after(max(0, wait_s)):
        try:
            return await hs.flights.join(hs.nursery, ("gap", room_id), _work_lane, hs, room_id)
        except MatrixError:  # too much is under way, or the server closes: they stay parked
            return {}
    return {}


async def retry_parked(hs: Resources) -> None:
    """Tries parked events again, for ever, also those of before a restart."""
    while True:
        is_any_parked = await hs.database.read(_is_any_parked)
        heard = await hs.peers.wait_rooms(limits.peers.PARKED_SWEEP_S if is_any_parked else math.inf)
        now_ms = hs.now_ms()
        if await hs.database.read(_is_any_due, now_ms) or heard:
            for room_id in await hs.database.write(_begin_sweep, heard, now_ms):
                start_aside(hs, close_gaps, hs, room_id, 0)


def _resolve_all(tx: Transaction, events: Sequence[Event]) -> None:
    coming = {event.event_id for event in events}
    for event in events:
        if coming.isdisjoint(event.prev_events):  # else the state before it is not known yet
            resolve_beforehand(tx, event)


def _receive_or_park(tx: Transaction, events: Sequence[Event], origin: ServerName) -> list[str | None]:
    outcomes: list[str | None] = []
    for event in events:
        outcome = receive(tx, event)
        if isinstance(outcome, Missing) and not (outcome.prev_events or outcome.auth_events):
            outcomes.append("What comes before this event cannot be had.")
        elif isinstance(outcome, Missing):
            _store_parked(tx, event, origin)
            outcomes.append(None)
        else:
            outcomes.append(_reason(outcome))
    return outcomes


def _reason(outcome: Received) -> str:
    return outcome.reason if outcome.status == Status.REJECTED else ""


# The lane of a room


async def _work_lane(hs: Resources, room_id: RoomID) -> dict[EventID, str]:
    """Works on the parked events of a room until each was tried; "" or why it was refused for those that are done."""
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
                    break  # the others stay due, and come before those that were tried
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
    """What became of a parked event: "" or why it was refused; None if it lacks something that cannot be had now."""
    try:
        event = parse_pdu(canonical_json.decode(parked.pdu), version, room_id)
        if not isinstance(event, Event):
            return event.reason
        checked = (await check_signed(hs, [event], version, gap.cause, required_signatures(event)))[0]
        if not isinstance(checked, Event):
            return None if await list_keyless(hs, [event], version) else checked.reason
        outcome = await receive_behind_gap(hs, checked, gap)
        return None if outcome is None else _reason(outcome)
    except Exception as error:
        if is_outage(error):
            raise
        if isinstance(single_error(error), MatrixError):
            return None  # e.g. the disk has no room for what was fetched
        # An event that we cannot digest must not keep the others of its room, nor be tried for ever.
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
        room_nid, event.event_id, tx.intern(origin), event.depth, tx.now_ms, to_json(event.pdu),
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
    rows = tx.all(
        "SELECT event_id, origin_nid, attempts, pdu FROM parked_events"
        " WHERE room_nid = ? AND (retry_ms <= ? OR retry_ms > ?)"
        " ORDER BY attempts, depth, received_ms",
        tx.find(room_id),
        *_due(now_ms),
    )
    names = tx.names({row[1] for row in rows})
    listed = [Parked(EventID(row[0]), ServerName(names[row[1]]), row[2], bytes(row[3])) for row in rows]
    return find_room_version(tx, room_id), listed


@dataclass(frozen=True, slots=True)
class WaitingEvent:
    """A parked event, for an administrator."""

    event_id: EventID
    room_id: RoomID
    origin: ServerName
    received_ms: int
    attempts: int


def list_waiting(tx: Transaction) -> list[WaitingEvent]:
    """Every parked event, the newest first."""
    rows = tx.all(
        "SELECT event_id, room_nid, origin_nid, received_ms, attempts FROM parked_events"
        " ORDER BY received_ms DESC, event_id"
    )
    names = tx.names({nid for row in rows for nid in row[1:3]})
    return [WaitingEvent(row[0], RoomID(names[row[1]]), ServerName(names[row[2]]), *row[3:]) for row in rows]


def set_waiting_due(tx: Transaction, event_id: str | None = None) -> int:
    """Has parked events, or one of them, tried again with the next sweep. Returns how many there are."""
    return tx.run("UPDATE parked_events SET retry_ms = 0 WHERE event_id = COALESCE(?, event_id)", event_id)


def delete_waiting(tx: Transaction, event_id: str | None = None) -> int:
    """Forgets parked events, or one of them. Returns how many there were."""
    return tx.run("DELETE FROM parked_events WHERE event_id = COALESCE(?, event_id)", event_id)


def _is_any_parked(tx: Transaction) -> bool:
    return tx.one("SELECT 1 FROM parked_events LIMIT 1") is not None


def _is_any_due(tx: Transaction, now_ms: int) -> bool:
    oldest_ms = now_ms - limits.peers.PARKED_MS_MAX
    sql = "SELECT 1 FROM parked_events WHERE retry_ms <= ? OR retry_ms > ? OR received_ms < ? LIMIT 1"
    return tx.one(sql, *_due(now_ms), oldest_ms) is not None


def _due(now_ms: int) -> tuple[int, int]:
    """Events are due up to the first of these moments, and behind the second, which only a wrong clock has set."""
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
    """The event is done. Those of its room that were postponed may follow on it, so they are due again."""
    nid = tx.find(room_id)
    tx.run("DELETE FROM parked_events WHERE room_nid = ? AND event_id = ?", nid, event_id)
    tx.run("UPDATE parked_events SET retry_ms = 0 WHERE room_nid = ? AND attempts > 0", nid)
