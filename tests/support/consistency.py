"""The invariants between the tables of rooms after every write: `await database.read(check_consistency)`.

Everything is computed here from the plainest definitions, bypassing the caches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache
from itertools import pairwise

from homeserver.database import Row, Transaction
from homeserver.federation.event import Event, parse_event
from homeserver.federation.hashing import content_hash
from homeserver.federation.identifiers import EventID, server_name_of
from homeserver.federation.state_resolution import Missing, resolve
from homeserver.rooms import state_tree
from homeserver.rooms.archive import reading
from homeserver.rooms.archive.blocks import find_archived, list_blocks, list_blocks_of, load_blocks
from homeserver.rooms.archive.format import EVENT_ID, POSITION, REDACTED_BY, STATE_BEFORE
from homeserver.rooms.envelope import event_id_of_key, references, unpack
from homeserver.rooms.events import to_events
from homeserver.rooms.heads import Head, find_head
from homeserver.rooms.storage import Status, StoredEvent, stored_events
from homeserver.rooms.timeline import END, START
from tests.support.consistent_relations import check_relations

State = dict[tuple[str, str], EventID]


def check_consistency(tx: Transaction) -> None:
    """Raises AssertionError if a room's tables contradict one another."""
    for (room_nid,) in tx.all("SELECT room_nid FROM rooms"):
        head = find_head(tx, tx.name(room_nid))
        assert head is not None
        _Check(tx, head).run()
    _check_nodes(tx)
    _check_positions(tx)
    _check_redactions(tx)
    _check_archive(tx)
    check_relations(tx, _list_all_rows(tx))


class _Check:
    """One room."""

    def __init__(self, tx: Transaction, head: Head) -> None:
        self.tx = tx
        self.head = head
        rows = list_rows_of_room(tx, head.room_nid)
        forgotten = tx.one("SELECT upto FROM forgotten_rooms WHERE room_nid = ?", head.room_nid)
        self.forgotten_upto = 0 if forgotten is None else forgotten[0]
        self.stored = {row.event_id: row for row in stored_events(tx, rows)}
        events = to_events(tx, list(self.stored.values()))
        self.events: dict[EventID, Event] = {event.event_id: event for event in events}
        self.by_position = {row.position: row for row in self.stored.values()}
        # Neighbours share a state, or follow on one another. More of them would need much memory in a large room.
        self.named = lru_cache(maxsize=16)(self._read_named)

    def run(self) -> None:
        self.check_events()
        self.check_states()
        self.check_head()
        self.check_memberships()
        self.check_missing()

    def check_events(self) -> None:
        for event_id, row in self.stored.items():
            event = self.events[event_id]
            parsed = parse_event(dict(event.pdu), event.version)
            assert parsed.event_id == event_id, f"{event_id} comes back as another event"
            assert event.room_id == self.head.room_id
            if row.redacted_by is None and row.position > self.forgotten_upto:
                claimed = event.pdu["hashes"]["sha256"]
                assert claimed == content_hash(event.pdu, event.version), f"{event_id} does not come back as it was"
            assert (row.ordering is not None) == (row.status == Status.TIMELINE), f"{event_id}: order and status"
            if row.status != Status.OUTLIER and row.status != Status.REJECTED:
                assert row.state_before is not None, f"{event_id} is placed without a state"
            for position in references(unpack(row.envelope)):
                assert position < row.position or row.status == Status.OUTLIER or position in self.by_position
            lacking = [auth_id for auth_id in event.auth_events if auth_id not in self.stored]
            assert not lacking, f"{event_id} lacks auth events"

    def check_states(self) -> None:
        """If all prev_events are placed, the state before an event is the resolution of the states after them."""
        for event_id, event in self.events.items():
            row = self.stored[event_id]
            if row.state_before is None or event.type == "m.room.create":
                continue
            before = [self.stored.get(prev_id) for prev_id in event.prev_events]
            if not all(each is not None and each.state_before is not None for each in before):
                continue
            states = [self.state_after(each) for each in before if each is not None]
            expected = self.resolve(states)
            assert self.named(row.state_before) == expected, f"{event_id}: the state before it is wrong"

    def check_head(self) -> None:
        head = self.head
        extremities = [self.by_position[position] for position in head.extremities]
        for row in extremities:
            assert row.status == Status.TIMELINE, f"the extremity {row.event_id} is not in the timeline"
        timeline = [row for row in self.stored.values() if row.status == Status.TIMELINE]
        cited = self.cited_by(timeline)
        doubled = [row.event_id for row in extremities if row.event_id in cited]
        assert not doubled, "events of the timeline follow on extremities"
        if extremities:
            newest = max(row.ordering or 0 for row in timeline)
            # What an earlier stay left loose does not count: only what came after the join that began this one.
            stays = [row.ordering for row in timeline if self.begins_stay(row)]
            begin = max((ordering for ordering in stays if ordering is not None), default=0)
            loose = {row.event_id for row in timeline if row.event_id not in cited and (row.ordering or 0) >= begin}
            assert loose == {row.event_id for row in extremities}, "the extremities are not the loose ends"
            assert self.named(head.state_root) == self.resolve([self.state_after(row) for row in extremities])
            assert head.depth >= max(self.events[row.event_id].depth for row in extremities)
            assert head.last_position << 20 >= newest, "last_position is not that of the newest event"
        assert head.members_position >= max(
            self.tx.values("SELECT changed_position FROM memberships WHERE room_nid = ?", head.room_nid), default=0
        )

    def cited_by(self, timeline: Iterable[StoredEvent]) -> set[EventID]:
        """Returns the events that events of the timeline follow on, also through events outside of it."""
        waiting = [prev_id for row in timeline for prev_id in self.events[row.event_id].prev_events]
        cited: set[EventID] = set()
        while waiting:
            event_id = waiting.pop()
            row = self.stored.get(event_id)
            if event_id not in cited and row is not None and row.status in (Status.REJECTED, Status.SOFT_FAILED):
                waiting += self.events[event_id].prev_events
            cited.add(event_id)
        return cited

    def begins_stay(self, row: StoredEvent) -> bool:
        """Returns whether another server gave the state before the event: it follows on nothing in the timeline."""
        event = self.events[row.event_id]
        before = [self.stored.get(prev_id) for prev_id in event.prev_events]
        return event.membership == "join" and not any(
            each is not None and each.state_before is not None and (each.ordering or 0) < (row.ordering or 0)
            for each in before
        )

    def check_memberships(self) -> None:
        rows = self.tx.all(
            "SELECT user_nid, membership, event_position, server_nid, stripped FROM memberships WHERE room_nid = ?",
            self.head.room_nid,
        )
        inside: dict[str, tuple[str, int]] = {}
        for user_nid, membership, position, server_nid, stripped in rows:
            user_id = self.tx.name(user_nid)
            assert self.tx.name(server_nid) == server_name_of(user_id)
            ended_outside = membership == "leave" and position not in self.by_position
            is_told = membership in ("invite", "knock")
            assert ended_outside or (stripped is not None) == is_told, f"{user_id}: stripped state"
            if position in self.by_position:
                inside[user_id] = (membership, position)
            else:
                assert membership in ("invite", "knock", "leave"), f"{user_id} is {membership} by no event"
        expected = {}
        for (event_type, user_id), event_id in self.named(self.head.state_root).items():
            if event_type == "m.room.member":
                expected[user_id] = (self.events[event_id].membership, self.stored[event_id].position)
        if self.head.extremities:
            assert inside == expected, "memberships are not those of the state"

    def check_missing(self) -> None:
        rows = self.tx.all("SELECT event_id, child FROM missing_events WHERE room_nid = ?", self.head.room_nid)
        noted = {(event_id_of_key(bytes(key)), child) for key, child in rows}
        for event_id, child in noted:
            stored = self.stored.get(event_id)
            assert stored is None or stored.state_before is None, f"{event_id} is placed and yet missing"
            assert self.by_position[child].status == Status.TIMELINE
        missing = {event_id for event_id, _ in noted}
        for row in self.stored.values():
            if row.status == Status.TIMELINE:
                for prev_id in self.events[row.event_id].prev_events:
                    known = self.stored.get(prev_id)
                    if known is None or known.state_before is None:
                        assert prev_id in missing, f"{prev_id}, which {row.event_id} names, is not noted as missing"

    def _read_named(self, root: bytes) -> State:
        """A state by names, without the cache of the tree. Callers do not change it."""
        entries = state_tree.items(self.tx, root)
        return {
            (self.tx.name(kind), self.tx.name(key)): self.by_position[position].event_id
            for (kind, key), position in entries.items()
        }

    def state_after(self, row: StoredEvent) -> State:
        assert row.state_before is not None
        state = self.named(row.state_before)
        if row.state_key is None or row.status == Status.REJECTED:
            return state
        return {**state, (row.type, row.state_key): row.event_id}

    def resolve(self, states: list[State]) -> State:
        if all(state == states[0] for state in states):
            return states[0]
        resolved = resolve(self.head.version, states, self.events)
        assert not isinstance(resolved, Missing)
        return resolved


def _check_nodes(tx: Transaction) -> None:
    """Every root and every node below it is stored, and nothing else is."""
    stored = {bytes(node_id) for node_id in tx.values("SELECT node_id FROM state_nodes")}
    roots = {bytes(row[STATE_BEFORE]) for row in _list_all_rows(tx) if row[STATE_BEFORE] is not None}
    roots |= {bytes(root) for root in tx.values("SELECT state_root FROM rooms")}
    roots |= {bytes(root) for root in tx.values("SELECT state_root FROM resolved_heads")}
    reached = _reach(tx, roots - {state_tree.EMPTY_ROOT})
    assert reached <= stored | {state_tree.EMPTY_ROOT}, "a state node is missing"


def _reach(tx: Transaction, roots: Collection[bytes]) -> set[bytes]:
    reached = set(roots)
    waiting = list(roots)
    while waiting:
        for child in state_tree.children(tx, waiting.pop()):
            if child not in reached:
                reached.add(child)
                waiting.append(child)
    return reached


def _check_positions(tx: Transaction) -> None:
    assert _largest(tx.values("SELECT position FROM events")) <= tx.position
    assert _largest(tx.values("SELECT changed_position FROM memberships")) <= tx.position


def _largest(values: Iterable[int]) -> int:
    return max(values, default=0)


def _check_redactions(tx: Transaction) -> None:
    rows = _list_all_rows(tx)
    known = {bytes(row[EVENT_ID]) for row in rows}
    by_position = {row[POSITION]: row for row in rows}
    for key, redaction in tx.all("SELECT event_id, redaction FROM pending_redactions"):
        assert bytes(key) not in known, "the target of a pending redaction is there"
        assert redaction in by_position
    for row in rows:
        if row[REDACTED_BY] not in (None, row[POSITION]):  # an expired message has redacted itself
            redacting = by_position[row[REDACTED_BY]]
            (redaction,) = to_events(tx, stored_events(tx, [redacting]))
            assert redaction.type == "m.room.redaction"
            redacts = redaction.redacts
            is_redacted_itself = redacting[REDACTED_BY] is not None and not redaction.version.redacts_in_content
            assert is_redacted_itself or redacts == event_id_of_key(bytes(row[EVENT_ID]))


def list_rows_of_room(tx: Transaction, room_nid: int) -> list[Row]:
    """Returns all events of a room, archived or not, by position. A row counts for more than the event in a block."""
    rows = tx.all(
        "SELECT position, event_id, room_nid, ordering, type_nid, state_key_nid, sender_nid, origin_server_ts,"
        " status, redacted_by, state_before, device_id, txn_id, envelope, content FROM events WHERE room_nid = ?",
        room_nid,
    )
    archived = reading.rows_between(tx, room_nid, START, END, 1 << 20, forwards=True)
    by_position = {row[POSITION]: row for row in (*archived, *rows)}
    return [by_position[position] for position in sorted(by_position)]


def _list_all_rows(tx: Transaction) -> list[Row]:
    return [row for nid in tx.values("SELECT room_nid FROM rooms") for row in list_rows_of_room(tx, nid)]


def _check_archive(tx: Transaction) -> None:
    """Blocks of a room do not overlap, and each event of a block is found by its ID and by its position."""
    for room_nid in tx.values("SELECT room_nid FROM rooms"):
        listed = list_blocks(tx, room_nid)
        for before, after in pairwise(listed):
            assert before.last_ordering < after.first_ordering, "two blocks overlap"
        for row, block in zip(listed, load_blocks(tx, listed), strict=True):
            keys = {block.key(index): block.positions[index] for index in range(len(block))}
            assert find_archived(tx, keys) == keys
            assert {*list_blocks_of(tx, block.positions)[row.block]} == {*block.positions}
            assert (row.first_ordering, row.last_ordering) == (block.orderings[0], block.orderings[-1])
            changed = tx.all_in("SELECT position FROM events WHERE position IN (?*)", block.positions)
            assert not changed or tx.one("SELECT 1 FROM archive_stale WHERE block = ?", row.block) is not None
