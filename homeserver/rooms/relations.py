"""Relations between events: who relates to which event, and what is bundled with an event.

Theory of operation. An event of a timeline is a *child* of the event that its `m.relates_to` refers to, its *parent*,
if both are in the same room. A child gets its row in the write that stores it (`store_relation`), whether it is new or
backfilled. If the parent is not stored yet, the child waits in `pending_relations` until it is
(`store_waiting_relations`). A redaction removes the row at once (`delete_relation`).

`aggregations` has one row for each parent with edits, references or a thread. It is updated in the same writes, so that
readers never count. It has only children that are valid by facts that never change. Whether the parent may have such
children depends on its content, which a redaction changes; this is checked by readers, see `homeserver.rooms.bundles`.

Events from before these tables existed are in the backlog, which a background task works through (`store_backlog`).

Spec: client-server-api/#forming-relationships-between-events
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import IntEnum
from hashlib import blake2b
from typing import Any, NamedTuple

from homeserver import limits
from homeserver.database import Row, Transaction
from homeserver.errors import MatrixError
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID, InvalidIdentifier, RoomID, fits, parse_event_id
from homeserver.rooms.envelope import event_key
from homeserver.rooms.rewrites import note_rewrite
from homeserver.rooms.storage import (
    StoredEvent,
    TimelineEvent,
    find_position,
    find_stored,
    find_stored_by_id,
    list_in_timeline,
    list_positions,
    list_stored,
)

ANNOTATION = "m.annotation"
EDIT = "m.replace"
REFERENCE = "m.reference"
THREAD = "m.thread"

_NID_MAX = 1 << 62


class Kind(IntEnum):
    """What is bundled with an event. The numbers are stored."""

    EDITS = 1
    REFERENCES = 2
    THREAD = 3


_KINDS = {EDIT: Kind.EDITS, REFERENCE: Kind.REFERENCES, THREAD: Kind.THREAD}


class Relation(NamedTuple):
    """The valid `m.relates_to` of an event. key: of an annotation."""

    rel_type: str
    parent_id: EventID
    key: str | None


class Aggregation(NamedTuple):
    """The children of one kind of an event. latest: the position of the newest one."""

    parent: int
    kind: int
    children: int
    latest: int


def find_relation(content: Mapping[str, Any]) -> Relation | None:
    """Returns the relation in the content of an event, None if it has none or a malformed one."""
    relates_to = content.get("m.relates_to")
    if not isinstance(relates_to, dict):
        return None
    rel_type, key = relates_to.get("rel_type"), relates_to.get("key")
    if not isinstance(rel_type, str) or not rel_type or "\0" in rel_type or not fits(rel_type):
        return None
    try:
        parent_id = parse_event_id(relates_to.get("event_id"))
    except InvalidIdentifier:
        return None
    return Relation(rel_type, parent_id, key if rel_type == ANNOTATION and isinstance(key, str) else None)


def check_may_relate(tx: Transaction, sender: str, event_type: str, content: Mapping[str, Any]) -> None:
    """Raises MatrixError 400 if the event repeats an annotation, or would start a thread off a related event.

    Spec: client-server-api/#avoiding-duplicate-annotations, #validation-of-mthread-relationships
    """
    relation = find_relation(content) if "m.relates_to" in content else None
    if relation is None:
        return
    if relation.key is not None and _has_annotation(tx, relation.parent_id, sender, event_type, relation.key):
        raise MatrixError(400, "M_DUPLICATE_ANNOTATION", "You have already sent this annotation of that event.")
    if relation.rel_type == THREAD:
        root = find_stored_by_id(tx, relation.parent_id)
        if root is not None and find_relation(root.content) is not None:
            raise MatrixError(400, "M_UNKNOWN", "A thread cannot start at an event that relates to another event.")


def _has_annotation(tx: Transaction, parent_id: EventID, sender: str, event_type: str, key: str) -> bool:
    parent, sender_nid, type_nid = find_position(tx, parent_id), tx.find(sender), tx.find(event_type)
    if parent is None or sender_nid is None or type_nid is None:
        return False
    found = tx.one(
        "SELECT 1 FROM relations WHERE parent = ? AND sender_nid = ? AND type_nid = ? AND annotation = ?",
        parent, sender_nid, type_nid, _digest(key),
    )  # fmt: skip
    return found is not None


def _digest(key: str) -> bytes:
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


# --- writes ---


def store_relation(tx: Transaction, event: Event | StoredEvent, position: int, ordering: int) -> None:
    """Stores to which event an event of the timeline relates. Does nothing for events that relate to none."""
    relation = find_relation(event.content) if "m.relates_to" in event.content else None
    if relation is None:
        return
    parent = find_stored_by_id(tx, relation.parent_id)
    if parent is None:
        tx.run(
            "INSERT INTO pending_relations (event_id, child) VALUES (?, ?) ON CONFLICT DO NOTHING",
            event_key(relation.parent_id), position,
        )  # fmt: skip
    elif parent.room_id == event.room_id and parent.position != position:
        _insert_child(tx, parent, relation, event, position, ordering)


def store_waiting_relations(tx: Transaction, event: Event) -> None:
    """Stores the relations of children that arrived before the event, which was just stored."""
    key = event_key(event.event_id)
    waiting = tx.values("SELECT child FROM pending_relations WHERE event_id = ?", key)
    if waiting:
        tx.run("DELETE FROM pending_relations WHERE event_id = ?", key)
        for position, child in list_in_timeline(tx, waiting).items():
            store_relation(tx, child, position, child.ordering)


def delete_relation(tx: Transaction, event: StoredEvent) -> None:
    """Deletes the relation of an event that is being redacted. `event`: as it was before."""
    row = tx.one("SELECT parent, rel_nid, sender_nid, edit_ts FROM relations WHERE child = ?", event.position)
    if row is None:
        relation = find_relation(event.content)
        if relation is not None:
            key = event_key(relation.parent_id)
            tx.run("DELETE FROM pending_relations WHERE event_id = ? AND child = ?", key, event.position)
        return
    parent, rel_nid, sender_nid, edit_ts = row
    tx.run("DELETE FROM relations WHERE child = ?", event.position)
    kind = _KINDS.get(tx.name(rel_nid))
    if kind is None or (kind == Kind.EDITS and edit_ts is None):
        return
    latest = _find_latest(tx, parent, kind, rel_nid)
    if latest is None:
        tx.run("DELETE FROM aggregations WHERE parent = ? AND kind = ?", parent, int(kind))
    else:
        tx.run(
            "UPDATE aggregations SET children = children - 1, latest = ?, latest_by = ? WHERE parent = ? AND kind = ?",
            *latest, parent, int(kind),
        )  # fmt: skip
    if kind == Kind.THREAD:
        if latest is None:
            tx.run("DELETE FROM thread_senders WHERE root = ?", parent)
        else:
            _store_replies(tx, parent, sender_nid, -1)
            root = find_stored(tx, parent)
            if root is None or root.sender != tx.name(sender_nid):
                tx.run(
                    "DELETE FROM thread_senders WHERE root = ? AND sender_nid = ? AND replies = 0", parent, sender_nid
                )


def forget_relations(tx: Transaction, positions: Collection[int]) -> None:
    """Deletes the relations of and to these events, and what is bundled with them. Their contents are forgotten."""
    rows = [(position,) for position in positions]
    tx.many("DELETE FROM relations WHERE child = ?", rows)
    tx.many("DELETE FROM relations WHERE parent = ?", rows)
    tx.many("DELETE FROM aggregations WHERE parent = ?", rows)
    tx.many("DELETE FROM thread_senders WHERE root = ?", rows)
    if positions:
        waiting = tx.all(
            "SELECT event_id, child FROM pending_relations WHERE child >= ? AND child <= ?",
            min(positions), max(positions),
        )  # fmt: skip
        ours = [row for row in waiting if row[1] in {*positions}]
        tx.many("DELETE FROM pending_relations WHERE event_id = ? AND child = ?", ours)


def _insert_child(
    tx: Transaction,
    parent: StoredEvent,
    relation: Relation,
    event: Event | StoredEvent,
    position: int,
    ordering: int,
) -> None:
    kind = _KINDS.get(relation.rel_type)
    is_edit = kind == Kind.EDITS and _is_valid_edit(parent, event)
    rel_nid, sender_nid = tx.intern(relation.rel_type), tx.intern(event.sender)
    inserted = tx.run(
        "INSERT INTO relations"
        " (child, parent, rel_nid, type_nid, sender_nid, ordering, annotation, edit_ts, edit_id)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (child) DO NOTHING",
        position, parent.position, rel_nid, tx.intern(event.type), sender_nid, ordering,
        None if relation.key is None else _digest(relation.key),
        event.origin_server_ts if is_edit else None,
        event.event_id.encode() if is_edit else None,
    )  # fmt: skip
    if not inserted or kind is None or (kind == Kind.EDITS and not is_edit):
        return
    latest = _find_latest(tx, parent.position, kind, rel_nid)
    assert latest is not None
    tx.run(
        "INSERT INTO aggregations (parent, kind, room_nid, children, latest, latest_by) VALUES (?, ?, ?, 1, ?, ?)"
        " ON CONFLICT (parent, kind) DO UPDATE SET children = aggregations.children + 1,"
        " latest = excluded.latest, latest_by = excluded.latest_by",
        parent.position, int(kind), tx.intern(event.room_id), *latest,
    )  # fmt: skip
    if kind == Kind.THREAD:
        _store_replies(tx, parent.position, tx.intern(parent.sender), 0)
        _store_replies(tx, parent.position, sender_nid, 1)


def _is_valid_edit(parent: StoredEvent, event: Event | StoredEvent) -> bool:
    """Returns whether the event may replace its parent. Spec: client-server-api/#validity-of-replacement-events

    Readers check that the parent is not an edit itself. The content of encrypted events is up to the clients.
    """
    return (
        parent.sender == event.sender
        and parent.type == event.type
        and parent.state_key is None
        and event.state_key is None
        and (event.type == "m.room.encrypted" or isinstance(event.content.get("m.new_content"), dict))
    )


def _find_latest(tx: Transaction, parent: int, kind: Kind, rel_nid: int) -> tuple[int, int] | None:
    """Returns the newest child, and what it is the newest by: see the table `aggregations`."""
    if kind == Kind.EDITS:
        row = tx.one(
            "SELECT child, edit_ts FROM relations WHERE parent = ? AND edit_ts IS NOT NULL"
            " ORDER BY edit_ts DESC, edit_id DESC LIMIT 1",
            parent,
        )
    else:
        row = tx.one(
            "SELECT child, ordering FROM relations WHERE parent = ? AND rel_nid = ? ORDER BY ordering DESC LIMIT 1",
            parent, rel_nid,
        )  # fmt: skip
    return None if row is None else (row[0], row[1])


def _store_replies(tx: Transaction, root: int, sender_nid: int, number: int) -> None:
    tx.run(
        "INSERT INTO thread_senders (root, sender_nid, replies) VALUES (?, ?, ?)"
        " ON CONFLICT (root, sender_nid) DO UPDATE SET replies = thread_senders.replies + excluded.replies",
        root, sender_nid, number,
    )  # fmt: skip


# --- the backlog ---


def has_backlog(tx: Transaction) -> bool:
    """Returns whether there are events whose relations have yet to be stored."""
    return tx.one("SELECT 1 FROM relations_backlog WHERE position < upto") is not None


def store_backlog(tx: Transaction, limit: int) -> bool:
    """Stores the relations of some events of the backlog, and returns whether there are more."""
    row = tx.one("SELECT position, upto FROM relations_backlog WHERE position < upto")
    if row is None:
        return False
    since, upto = row[0], min(row[0] + limit, row[1])
    for event in list_stored(tx, list_positions(tx, since, upto)).values():
        if isinstance(event, TimelineEvent):
            store_relation(tx, event, event.position, event.ordering)
            note_rewrite(tx, tx.find(event.room_id))
    tx.run("UPDATE relations_backlog SET position = ? WHERE id = 1", upto)
    return bool(upto < row[1])


# --- reads ---


def list_aggregations(tx: Transaction, parents: Collection[int]) -> list[Aggregation]:
    """Returns what the events at these positions have of each kind."""
    rows = tx.all_in("SELECT parent, kind, children, latest FROM aggregations WHERE parent IN (?*)", parents)
    return [Aggregation(*row) for row in rows]


def list_edits(tx: Transaction, parent: int, limit: int) -> list[TimelineEvent]:
    """Returns at most `limit` valid edits of an event, the most recent first."""
    positions = tx.values(
        "SELECT child FROM relations WHERE parent = ? AND edit_ts IS NOT NULL"
        " ORDER BY edit_ts DESC, edit_id DESC LIMIT ?",
        parent, limit,
    )  # fmt: skip
    stored = list_in_timeline(tx, positions)
    return [stored[position] for position in positions]


class Wanted(NamedTuple):
    """Which children of some events are wanted: all, or those of a `rel_type`, also of an event type."""

    rel_type: str | None = None
    event_type: str | None = None


def list_children(
    tx: Transaction, parents: Collection[int], wanted: Wanted, since: int, upto: int, limit: int, *, forwards: bool
) -> list[TimelineEvent]:
    """Returns at most `limit` children with since < ordering ≤ upto, newest first, or oldest first if `forwards`."""
    nids = _nids_of(tx, wanted)
    if nids is None:
        return []
    rel_nid, *types = nids
    rows: list[Row] = []
    for parent in parents:  # one by one, because only then the index is read no further than the limit
        if rel_nid is None:
            sql = _SELECT_FORWARDS if forwards else _SELECT_BACKWARDS
            rows += tx.all(sql, parent, since, upto, *types, limit)
        else:
            sql = _SELECT_OF_TYPE_FORWARDS if forwards else _SELECT_OF_TYPE_BACKWARDS
            rows += tx.all(sql, parent, rel_nid, since, upto, *types, limit)
    ordered = sorted(((row[1], row[0]) for row in rows), reverse=not forwards)[:limit]
    stored = list_in_timeline(tx, [position for _, position in ordered])
    return [stored[position] for _, position in ordered]


_SELECT_BACKWARDS = """
    SELECT child, ordering FROM relations WHERE parent = ? AND ordering > ? AND ordering <= ?
    AND type_nid BETWEEN ? AND ? ORDER BY ordering DESC LIMIT ?
"""
_SELECT_FORWARDS = """
    SELECT child, ordering FROM relations WHERE parent = ? AND ordering > ? AND ordering <= ?
    AND type_nid BETWEEN ? AND ? ORDER BY ordering LIMIT ?
"""
_SELECT_OF_TYPE_BACKWARDS = """
    SELECT child, ordering FROM relations WHERE parent = ? AND rel_nid = ? AND ordering > ? AND ordering <= ?
    AND type_nid BETWEEN ? AND ? ORDER BY ordering DESC LIMIT ?
"""
_SELECT_OF_TYPE_FORWARDS = """
    SELECT child, ordering FROM relations WHERE parent = ? AND rel_nid = ? AND ordering > ? AND ordering <= ?
    AND type_nid BETWEEN ? AND ? ORDER BY ordering LIMIT ?
"""


def list_parents_below(tx: Transaction, root: int, wanted: Wanted, depth: int) -> list[int]:
    """Returns the event and its descendants that have children themselves, so that theirs are at most `depth` below.

    Only descendants that can be reached through wanted ones count. At most RELATED_WALKED_MAX are visited on each
    level, the newest children of each parent first, and at most RELATED_PARENTS_MAX events are returned.
    """
    nids = _nids_of(tx, wanted)
    parents = [root]
    level: Sequence[int] = parents
    seen = {root}
    for _ in range(depth - 1):
        if nids is None or not level:
            break
        rel_nid, *types = nids
        share = limits.RELATED_WALKED_MAX // len(level)
        found: list[int] = []
        for parent in level:
            if rel_nid is None:
                found += tx.values(_SELECT_PARENTS, parent, *types, share)
            else:
                found += tx.values(_SELECT_PARENTS_OF_TYPE, parent, rel_nid, *types, share)
        left = limits.RELATED_PARENTS_MAX - len(parents)
        level = [child for child in found if child not in seen][:left]
        seen.update(level)
        parents.extend(level)
    return parents


_SELECT_PARENTS = """
    SELECT c.child FROM (SELECT child FROM relations WHERE parent = ?
    AND type_nid BETWEEN ? AND ? ORDER BY ordering DESC LIMIT ?) AS c
    WHERE EXISTS (SELECT 1 FROM relations g WHERE g.parent = c.child)
"""
_SELECT_PARENTS_OF_TYPE = """
    SELECT c.child FROM (SELECT child FROM relations WHERE parent = ? AND rel_nid = ?
    AND type_nid BETWEEN ? AND ? ORDER BY ordering DESC LIMIT ?) AS c
    WHERE EXISTS (SELECT 1 FROM relations g WHERE g.parent = c.child)
"""


def _nids_of(tx: Transaction, wanted: Wanted) -> tuple[int | None, int, int] | None:
    """Returns the numbers of the relation type, None for all, and of the first and last event type.

    Returns None if there can be no such children.
    """
    rel_nid = None if wanted.rel_type is None else tx.find(wanted.rel_type)
    type_nid = None if wanted.event_type is None else tx.find(wanted.event_type)
    if (wanted.rel_type is not None and rel_nid is None) or (wanted.event_type is not None and type_nid is None):
        return None
    return (rel_nid, 0, _NID_MAX) if type_nid is None else (rel_nid, type_nid, type_nid)


class Thread(NamedTuple):
    """A thread of a room: the position of its root, and the ordering of its latest reply."""

    root: int
    latest_by: int


def list_threads(tx: Transaction, room_id: RoomID, upto: int, limit: int) -> list[Thread]:
    """Returns at most `limit` threads whose latest reply is not after a point of the timeline, latest first."""
    rows = tx.all(
        "SELECT parent, latest_by FROM aggregations WHERE kind = 3 AND room_nid = ? AND latest_by <= ?"
        " ORDER BY latest_by DESC LIMIT ?",
        tx.find(room_id), upto, limit,
    )  # fmt: skip
    return [Thread(*row) for row in rows]


def list_participated(tx: Transaction, user_id: str, roots: Collection[int]) -> set[int]:
    """Returns those of the threads whose root the user has sent, or a reply."""
    rows = tx.all_in("SELECT root FROM thread_senders WHERE root IN (?*) AND sender_nid = ?", roots, tx.find(user_id))
    return {root for (root,) in rows}


def count_replies(tx: Transaction, root: int, senders: Collection[str]) -> int:
    """Returns how many replies of a thread these users have sent."""
    nids = tx.find_all(senders).values()
    return sum(
        replies
        for (replies,) in tx.all_in(
            "SELECT replies FROM thread_senders WHERE sender_nid IN (?*) AND root = ?", nids, root
        )
    )


def count_replies_upto(tx: Transaction, root: int, upto: int, ignored: Collection[str]) -> int:
    """Returns how many replies a thread has up to a point of the timeline, without those of some users.

    The cost grows with the number of the replies.
    """
    rel_nid = tx.find(THREAD)
    rows = tx.all(
        "SELECT COUNT(*) FROM relations WHERE parent = ? AND rel_nid = ? AND ordering <= ?", root, rel_nid, upto
    )
    left_out = tx.all_in(
        "SELECT COUNT(*) FROM relations WHERE sender_nid IN (?*) AND parent = ? AND rel_nid = ? AND ordering <= ?",
        tx.find_all(ignored).values(), root, rel_nid, upto,
    )  # fmt: skip
    return int(rows[0][0]) - sum(count for (count,) in left_out)
