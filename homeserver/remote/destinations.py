"""What is to be sent to whom: the events and EDUs of a span of the stream, by destination.

Spec: server-server-api/#pdus, #edus. Everything here is read from tables, so it can be asked again at any time. Events
and EDUs are encoded here, once for all destinations.

Usually a span is read as a whole. If that fails, because something in it is damaged or cannot be encoded, it is read
again position by position: what can be read is sent, and the other positions are answered with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from homeserver import limits
from homeserver.database import Transaction
from homeserver.database.lane import try_each
from homeserver.feature import Edu, OutgoingEdu
from homeserver.federation import canonical_json
from homeserver.federation.identifiers import RoomID, ServerName, server_name_of
from homeserver.federation.transaction import PDUS_MAX
from homeserver.process.back_off import BackOff
from homeserver.process.outages import is_outage
from homeserver.rooms.heads import Head, find_head
from homeserver.rooms.membership import list_joined_servers, list_rooms_of_server
from homeserver.rooms.storage import StoredEvent, list_positions, list_stored, to_events
from homeserver.rooms.timeline import list_newest_from
from homeserver.rooms.visibility import membership_in, servers_in

R = TypeVar("R")

Edus = Mapping[str, Edu[Any]]
"""What the features declare, by EDU type."""


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One PDU or EDU to be sent, as canonical JSON. What is shared by many destinations is there once.

    name: what it is called in the log. subjects: what an EDU is the latest news of, see `Edu.coalesce_by`.
    """

    position: int
    name: str
    data: bytes
    is_edu: bool = False
    subjects: frozenset[Hashable] = frozenset()


Failed = list[tuple[int, Exception]]
"""Positions whose event or EDU cannot be sent, and why."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a destination lacks up to a position, in order: the PDUs of one transaction at most, then EDUs."""

    upto: int
    items: list[Item]
    failed: Failed


class _Each(Protocol):
    """Gives the items to a function. Returns what it makes of them, and the items that it fails of."""

    def __call__(
        self, items: Sequence[int], fn: Callable[[Sequence[int]], Iterable[R]], /
    ) -> tuple[list[R], Failed]: ...


def _together(items: Sequence[int], fn: Callable[[Sequence[int]], Iterable[R]], /) -> tuple[list[R], Failed]:
    return list(fn(items)), []


def collect(
    tx: Transaction, own: ServerName, edus: Edus, since: int, upto: int
) -> tuple[dict[ServerName, list[Item]], Failed]:
    """What the changes of since < position ≤ upto mean for each destination, in order; and what cannot be sent."""
    try:
        return tx.attempt(_collect, tx, own, edus, since, upto, _together)
    except Exception as error:
        if is_outage(error):
            raise
        return _collect_each(tx, own, edus, since, upto)


def _collect_each(
    tx: Transaction, own: ServerName, edus: Edus, since: int, upto: int
) -> tuple[dict[ServerName, list[Item]], Failed]:
    """As `collect`, where something in the span cannot be read."""

    def each(items: Sequence[int], fn: Callable[[Sequence[int]], Iterable[R]], /) -> tuple[list[R], Failed]:
        return try_each(tx, items, fn)

    return _collect(tx, own, edus, since, upto, each)


def _collect(
    tx: Transaction, own: ServerName, edus: Edus, since: int, upto: int, each: _Each
) -> tuple[dict[ServerName, list[Item]], Failed]:
    found: dict[ServerName, list[Item]] = {}
    heads: dict[RoomID, Head | None] = {}

    def pdus(span: Sequence[int]) -> list[tuple[Item, frozenset[ServerName]]]:
        rows = _rows_to_send(tx, own, list_positions(tx, span[0] - 1, span[-1]))
        destinations = {row.position: _destinations(tx, own, row, _head(tx, heads, row.room_id)) for row in rows}
        wanted = [row for row in rows if destinations[row.position]]
        return [(item, destinations[item.position]) for item in _pdu_items(tx, wanted)]

    def destinations_of(outgoing: OutgoingEdu) -> frozenset[ServerName]:
        return _edu_destinations(tx, own, outgoing, heads)

    items, failed = each(range(since + 1, upto + 1), pdus)
    edu_items, failed_edus = _edu_items(tx, edus, since, upto, destinations_of, each)
    for item, servers in (*items, *edu_items):
        for server in servers:
            found.setdefault(server, []).append(item)
    return found, failed + failed_edus


def list_due(tx: Transaction, own: ServerName, edus: Edus, server: ServerName, since: int, upto: int) -> Batch:
    """What `server` lacks that was reached last at `since`, up to a position ≤ `upto`; of busy rooms the newest."""
    lasting = {edu_type: edu for edu_type, edu in edus.items() if not edu.short_lived}
    try:
        return tx.attempt(_list_due, tx, own, lasting, server, since, upto)
    except Exception as error:
        if is_outage(error):
            raise
    # Not even the rooms of the server may be readable, so look at everything there is, a little at a time.
    upto = min(upto, since + limits.TAIL_SPAN_MAX)
    found, failed = _collect_each(tx, own, lasting, since, upto)
    return Batch(upto, found.get(server, []), failed)


def _list_due(tx: Transaction, own: ServerName, edus: Edus, server: ServerName, since: int, upto: int) -> Batch:
    upto = min(upto, since + limits.CATCH_UP_SPAN)
    positions = sorted(_positions_to_send(tx, own, server, since, upto))
    if len(positions) > PDUS_MAX:
        positions = positions[:PDUS_MAX]
        upto = positions[-1]
    heads: dict[RoomID, Head | None] = {}

    def destinations_of(outgoing: OutgoingEdu) -> frozenset[ServerName]:
        return _edu_destinations(tx, own, outgoing, heads) & {server}

    rows = _rows_to_send(tx, own, positions)
    items = _pdu_items(
        tx, [row for row in rows if server in _destinations(tx, own, row, _head(tx, heads, row.room_id))]
    )
    edu_items, _ = _edu_items(tx, edus, since, upto, destinations_of, _together)
    return Batch(upto, items + [item for item, _ in edu_items], [])


def _pdu_items(tx: Transaction, rows: Sequence[StoredEvent]) -> list[Item]:
    return [
        Item(row.position, event.event_id, canonical_json.encode(event.pdu, strict=False))
        for row, event in zip(rows, to_events(tx, rows), strict=True)
    ]


def _edu_items(
    tx: Transaction,
    edus: Edus,
    since: int,
    upto: int,
    destinations_of: Callable[[OutgoingEdu], frozenset[ServerName]],
    each: _Each,
) -> tuple[list[tuple[Item, frozenset[ServerName]]], Failed]:
    """The EDUs of a span and where they go, without those that go nowhere."""
    items: list[tuple[Item, frozenset[ServerName]]] = []
    failed: Failed = []
    for edu_type, edu in edus.items():
        if edu.source is None:
            continue

        def encoded(
            span: Sequence[int], edu_type: str = edu_type, edu: Edu[Any] = edu
        ) -> Iterable[tuple[Item, frozenset[ServerName]]]:
            assert edu.source is not None
            for outgoing in edu.source(tx, span[0] - 1, span[-1]):
                if servers := destinations_of(outgoing):
                    yield _edu_item(upto, edu_type, edu, outgoing), servers

        of_source, failed_of_source = each(range(since + 1, upto + 1), encoded)
        items += of_source
        failed += failed_of_source
    return items, failed


def _edu_item(position: int, edu_type: str, edu: Edu[Any], outgoing: OutgoingEdu) -> Item:
    encoded = canonical_json.encode(
        {"edu_type": edu_type, "content": outgoing.content}, strict=False, depth_max=canonical_json.WRAPPED_DEPTH_MAX
    )
    subjects = frozenset((edu_type, subject) for subject in edu.subjects(outgoing.content))
    return Item(position, edu_type, encoded, is_edu=True, subjects=subjects)


def _rows_to_send(tx: Transaction, own: ServerName, positions: Collection[int]) -> list[StoredEvent]:
    """Those of the events that this server sends: of its own users, and what it passes on. By position."""
    exceptions: Mapping[int, int] = dict(
        tx.all_in("SELECT position, is_ours FROM relays WHERE position IN (?*)", list(positions))
    )
    stored = list_stored(tx, set(positions))
    return [
        row
        for _, row in sorted(stored.items())
        if row.state_before is not None and exceptions.get(row.position, server_name_of(row.sender) == own)
    ]


def _destinations(tx: Transaction, own: ServerName, row: StoredEvent, head: Head | None) -> frozenset[ServerName]:
    """The servers that were in the room at the event, plus the target's server if the event kicks or bans."""
    assert row.state_before is not None
    if head is None or (not head.extremities and head.members_position <= row.position):
        servers = servers_in(tx, row.state_before)
    elif head.members_position <= row.position:
        servers = list_joined_servers(tx, head)
    else:
        servers = servers_in(tx, row.state_before)
    if row.type == "m.room.member" and row.state_key is not None and row.content.get("membership") in ("leave", "ban"):
        # Not if it only lifts a ban: that server is not in the room.
        if membership_in(tx, row.state_before, row.state_key) in ("join", "invite", "knock"):
            servers = servers | {ServerName(row.state_key.partition(":")[2])}
    return servers - {own, server_name_of(row.sender)}


def _positions_to_send(tx: Transaction, own: ServerName, server: ServerName, since: int, upto: int) -> set[int]:
    """Our events of each room that the server is in, or was lately, and what we pass on.

    Of a room with too many of ours only the newest: what others have sent meanwhile must not count, since nothing may
    lead the server to what we then leave out.
    """
    positions = set(
        tx.values("SELECT position FROM relays WHERE position > ? AND position <= ? AND is_ours = 1", since, upto)
    )
    for room_nid in list_rooms_of_server(tx, server, since):
        positions.update(list_newest_from(tx, room_nid, own, since, upto, limits.CATCH_UP_ROOM_EVENTS_MAX))
    return positions


def _edu_destinations(
    tx: Transaction, own: ServerName, outgoing: OutgoingEdu, heads: dict[RoomID, Head | None]
) -> frozenset[ServerName]:
    servers = frozenset(outgoing.destinations)
    head = None if outgoing.room_id is None else _head(tx, heads, outgoing.room_id)
    if head is not None:
        servers |= list_joined_servers(tx, head)
    return servers - {own}


def _head(tx: Transaction, heads: dict[RoomID, Head | None], room_id: RoomID) -> Head | None:
    if room_id not in heads:
        heads[room_id] = find_head(tx, room_id)
    return heads[room_id]


# Storage: destinations that have not got everything


def list_destinations(tx: Transaction) -> tuple[dict[ServerName, tuple[int, BackOff | None]], Failed]:
    """The destinations that lag: up to which position each has everything, and its back-off if it is in one.

    And the numbers of those whose name cannot be read.
    """
    rows: list[tuple[Any, ...]] = tx.all(
        "SELECT server_nid, acked_position, failures, since_ms, retry_after_ms FROM destinations"
    )
    names, failed = try_each(tx, [row[0] for row in rows], lambda nids: tx.names(nids).items())
    by_nid = {row[0]: (row[1], BackOff(*row[2:]) if row[2] else None) for row in rows}
    return {ServerName(name): by_nid[nid] for nid, name in names}, failed


def store_destination(tx: Transaction, server: ServerName, acked_position: int, back_off: BackOff | None) -> None:
    """Stores that the destination has everything up to a position, and no more."""
    back_off = back_off or BackOff(0, tx.now_ms, tx.now_ms)
    tx.run(
        "INSERT INTO destinations (server_nid, acked_position, failures, since_ms, retry_after_ms)"
        " VALUES (?, ?, ?, ?, ?) ON CONFLICT (server_nid) DO UPDATE SET acked_position = excluded.acked_position,"
        " failures = excluded.failures, since_ms = excluded.since_ms, retry_after_ms = excluded.retry_after_ms",
        tx.intern(server),
        acked_position,
        back_off.failures,
        back_off.since_ms,
        back_off.retry_after_ms,
    )


def delete_destination(tx: Transaction, server: ServerName) -> None:
    """Notes that the destination has got everything."""
    tx.run("DELETE FROM destinations WHERE server_nid = ?", tx.find(server))
