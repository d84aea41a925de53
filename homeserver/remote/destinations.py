"""Collects what each server has to be sent: the events and EDUs of a span of the stream, by destination and lane.

Spec: server-server-api/#pdus, #edus. Everything here is read from tables, so it can be read again at any time. Events
and EDUs are encoded here, once for all destinations.

Theory of operation
- `collect` reads a span of the stream for all destinations at once. `list_due` reads what one destination has missed.
- A destination has two lanes (`homeserver/process/lanes.py`). Durable EDUs that have a position of their own go in the
  durable lane. Events and all other EDUs go in the ordinary one: events at their positions, then EDUs at the end of the
  span.
- What is missed in the ordinary lane is bounded: the newest events of each room, no short-lived EDUs, and the EDUs of
  the positions that were read. In the durable lane nothing is left out: from a type with an `EduQueue` we read the
  first rows of the destination, and from any other one span after span until there is enough for a transaction.
  Neither reads rooms or their history.
- Usually a span is read as a whole. If that fails, because something in it is damaged or cannot be encoded, it is read
  again position by position. What can be read is sent, and the other positions are returned with the reason.
- `destinations_behind` has a row for each lane of a destination that lags. What an `EduQueue` keeps is deleted by
  `note_acknowledged`, at the latest in the write that stores the position up to which the destination has everything.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from homeserver import limits
from homeserver.database import Transaction
from homeserver.database.lane import try_each
from homeserver.feature import Edu, OutgoingEdu
from homeserver.federation import canonical_json
from homeserver.federation.identifiers import RoomID, ServerName, server_name_of
from homeserver.federation.transaction import PDUS_MAX
from homeserver.process.back_off import BackOff
from homeserver.process.outages import is_outage
from homeserver.rooms.activity import list_message_rooms
from homeserver.rooms.events import to_events
from homeserver.rooms.heads import Head, find_head
from homeserver.rooms.membership import list_joined_servers, list_rooms_of_server
from homeserver.rooms.storage import PlacedEvent, count_messages, list_positions, list_stored
from homeserver.rooms.timeline import list_newest_from
from homeserver.rooms.visibility import membership_in, servers_in

R = TypeVar("R")

# The longest span whose messages are counted before the sources of EDUs are asked.
_SPAN_EXAMINED_MAX = 50

Edus = Mapping[str, Edu[Any]]
"""What the features declare, by EDU type."""


class Item(msgspec.Struct, frozen=True, eq=False):
    """One PDU or EDU to be sent, as canonical JSON. All its destinations share one instance.

    name: its name in the log. subjects: the things whose latest state an EDU gives, see `Edu.coalesce_by`.
    is_durable: whether it goes in the durable lane.
    """

    position: int
    name: str
    data: bytes
    is_edu: bool = False
    subjects: frozenset[Hashable] = frozenset()
    is_durable: bool = False


Failed = list[tuple[int, Exception]]
"""Positions whose event or EDU cannot be sent, and why."""


class News(msgspec.Struct, frozen=True):
    """What is new for one destination, in each of its lanes, in order."""

    durable: list[Item] = msgspec.field(default_factory=list)
    ordinary: list[Item] = msgspec.field(default_factory=list)


class Batch(msgspec.Struct, frozen=True):
    """What a destination lacks in one lane up to a position, in order: about as much as one transaction holds."""

    upto: int
    items: list[Item]
    failed: Failed


class _Each(Protocol):
    """Calls a function with the items. Returns its results, and the items on which it failed."""

    def __call__(
        self, items: Sequence[int], fn: Callable[[Sequence[int]], Iterable[R]], /
    ) -> tuple[list[R], Failed]: ...


def _together(items: Sequence[int], fn: Callable[[Sequence[int]], Iterable[R]], /) -> tuple[list[R], Failed]:
    return list(fn(items)), []


def collect(
    tx: Transaction, own: ServerName, edus: Edus, since: int, upto: int
) -> tuple[dict[ServerName, News], Failed]:
    """Returns what is new for each destination in since < position ≤ upto, in order, and what cannot be sent."""
    try:
        return tx.attempt(_collect_together, tx, own, edus, since, upto)
    except Exception as error:  # something cannot be read, but the rest can still be sent
        if is_outage(error):
            raise
        return _collect_each(tx, own, edus, since, upto)


def _collect_together(
    tx: Transaction, own: ServerName, edus: Edus, since: int, upto: int
) -> tuple[dict[ServerName, News], Failed]:
    """Does the same as `collect`. Messages cause no EDUs, so where there is nothing else no source is asked."""
    has_only_messages = upto - since <= _SPAN_EXAMINED_MAX and count_messages(tx, since, upto) == upto - since
    return _collect(tx, own, {} if has_only_messages else edus, since, upto, _together)


def _collect_each(
    tx: Transaction, own: ServerName, edus: Edus, since: int, upto: int
) -> tuple[dict[ServerName, News], Failed]:
    """Does the same as `collect`, position by position, because something in the span cannot be read."""

    def each(items: Sequence[int], fn: Callable[[Sequence[int]], Iterable[R]], /) -> tuple[list[R], Failed]:
        return try_each(tx, items, fn)

    return _collect(tx, own, edus, since, upto, each)


def _collect(
    tx: Transaction, own: ServerName, edus: Edus, since: int, upto: int, each: _Each
) -> tuple[dict[ServerName, News], Failed]:
    found: dict[ServerName, News] = {}
    heads: dict[RoomID, Head | None] = {}

    def pdus(span: Sequence[int]) -> list[tuple[Item, frozenset[ServerName]]]:
        positions = list_positions(tx, span[0] - 1, span[-1])
        rows = _list_events_to_send(tx, own, _without_local(tx, own, positions, heads))
        destinations = {row.position: _destinations(tx, own, row, _head(tx, heads, row.room_id)) for row in rows}
        wanted = [row for row in rows if destinations[row.position]]
        return [(item, destinations[item.position]) for item in _pdu_items(tx, wanted)]

    def destinations_of(outgoing: OutgoingEdu) -> frozenset[ServerName]:
        return _edu_destinations(tx, own, outgoing, heads)

    items, failed = each(range(since + 1, upto + 1), pdus)
    edu_items, failed_edus = _edu_items(tx, edus, since, upto, destinations_of, each)
    for item, servers in (*items, *edu_items):
        for server in servers:
            news = found.setdefault(server, News())
            (news.durable if item.is_durable else news.ordinary).append(item)
    return found, failed + failed_edus


def list_due(tx: Transaction, own: ServerName, edus: Edus, server: ServerName, since: int, upto: int) -> Batch:
    """Returns what `server` lacks in the ordinary lane after `since`, up to a position ≤ `upto`.

    Only the newest events of busy rooms are listed.
    """
    lasting = {edu_type: edu for edu_type, edu in edus.items() if not edu.short_lived and edu.queue is None}
    try:
        return tx.attempt(_list_due, tx, own, lasting, server, since, upto)
    except Exception as error:  # something cannot be read, but the rest can still be sent
        if is_outage(error):
            raise
    # Perhaps not even the server's list of rooms is readable, so go through all positions, a few at a time.
    upto = min(upto, since + limits.TAIL_SPAN_MAX)
    found, failed = _collect_each(tx, own, lasting, since, upto)
    return Batch(upto, found.get(server, News()).ordinary, failed)


def list_due_durable(tx: Transaction, own: ServerName, edus: Edus, server: ServerName, since: int, upto: int) -> Batch:
    """Returns what `server` lacks in the durable lane after `since`, up to a position ≤ `upto`."""
    durable = {edu_type: edu for edu_type, edu in edus.items() if edu.durable}
    try:
        return tx.attempt(_list_due_durable, tx, own, durable, server, since, upto)
    except Exception as error:  # something cannot be read, but the rest can still be sent
        if is_outage(error):
            raise
    upto = min(upto, since + limits.TAIL_SPAN_MAX)

    def each(items: Sequence[int], fn: Callable[[Sequence[int]], Iterable[R]], /) -> tuple[list[R], Failed]:
        return try_each(tx, items, fn)

    items, failed = _edu_items(tx, durable, since, upto, _only_to(tx, own, server), each)
    return Batch(upto, [item for item, _ in items if item.is_durable], failed)


def _list_due_durable(tx: Transaction, own: ServerName, edus: Edus, server: ServerName, since: int, upto: int) -> Batch:
    upto = min(upto, since + limits.peers.CATCH_UP_SPAN) if any(edu.queue is None for edu in edus.values()) else upto
    items: list[Item] = []
    for edu_type, edu in edus.items():
        if edu.queue is not None:
            of_type = [
                _edu_item(upto, edu_type, edu, outgoing)
                for outgoing in edu.queue.list_first(tx, server, since, upto, limits.peers.CATCH_UP_DURABLE_EDUS)
            ]
            if len(of_type) == limits.peers.CATCH_UP_DURABLE_EDUS:
                upto = of_type[-1].position
        else:
            of_type, upto = _first_of_source(tx, {edu_type: edu}, _only_to(tx, own, server), since, upto)
        items += of_type
    return Batch(upto, sorted((item for item in items if item.position <= upto), key=_position), [])


def _first_of_source(
    tx: Transaction, edus: Edus, destinations_of: Callable[[OutgoingEdu], frozenset[ServerName]], since: int, upto: int
) -> tuple[list[Item], int]:
    """Returns the first EDUs, read span by span until there are enough, and the position up to which it has read."""
    items: list[Item] = []
    while since < upto and len(items) < limits.peers.CATCH_UP_DURABLE_EDUS:
        end = min(upto, since + limits.TAIL_SPAN_MAX)
        found, _ = _edu_items(tx, edus, since, end, destinations_of, _together)
        items += [item for item, _ in found if item.is_durable]
        since = end
    return items, since


def _only_to(tx: Transaction, own: ServerName, server: ServerName) -> Callable[[OutgoingEdu], frozenset[ServerName]]:
    heads: dict[RoomID, Head | None] = {}
    return lambda outgoing: _edu_destinations(tx, own, outgoing, heads) & {server}


def _position(item: Item) -> int:
    return item.position


def _list_due(tx: Transaction, own: ServerName, edus: Edus, server: ServerName, since: int, upto: int) -> Batch:
    upto = min(upto, since + limits.peers.CATCH_UP_SPAN)
    positions = sorted(_list_positions_to_send(tx, own, server, since, upto))
    if len(positions) > PDUS_MAX:
        positions = positions[:PDUS_MAX]
        upto = positions[-1]
    heads: dict[RoomID, Head | None] = {}
    rows = _list_events_to_send(tx, own, positions)
    items = _pdu_items(
        tx, [row for row in rows if server in _destinations(tx, own, row, _head(tx, heads, row.room_id))]
    )
    edu_items, _ = _edu_items(tx, edus, since, upto, _only_to(tx, own, server), _together)
    return Batch(upto, items + [item for item, _ in edu_items if not item.is_durable], [])


def _pdu_items(tx: Transaction, rows: Sequence[PlacedEvent]) -> list[Item]:
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
    """Returns the EDUs of a span by position, each with its destinations, without those that have none."""
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
    return sorted(items, key=lambda found: found[0].position), failed


def _edu_item(upto: int, edu_type: str, edu: Edu[Any], outgoing: OutgoingEdu) -> Item:
    is_durable = edu.durable and outgoing.position is not None
    position = outgoing.position if is_durable and outgoing.position is not None else upto
    encoded = canonical_json.encode(
        {"edu_type": edu_type, "content": outgoing.content}, strict=False, depth_max=canonical_json.WRAPPED_DEPTH_MAX
    )
    subjects = frozenset((edu_type, subject) for subject in edu.subjects(outgoing.content))
    return Item(position, edu_type, encoded, is_edu=True, subjects=subjects, is_durable=is_durable)


def _without_local(
    tx: Transaction, own: ServerName, positions: Collection[int], heads: dict[RoomID, Head | None]
) -> set[int]:
    """Returns the positions without those of messages in rooms without other servers: they need not be read."""
    wanted = set(positions)
    for position, room_id in list_message_rooms(tx, positions):
        head = _head(tx, heads, room_id)
        if head is not None and head.extremities and head.members_position <= position:
            if list_joined_servers(tx, head) <= {own}:
                wanted.discard(position)
    return wanted


def _list_events_to_send(tx: Transaction, own: ServerName, positions: Collection[int]) -> list[PlacedEvent]:
    """Returns the events at these positions that this server sends, in order: its own, and those that it relays."""
    if not positions:
        return []
    exceptions: Mapping[int, int] = dict(
        tx.all_in("SELECT position, is_ours FROM relays WHERE position IN (?*)", list(positions))
    )
    stored = list_stored(tx, set(positions))
    return [
        row
        for _, row in sorted(stored.items())
        if isinstance(row, PlacedEvent) and exceptions.get(row.position, server_name_of(row.sender) == own)
    ]


def _destinations(tx: Transaction, own: ServerName, row: PlacedEvent, head: Head | None) -> frozenset[ServerName]:
    """The servers that were in the room at the event, plus the target's server if the event kicks or bans."""
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
    if row.content.get("membership") == "invite" and "third_party_invite" in row.content:
        return servers - {own}  # the invited user's server may have made it, then the sender's does not have it
    return servers - {own, server_name_of(row.sender)}


def _list_positions_to_send(tx: Transaction, own: ServerName, server: ServerName, since: int, upto: int) -> set[int]:
    """Our events of each room that the server is in or was in lately, and the events that we relay.

    If a room has too many of our events, only the newest are returned. Events of other servers do not count towards
    that limit: they may not cite ours, and then nothing leads the server to those that we leave out.
    """
    positions = set(
        tx.values("SELECT position FROM relays WHERE position > ? AND position <= ? AND is_ours = 1", since, upto)
    )
    for room_nid in list_rooms_of_server(tx, server, since):
        positions.update(list_newest_from(tx, room_nid, own, since, upto, limits.peers.CATCH_UP_ROOM_EVENTS_MAX))
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


# Storage: lanes of destinations that lag


def list_destinations(tx: Transaction) -> tuple[dict[ServerName, dict[bool, tuple[int, BackOff | None]]], Failed]:
    """Returns the destinations that lag, and the numbers of those whose name cannot be read.

    Each destination has an entry for each lane (True: the durable one): the position up to which it has everything in
    that lane, and the back-off if it is in one.
    """
    rows: list[tuple[Any, ...]] = tx.all(
        "SELECT server_nid, is_durable, acked_position, failures, since_ms, retry_after_ms FROM destinations_behind"
    )
    names, failed = try_each(tx, sorted({row[0] for row in rows}), lambda nids: tx.names(nids).items())
    servers = {nid: ServerName(name) for nid, name in names}
    found: dict[ServerName, dict[bool, tuple[int, BackOff | None]]] = {}
    for nid, is_durable, acked, *back_off in rows:
        if nid in servers:
            lanes = found.setdefault(servers[nid], {})
            lanes[bool(is_durable)] = (acked, BackOff(*back_off) if back_off[0] else None)
    return found, failed


def store_destination(
    tx: Transaction, edus: Edus, server: ServerName, is_durable: bool, acked_position: int, back_off: BackOff | None
) -> None:
    """Stores the position up to which the destination has everything in that lane, and its back-off."""
    back_off = back_off or BackOff(0, tx.now_ms, tx.now_ms)
    tx.run(
        "INSERT INTO destinations_behind (server_nid, is_durable, acked_position, failures, since_ms, retry_after_ms)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (server_nid, is_durable) DO UPDATE SET"
        " acked_position = excluded.acked_position, failures = excluded.failures, since_ms = excluded.since_ms,"
        " retry_after_ms = excluded.retry_after_ms",
        tx.intern(server),
        int(is_durable),
        acked_position,
        back_off.failures,
        back_off.since_ms,
        back_off.retry_after_ms,
    )
    if is_durable:
        note_acknowledged(tx, edus, {server: acked_position})


def delete_destination(tx: Transaction, server: ServerName, is_durable: bool) -> None:
    """Notes that the destination has everything in that lane."""
    tx.run("DELETE FROM destinations_behind WHERE server_nid = ? AND is_durable = ?", tx.find(server), int(is_durable))


def note_acknowledged(tx: Transaction, edus: Edus, acked: Mapping[ServerName, int]) -> None:
    """Deletes what was kept for these destinations, up to the position that each has acknowledged."""
    for edu in edus.values():
        if edu.queue is not None:
            for server, upto in acked.items():
                edu.queue.acknowledge(tx, server, upto)
