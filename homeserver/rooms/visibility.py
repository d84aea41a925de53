"""Which events of a room a user may see. Spec: client-server-api/#room-history-visibility"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from homeserver.database import Transaction
from homeserver.federation.auth_state import domain_of
from homeserver.federation.event import Event
from homeserver.federation.identifiers import RoomID, ServerName, UserID
from homeserver.rooms import state_tree
from homeserver.rooms.erasure import find_erased, redacted_copy
from homeserver.rooms.events import load_auth_events
from homeserver.rooms.heads import find_head, state_content, state_position
from homeserver.rooms.membership import find_membership, find_room_membership
from homeserver.rooms.resolve import StateAt, head_at, position_in
from homeserver.rooms.storage import (
    PlacedEvent,
    StoredEvent,
    TimelineEvent,
    list_positions,
    list_stored,
    without_withheld,
)
from homeserver.rooms.timeline import END, START, after_position

SERVERS_IN_CACHED_MAX = 500
MEMBERSHIPS_WALKED_MAX = 100  # member events of one user since they left: invitations and refusals

_VISIBILITIES = ("world_readable", "shared", "invited", "joined")


def history_visibility(tx: Transaction, root: bytes) -> str:
    """Returns the history visibility of a state; "shared" if it has none or an unknown one."""
    content = state_content(tx, root, "m.room.history_visibility")
    value = content.get("history_visibility") if content is not None else None
    return value if isinstance(value, str) and value in _VISIBILITIES else "shared"


def is_world_readable(tx: Transaction, room_id: RoomID) -> bool:
    """Returns whether anyone may read the room as it is now."""
    head = find_head(tx, room_id)
    return head is not None and history_visibility(tx, head.state_root) == "world_readable"


def filter_visible(
    tx: Transaction, user_id: str, room_id: RoomID, events: Sequence[TimelineEvent]
) -> list[TimelineEvent]:
    """Returns the room's events that the user may see, in order, without redactions that have no effect.

    Events of erased users are redacted for users who joined later.
    """
    events = without_withheld(tx, events)
    last_joined: int | None = None
    memberships = Memberships(tx, user_id)
    known: dict[bytes, tuple[str, str]] = {}
    visible: list[TimelineEvent] = []
    for event in events:
        seen = known.get(event.state_before)
        if seen is None:
            seen = known[event.state_before] = (
                history_visibility(tx, event.state_before),
                memberships.at(event.state_before),
            )
        visibility, membership = seen
        if event.type == "m.room.member" and event.state_key == user_id:
            visible.append(event)  # users may always see their own membership events
            continue
        # An event that changes the visibility counts as before or after the change, whichever shows more.
        if event.type == "m.room.history_visibility" and event.state_key == "":
            after = event.content.get("history_visibility")
            if isinstance(after, str) and after in _VISIBILITIES:
                visibility = min(visibility, after, key=_VISIBILITIES.index)
        if visibility == "world_readable" or membership == "join":
            visible.append(event)
        elif visibility == "shared" or (visibility == "invited" and membership == "invite"):
            if last_joined is None:
                last_joined = last_joined_point(tx, room_id, user_id)
            if event.ordering <= last_joined:  # with visibility "joined" an invitation is not enough
                visible.append(event)
    return _without_erased(tx, room_id, visible, memberships)


def _without_erased(
    tx: Transaction, room_id: RoomID, events: list[TimelineEvent], memberships: Memberships
) -> list[TimelineEvent]:
    erased = find_erased(tx, {event.sender for event in events})
    if not erased:
        return events
    states = {sender: head_at(tx, room_id, after_position(position)) for sender, position in erased.items()}
    strangers = {sender for sender, state in states.items() if state is None or memberships.of(state) != "join"}
    return [
        redacted_copy(tx, event)
        if event.sender in strangers and memberships.at(event.state_before) != "join"
        else event
        for event in events
    ]


class Memberships:
    """One user's membership in many states. Few events define it, so they are cached.

    said: what member events of the user say, by position, as far as the caller knows.
    """

    def __init__(self, tx: Transaction, user_id: str, said: Mapping[int | None, str] | None = None) -> None:
        self._tx = tx
        self._key = state_tree.find_key(tx, "m.room.member", user_id)
        self._finder = None if self._key is None else state_tree.Finder(tx, self._key)
        self._said_by: dict[int | None, str] = {None: "leave"}
        self._said_by.update(said or ())
        self._by_root: dict[bytes, str] = {}

    def at(self, root: bytes) -> str:
        """Returns the membership in a state; "leave" if there is none."""
        membership = self._by_root.get(root)
        if membership is None:
            position = None if self._finder is None else self._finder.find(root)
            membership = self._by_root[root] = self._said_by.get(position) or self._said_at(position)
        return membership

    def of(self, state: StateAt) -> str:
        """Does the same for a state that may not be stored."""
        return self._said_at(None if self._key is None else position_in(self._tx, state, self._key))

    def _said_at(self, position: int | None) -> str:
        membership = self._said_by.get(position)
        if membership is None:
            assert position is not None
            said = load_auth_events(self._tx, (position,))[position].content.get("membership")
            membership = self._said_by[position] = said if isinstance(said, str) else "leave"
        return membership


def membership_in(tx: Transaction, root: bytes, user_id: str) -> str:
    """Returns the user's membership in a state; "leave" if there is none."""
    return Memberships(tx, user_id).at(root)


def list_arrivals(tx: Transaction, since: int, upto: int) -> list[tuple[UserID, RoomID]]:
    """Returns the users who joined a room at since < position ≤ upto and are still in it, each with the room."""
    rows = list_stored(tx, list_positions(tx, since, upto, "m.room.member")).values()
    return [
        (UserID(row.state_key), row.room_id)
        for row in rows
        if isinstance(row, PlacedEvent)
        and row.state_key is not None
        and row.content.get("membership") == "join"
        and find_membership(tx, row.room_id, row.state_key) == "join"
        and membership_in(tx, row.state_before, row.state_key) != "join"
    ]


def last_joined_point(tx: Transaction, room_id: RoomID, user_id: str) -> int:
    """Returns the last point of the timeline before a moment at which the user was in the room."""
    current = find_room_membership(tx, room_id, user_id)
    if current is not None and current.membership == "join":
        return END
    left = None if current is None or current.forgotten else find_leave(tx, room_id, user_id)
    return START if left is None else left.ordering


def find_leave(tx: Transaction, room_id: RoomID, user_id: str) -> TimelineEvent | None:
    """Returns the event that ended the stay of a user who is not in the room now; None if they were never in it."""
    head = find_head(tx, room_id)
    position = None if head is None else state_position(tx, head.state_root, "m.room.member", user_id)
    for _ in range(MEMBERSHIPS_WALKED_MAX):
        event = None if position is None else list_stored(tx, (position,)).get(position)
        if not isinstance(event, PlacedEvent):
            return None
        if event.content.get("membership") == "join" or membership_in(tx, event.state_before, user_id) == "join":
            return event if isinstance(event, TimelineEvent) else None
        position = state_position(tx, event.state_before, "m.room.member", user_id)
    return None


def server_may_see(tx: Transaction, server_name: ServerName, event: StoredEvent) -> bool:
    """Returns whether a server in the room may be given the event.

    Spec: server-server-api/#backfilling-and-retrieving-missing-events. A server may see what one of its users may see:
    everything unless the visibility is "invited" or "joined".
    """
    if not isinstance(event, PlacedEvent) or _is_erased_for(tx, server_name, event):
        return False
    visibility = history_visibility(tx, event.state_before)
    if visibility in ("world_readable", "shared") or domain_of(event.sender) == server_name:
        return True
    if event.type == "m.room.member" and event.state_key is not None and domain_of(event.state_key) == server_name:
        return True
    servers = _servers_by_membership(tx, event.state_before)
    return server_name in servers.joined or (visibility == "invited" and server_name in servers.invited)


def _is_erased_for(tx: Transaction, server_name: ServerName, event: PlacedEvent) -> bool:
    """Returns whether the sender is erased and the server was in the room neither at the event nor at the erasure."""
    position = find_erased(tx, (event.sender,)).get(event.sender)
    if position is None:
        return False
    then = head_at(tx, event.room_id, after_position(position))
    roots = [event.state_before, *(() if then is None else (then.root,))]
    return not any(server_name in servers_in(tx, root) for root in roots)


def servers_in(tx: Transaction, root: bytes) -> frozenset[ServerName]:
    """Returns the servers of the joined users of a state."""
    return _servers_by_membership(tx, root).joined


class _Servers(NamedTuple):
    """The servers of the joined users of a state, and those of the invited ones."""

    joined: frozenset[ServerName]
    invited: frozenset[ServerName]


def _servers_by_membership(tx: Transaction, root: bytes) -> _Servers:
    """Visits all members of the state, once: a state never changes."""
    cache = tx.cache("servers_in", SERVERS_IN_CACHED_MAX)
    servers: _Servers | None = cache.get(root)
    if servers is None:
        member_nid = tx.find("m.room.member")
        positions = [position for key, position in state_tree.items(tx, root).items() if key[0] == member_nid]
        members = load_auth_events(tx, positions).values()
        servers = _Servers(_servers_of(members, "join"), _servers_of(members, "invite"))
        if not tx.is_write:
            cache.put(root, servers)
    return servers


def _servers_of(members: Iterable[Event], membership: str) -> frozenset[ServerName]:
    return frozenset(
        ServerName(domain_of(event.state_key or "")) for event in members if event.membership == membership
    )
