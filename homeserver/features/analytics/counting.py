"""Counts what happened in a span of the stream. Reads types, senders and times, never what people say.

Theory of operation. Each event is counted in the hour in which it was sent. Senders' servers claim that time, so it is
held against a clock that follows from what was counted before, hence is the same however the stream is cut in spans:

- up to LATE_MS before the clock, and not in the future: the event counts at its own time;
- in the future: it counts now;
- earlier: an event of another server was on its way for long, or its clock is wrong; it counts when it came. One of a
  user of this server was imported, or sent by a bridge under an old date; it is history, and is not counted.

So nobody but the operator can change the figures of a day that is over, and a day can be closed soon after its end.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from homeserver.database import Transaction
from homeserver.federation.identifiers import RoomID, ServerName, server_name_of
from homeserver.rooms.figures import Fact, list_entering, list_facts
from homeserver.rooms.heads import find_head
from homeserver.rooms.membership import list_joined_servers
from homeserver.rooms.messages import MESSAGE_TYPES
from homeserver.users.figures import DAY_MS, DELIVERY, HOUR_MS, Peer, class_of
from homeserver.users.readings import Reading, list_readings

LATE_MS = DAY_MS
# An encrypted call is an encrypted message like any other.
CALL_TYPES = frozenset(
    {"m.call.invite", "m.rtc.notification", "org.matrix.msc4075.rtc.notification", "org.matrix.msc4075.call.notify"}
)
SENT, RECEIVED = "messages_sent", "messages_received"
CALLS, JOINS, ROOMS = "calls", "joins", "new_rooms"


class Counted(msgspec.Struct):
    """What was counted in a span, in the form in which `homeserver.users.figures` stores it."""

    clock_ms: int
    amounts: dict[tuple[int, str], int] = msgspec.field(default_factory=dict)
    active: dict[tuple[int, int], int] = msgspec.field(default_factory=dict)
    peers: dict[tuple[int, ServerName], Peer] = msgspec.field(default_factory=dict)

    def add(self, moment_ms: int, name: str) -> None:
        """Counts one thing."""
        key = (moment_ms // HOUR_MS, name)
        self.amounts[key] = self.amounts.get(key, 0) + 1

    def add_active(self, moment_ms: int, user_nid: int) -> None:
        """Counts a person as active."""
        key = (moment_ms // DAY_MS, user_nid)
        self.active[key] = self.active.get(key, 0) | 1 << moment_ms // HOUR_MS % 24

    def add_peer(self, moment_ms: int, server: ServerName, *, received: int = 0, sent: int = 0) -> None:
        """Counts events from or for another server."""
        key = (moment_ms // DAY_MS, server)
        before = self.peers.get(key, Peer(0, 0))
        self.peers[key] = Peer(before.received + received, before.sent + sent)

    def find_moment(self, ts: int, now_ms: int, *, is_local: bool) -> int | None:
        """Returns the moment at which something with a timestamp counts, None if it does not; advances the clock."""
        if ts < self.clock_ms - LATE_MS:
            return None if is_local else self.clock_ms
        moment = min(ts, now_ms)
        self.clock_ms = max(self.clock_ms, moment)
        return moment


def count_span(tx: Transaction, clock_ms: int, since: int, upto: int) -> Counted:
    """Returns what happened at since < position ≤ upto. clock_ms: how far counting had come by then."""
    counted = Counted(min(clock_ms, tx.now_ms))  # a clock in the future was set by a wrong one
    facts, readings = list_facts(tx, since, upto), list_readings(tx, since, upto)
    names = tx.names({nid for fact in facts for nid in (fact.type_nid, fact.sender_nid, fact.room_nid)})
    member_nid = tx.find("m.room.member")
    entering = list_entering(tx, [fact.position for fact in facts if fact.type_nid == member_nid])
    servers: dict[int, frozenset[ServerName]] = {}
    for each in _in_order(facts, readings):
        if isinstance(each, Reading):
            _count_reading(counted, each, tx.now_ms)
            continue
        server = server_name_of(names[each.sender_nid])
        is_local = server == tx.server.name
        moment = counted.find_moment(each.origin_server_ts, tx.now_ms, is_local=is_local)
        if moment is None:
            continue
        for figure in _figures_of(each, names[each.type_nid], is_local, each.position in entering):
            counted.add(moment, figure)
        if not is_local:
            counted.add_peer(moment, server, received=1)
            continue
        counted.add_active(moment, each.sender_nid)
        if each.room_nid not in servers:
            servers[each.room_nid] = _list_others(tx, RoomID(names[each.room_nid]))
        for other in servers[each.room_nid]:
            counted.add_peer(moment, other, sent=1)
    return counted


def _in_order(facts: list[Fact], readings: list[Reading]) -> Iterable[Fact | Reading]:
    return sorted((*facts, *readings), key=lambda each: each.position)


def _figures_of(fact: Fact, kind: str, is_local: bool, is_entering: bool) -> Iterable[str]:
    """Yields the names of the figures to which an event adds."""
    if is_entering:
        yield JOINS
    if kind in MESSAGE_TYPES and not fact.is_state:
        yield SENT if is_local else RECEIVED
    elif kind in CALL_TYPES and not fact.is_state:
        yield CALLS
    elif kind == "m.room.create" and is_local:
        yield ROOMS


def _count_reading(counted: Counted, reading: Reading, now_ms: int) -> None:
    """Counts a person who has read something as active, and how long a message was on its way to a device."""
    moment = counted.find_moment(reading.ts_ms, now_ms, is_local=True)
    if moment is None:
        return
    if reading.latency_ms is not None:
        counted.add(moment, f"{DELIVERY}{class_of(reading.latency_ms)}")
    elif reading.is_local:
        counted.add_active(moment, reading.user_nid)


def _list_others(tx: Transaction, room_id: RoomID) -> frozenset[ServerName]:
    head = find_head(tx, room_id)
    return frozenset() if head is None else list_joined_servers(tx, head) - {tx.server.name}
