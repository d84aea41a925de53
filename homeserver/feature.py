"""Feature: the one shape that every part of the specification has in this server.

A feature is a module of `homeserver/features/` that ends with `FEATURE = Feature(…)`; `homeserver/features/__init__.py`
lists them, and `homeserver/server.py` wires the list: tables, routes, EDUs, `/sync` sections, federation queries.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from homeserver.api.routes import Routes
from homeserver.database import Schema, Transaction
from homeserver.federation.identifiers import RoomID, ServerName, UserID
from homeserver.resources import ForgetUser, Resources

JsonObject = dict[str, Any]


@dataclass(slots=True)
class RoomSection:
    """What a feature adds to one joined room of a `/sync` answer."""

    ephemeral: list[JsonObject] = field(default_factory=list)
    account_data: list[JsonObject] = field(default_factory=list)
    unread_notifications: JsonObject = field(default_factory=dict)
    summary: JsonObject = field(default_factory=dict)


@dataclass(slots=True)
class SyncContext:
    """One `/sync` being answered: the user, the span of the stream, and what features have added so far.

    `since` is 0 on an initial sync; the span is since < position ≤ upto. `rooms` maps each joined room to its section;
    a feature adds to it in place. `newly_joined` are rooms whose whole ephemeral state and account data must be told,
    `members_changed` the others in which somebody's membership has changed.
    """

    user_id: UserID
    device_id: str
    since: int
    upto: int
    rooms: dict[RoomID, RoomSection]
    newly_joined: frozenset[RoomID] = frozenset()
    members_changed: frozenset[RoomID] = frozenset()
    account_data: list[JsonObject] = field(default_factory=list)
    presence: list[JsonObject] = field(default_factory=list)
    to_device: list[JsonObject] = field(default_factory=list)
    extra: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OutgoingEdu:
    """An EDU that local changes call for. Sent to the servers in `room_id`, and to those in `destinations`."""

    edu_type: str
    content: JsonObject
    room_id: RoomID | None = None
    destinations: tuple[ServerName, ...] = ()


EduHandler = Callable[[Resources, ServerName, Any], Awaitable[None]]
SyncSection = Callable[[Transaction, SyncContext], None]
QueryHandler = Callable[[Resources, ServerName, Mapping[str, str]], Awaitable[JsonObject]]
EduSource = Callable[[Transaction, int, int], Iterable[OutgoingEdu]]
Background = Callable[[Resources], Awaitable[None]]
PresenceState = Literal["online", "unavailable", "offline"]
Heartbeat = Callable[[Resources, UserID, str, PresenceState], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Feature:
    """A part of the specification: its tables, its routes, and where it takes part in sync and federation.

    edus: EDU type → handler of one that a peer sent, its content as `federation.edus` parses it (the origin's signature
    is checked, its right to speak for a user is not).
    sync: adds this feature's changes to a `/sync` answer. edu_source: the EDUs that local changes in
    since < position ≤ upto call for. queries: `/_matrix/federation/v1/query/{type}` handlers. background: runs while
    the server serves. heartbeat(hs, user_id, device_id, set_presence): a client has shown itself, by a sync.
    forget_user: what becomes of this feature's tables and caches when an account ends, see `ForgetUser`.
    """

    name: str
    spec: str
    schema: Schema | None = None
    routes: Routes = field(default_factory=Routes)
    edus: Mapping[str, EduHandler] = field(default_factory=dict)
    sync: SyncSection | None = None
    edu_source: EduSource | None = None
    queries: Mapping[str, QueryHandler] = field(default_factory=dict)
    background: Sequence[Background] = ()
    heartbeat: Heartbeat | None = None
    forget_user: ForgetUser | None = None
