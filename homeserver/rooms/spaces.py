"""The children of a space: its m.space.child events. Spec: client-server-api/#spaces

Theory of operation. A state is a tree by the hash of its keys, so finding all events of one type would mean reading
every member. `space_children` therefore has every state key that any stored m.space.child event of the room had, even
a rejected one. Which of them are children now is read from the state. So the table cannot be wrong, only too long, and
the cost of a space grows with its children, not with its members.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from homeserver.database import Transaction
from homeserver.federation.identifiers import InvalidIdentifier, RoomID, ServerName, parse_room_id, parse_server_name
from homeserver.rooms import state_tree
from homeserver.rooms.client_event import stripped_event
from homeserver.rooms.heads import Head
from homeserver.rooms.storage import StoredEvent, list_stored

CHILDREN_MAX = 2_000  # of one space; each costs a look-up in the state
CHILDREN_BYTES_MAX = 1 << 20  # of their contents; 2,000 usual ones have 200 KB
CHILDREN_CACHED_BYTES_MAX = 16 << 20
VIA_MAX = 10  # servers of a child that are considered
ORDER_CHARACTERS_MAX = 50
_ORDER = re.compile(r"[\x20-\x7e]{1,50}", re.ASCII)


class Child(msgspec.Struct, frozen=True):
    """A child of a space. `event`: stripped state with `origin_server_ts`."""

    room_id: RoomID
    via: tuple[ServerName, ...]
    is_suggested: bool
    event: dict[str, Any]


def list_children(tx: Transaction, head: Head) -> tuple[Child, ...]:
    """Returns the children of a room in the order of the spec, at most CHILDREN_MAX; none if it is not a space."""
    cache = tx.sized_cache("space_children", CHILDREN_CACHED_BYTES_MAX)
    version = (head.room_nid, head.state_root, head.last_position)  # a redaction changes only the last one
    known: tuple[Child, ...] | None = cache.get(version)
    if known is None:
        events = _list_events(tx, head)
        known = in_order([child for event in events if (child := read_child(_shown(event))) is not None])
        if not tx.is_write:
            cache.put(version, known, 200 + sum(1_000 + len(event.content_json) for event in events))
    return known


def _list_events(tx: Transaction, head: Head) -> list[StoredEvent]:
    type_nid = tx.find("m.space.child")
    if type_nid is None:
        return []
    nids = tx.values(
        "SELECT child_nid FROM space_children WHERE room_nid = ? ORDER BY child_nid LIMIT ?",
        head.room_nid,
        CHILDREN_MAX,
    )
    positions = [state_tree.get(tx, head.state_root, (type_nid, nid)) for nid in nids]
    events = list_stored(tx, [position for position in positions if position is not None])
    kept, size = [], 0
    for event in events.values():
        size += len(event.content_json)
        if size <= CHILDREN_BYTES_MAX:
            kept.append(event)
    return kept


def _shown(event: StoredEvent) -> dict[str, Any]:
    return {**stripped_event(event), "origin_server_ts": event.origin_server_ts}


def read_child(event: object) -> Child | None:
    """Returns the child that an event in this format stands for; None if it is malformed or has no usable `via`."""
    if not isinstance(event, dict) or event.get("type") != "m.space.child":
        return None
    content, sender, sent_ts = event.get("content"), event.get("sender"), event.get("origin_server_ts")
    if not isinstance(content, dict) or not isinstance(sender, str) or type(sent_ts) is not int:
        return None
    via = content.get("via")
    servers = [server for name in (via if isinstance(via, list) else ()) if (server := _server(name)) is not None]
    try:
        room_id = parse_room_id(event.get("state_key"))
    except InvalidIdentifier:
        return None
    if not servers:
        return None
    shown = {name: event[name] for name in ("type", "state_key", "content", "sender", "origin_server_ts")}
    return Child(room_id, tuple(dict.fromkeys(servers))[:VIA_MAX], content.get("suggested") is True, shown)


def _server(name: object) -> ServerName | None:
    try:
        return parse_server_name(name)
    except InvalidIdentifier:
        return None


def in_order(children: list[Child]) -> tuple[Child, ...]:
    """Returns the children as they are shown. Spec: client-server-api/#ordering-of-children-within-a-space"""

    def key(child: Child) -> tuple[bool, str, int, str]:
        order = child.event["content"].get("order")
        is_valid = isinstance(order, str) and _ORDER.fullmatch(order) is not None
        return (not is_valid, order if is_valid else "", child.event["origin_server_ts"], child.room_id)

    return tuple(sorted(children, key=key))
