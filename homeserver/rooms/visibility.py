"""Which events of a room a user may see. Spec: client-server-api/#room-history-visibility"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from federation.identifiers import RoomID, ServerName, server_name_of
from homeserver.database import Transaction
from homeserver.rooms import state_tree
from homeserver.rooms.heads import find_head, state_content, state_position
from homeserver.rooms.membership import get_room_membership
from homeserver.rooms.storage import StoredEvent, list_stored, load_auth_events

SERVERS_IN_CACHED_MAX = 500

_VISIBILITIES = ("world_readable", "shared", "invited", "joined")


def history_visibility(tx: Transaction, root: bytes) -> str:
    """The visibility that a state gives; "shared" where it gives none that is known."""
    content = state_content(tx, root, "m.room.history_visibility")
    value = content.get("history_visibility") if content is not None else None
    return value if isinstance(value, str) and value in _VISIBILITIES else "shared"


def is_world_readable(tx: Transaction, room_id: RoomID) -> bool:
    """Whether anyone may read the room as it is now."""
    head = find_head(tx, room_id)
    return head is not None and history_visibility(tx, head.state_root) == "world_readable"


def filter_visible(tx: Transaction, user_id: str, room_id: RoomID, events: Sequence[StoredEvent]) -> list[StoredEvent]:
    """Those of the room's events that the user may see, in order."""
    last_joined = _last_joined_ordering(tx, user_id, room_id)
    known: dict[bytes, tuple[str, str]] = {}
    visible: list[StoredEvent] = []
    for event in events:
        if event.state_before is None or event.ordering is None:
            continue
        seen = known.get(event.state_before)
        if seen is None:
            seen = known[event.state_before] = (
                history_visibility(tx, event.state_before),
                _membership_in(tx, event.state_before, user_id),
            )
        visibility, membership = seen
        # An event that changes the visibility or the user's membership counts as before or after: whichever shows more.
        if event.type == "m.room.history_visibility" and event.state_key == "":
            after = event.content.get("history_visibility")
            if isinstance(after, str) and after in _VISIBILITIES:
                visibility = min(visibility, after, key=_VISIBILITIES.index)
        if event.type == "m.room.member" and event.state_key == user_id:
            after = event.content.get("membership")
            membership = after if membership != "join" and isinstance(after, str) else membership
            if membership in ("leave", "ban") and event.sender != user_id:
                visible.append(event)  # who is turned out is told so
                continue
        if (
            visibility == "world_readable"
            or membership == "join"
            or (visibility == "shared" and event.ordering <= last_joined)
            or (visibility == "invited" and membership == "invite")
        ):
            visible.append(event)
    return visible


def server_may_see(tx: Transaction, server_name: ServerName, event: StoredEvent) -> bool:
    """Whether a server in the room may be given the event.

    Spec: server-server-api/#backfilling-and-retrieving-missing-events. A server sees what one of its users may:
    everything unless the visibility is "invited" or "joined".
    """
    if event.state_before is None:
        return False
    visibility = history_visibility(tx, event.state_before)
    if visibility in ("world_readable", "shared") or server_name_of(event.sender) == server_name:
        return True
    allowed = ("join", "invite") if visibility == "invited" else ("join",)
    if event.type == "m.room.member" and event.state_key is not None and _is_of(event.state_key, server_name):
        return True
    return _any_member_from(tx, event.state_before, server_name, lambda membership: membership in allowed)


def servers_in(tx: Transaction, root: bytes) -> frozenset[ServerName]:
    """The servers of the joined users of a state. Walks all its members, once: it never changes."""
    cache = tx.cache("servers_in", SERVERS_IN_CACHED_MAX)
    servers: frozenset[ServerName] | None = cache.get(root)
    if servers is None:
        member_nid = tx.find("m.room.member")
        positions = {key: position for key, position in state_tree.items(tx, root).items() if key[0] == member_nid}
        events = load_auth_events(tx, positions.values())
        servers = frozenset(
            server_name_of(event.state_key or "")
            for event in events.values()
            if event.membership == "join"
        )
        if not tx.is_write:
            cache.put(root, servers)
    return servers


def _any_member_from(
    tx: Transaction, root: bytes, server_name: ServerName, accepts: Callable[[object], bool]
) -> bool:
    """Whether the state has a member of that server whose membership is accepted. Walks the whole state."""
    member_nid = tx.find("m.room.member")
    positions = {key: position for key, position in state_tree.items(tx, root).items() if key[0] == member_nid}
    names = tx.names({key[1] for key in positions})
    wanted = [position for key, position in positions.items() if _is_of(names[key[1]], server_name)]
    return any(accepts(event.content.get("membership")) for event in load_auth_events(tx, wanted).values())


def _is_of(user_id: str, server_name: ServerName) -> bool:
    return user_id.partition(":")[2] == server_name


def _membership_in(tx: Transaction, root: bytes, user_id: str) -> str:
    content = state_content(tx, root, "m.room.member", user_id)
    membership = content.get("membership") if content is not None else None
    return membership if isinstance(membership, str) else "leave"


def _last_joined_ordering(tx: Transaction, user_id: str, room_id: RoomID) -> int:
    """Up to where the timeline lies before a moment at which the user was in the room."""
    current = get_room_membership(tx, room_id, user_id)
    if current is None:
        return -(1 << 62)
    if current.membership == "join":
        return 1 << 62
    event = list_stored(tx, [current.event_position]).get(current.event_position)
    if event is None or event.ordering is None or event.state_before is None:
        return -(1 << 62)
    position = state_position(tx, event.state_before, "m.room.member", user_id)
    was = load_auth_events(tx, [position])[position].content.get("membership") if position is not None else None
    return event.ordering if was == "join" else -(1 << 62)
