"""The tables of relations are what a walk over all events says: a part of `check_consistency`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from homeserver.database import Row, Transaction
from homeserver.rooms.storage import Status, StoredEvent, stored_events

KINDS = {"m.replace": 1, "m.reference": 2, "m.thread": 3}


def check_relations(tx: Transaction, rows: Sequence[Row]) -> None:
    """Raises AssertionError if a relation is missing or left over, or a count is wrong. rows: all events."""
    events = {event.event_id: event for event in stored_events(tx, rows)}
    children: dict[StoredEvent, tuple[StoredEvent, str]] = {}
    waiting = set()
    for event in events.values():
        relates_to = relation_of(event)
        if event.status == Status.TIMELINE and relates_to is not None:
            parent = events.get(relates_to["event_id"])
            if parent is None:
                waiting.add(event.position)
            elif parent.room_id == event.room_id and parent is not event:
                children[event] = (parent, relates_to["rel_type"])
    assert set(tx.values("SELECT child FROM pending_relations")) == waiting, "children that wait for their parent"
    stored = tx.all("SELECT child, parent, rel_nid, ordering FROM relations")
    assert {(child, parent, tx.name(rel_nid), ordering) for child, parent, rel_nid, ordering in stored} == {
        (child.position, parent.position, rel_type, child.ordering) for child, (parent, rel_type) in children.items()
    }, "relations"
    _check_aggregations(tx, children)
    _check_participants(tx, children)


def relation_of(event: StoredEvent) -> Mapping[str, Any] | None:
    """The m.relates_to of an event, if it is well-formed."""
    relates_to = event.content.get("m.relates_to")
    if not isinstance(relates_to, dict):
        return None
    rel_type, event_id = relates_to.get("rel_type"), relates_to.get("event_id")
    is_valid = _is_name(rel_type) and _is_name(event_id) and event_id.startswith("$")
    return relates_to if is_valid else None


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value.encode("utf-8", "replace")) < 256 and "\0" not in value


def is_edit(parent: StoredEvent, child: StoredEvent) -> bool:
    """Returns whether a child is a valid edit, except that its parent may be one too."""
    is_encrypted = child.type == "m.room.encrypted"
    return (
        (parent.sender, parent.type, parent.state_key, child.state_key) == (child.sender, child.type, None, None)
    ) and (is_encrypted or isinstance(child.content.get("m.new_content"), dict))


def _check_aggregations(tx: Transaction, children: Mapping[StoredEvent, tuple[StoredEvent, str]]) -> None:
    expected: dict[tuple[int, int], list[StoredEvent]] = {}
    for child, (parent, rel_type) in children.items():
        if rel_type in KINDS and (rel_type != "m.replace" or is_edit(parent, child)):
            expected.setdefault((parent.position, KINDS[rel_type]), []).append(child)

    def latest(kind: int, of_kind: list[StoredEvent]) -> tuple[int, int]:
        if kind == KINDS["m.replace"]:
            newest = max(of_kind, key=lambda each: (each.origin_server_ts, each.event_id))
            return newest.position, newest.origin_server_ts
        newest = max(of_kind, key=lambda each: each.ordering or 0)
        return newest.position, newest.ordering or 0

    stored = tx.all("SELECT parent, kind, children, latest, latest_by FROM aggregations")
    assert {(parent, kind): (count, *rest) for parent, kind, count, *rest in stored} == {
        (parent, kind): (len(of_kind), *latest(kind, of_kind)) for (parent, kind), of_kind in expected.items()
    }, "aggregations"


def _check_participants(tx: Transaction, children: Mapping[StoredEvent, tuple[StoredEvent, str]]) -> None:
    replies: Counter[tuple[int, str]] = Counter()
    for child, (root, rel_type) in children.items():
        if rel_type == "m.thread":
            replies[root.position, root.sender] += 0
            replies[root.position, child.sender] += 1
    stored = tx.all("SELECT root, sender_nid, replies FROM thread_senders")
    assert {(root, tx.name(nid)): count for root, nid, count in stored} == dict(replies), "participants of threads"
