"""Feature: the one shape that every part of the specification has in this server.

A feature is a module of `homeserver/features/` that ends with `FEATURE = Feature(…)`; `homeserver/features/__init__.py`
lists them, and `homeserver/server.py` wires the list: tables, routes, EDUs, `/sync` sections, federation queries.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.config import Config
from homeserver.database import Schema, Transaction
from homeserver.federation.identifiers import RoomID, ServerName, UserID
from homeserver.limits import RATE_LIMITS, Bucket
from homeserver.resources import ForgetUser, Resources

T = TypeVar("T")

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
Capability = Callable[[Config, Requester], JsonObject]
PresenceState = Literal["online", "unavailable", "offline"]
Heartbeat = Callable[[Resources, UserID, str, PresenceState], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Follower:
    """A tail: follows the change stream, see `homeserver.database.tail`.

    follow(hs, since, upto) is called for everything committed, in order, in spans since < position ≤ upto. A span may
    be repeated. name: under which its position is stored. from_now: a follower that never ran begins with what comes
    next, not with the first change. is_on: whether it runs under a configuration.
    """

    name: str
    follow: Callable[[Resources, int, int], Awaitable[None]]
    from_now: bool = False
    is_on: Callable[[Config], bool] = lambda _: True


@dataclass(frozen=True, slots=True)
class Worklist:
    """Work that a write notes in rows of its own, and that is done afterwards, also after a restart.

    list_due(tx) returns the items that are left. finish(hs, item) does the work of one and deletes its row; it may be
    repeated. wake_key: the stream key that a write notifies when it notes an item. Without one the list is read at the
    start only, for what a crash has left.
    """

    name: str
    list_due: Callable[[Transaction], Sequence[Any]]
    finish: Callable[[Resources, Any], Awaitable[None]]
    wake_key: str = ""


@dataclass(frozen=True, slots=True)
class Feature:
    """A part of the specification: its tables, its routes, and where it takes part in sync and federation.

    edus: EDU type → handler of one that a peer sent, its content as `federation.edus` parses it (the origin's signature
    is checked, its right to speak for a user is not).
    sync: adds this feature's changes to a `/sync` answer. edu_source: the EDUs that local changes in
    since < position ≤ upto call for. queries: `/_matrix/federation/v1/query/{type}` handlers.
    limits: the classes of rate limits that only this feature's operations name. capabilities: entries of
    `/capabilities`, for a configuration and a requester. unstable_features: entries of `/versions`.
    tails, worklists, background: what runs while the server is open; background is what waits for time.
    heartbeat(hs, user_id, device_id, set_presence): a client has shown itself, by a sync.
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
    limits: Mapping[str, Bucket] = field(default_factory=dict)
    capabilities: Mapping[str, Capability] = field(default_factory=dict)
    unstable_features: Mapping[str, bool] = field(default_factory=dict)
    tails: Sequence[Follower] = ()
    worklists: Sequence[Worklist] = ()
    background: Sequence[Background] = ()
    heartbeat: Heartbeat | None = None
    forget_user: ForgetUser | None = None


def combine(what: str, tables: Iterable[Mapping[str, T]]) -> dict[str, T]:
    """One table of all. Raises ValueError if two tables have an entry of the same name; `what` says what they hold."""
    combined: dict[str, T] = {}
    for table in tables:
        if twice := combined.keys() & table.keys():
            raise ValueError(f"There are two {what} called {min(twice)!r}.")
        combined.update(table)
    return combined


def rate_limits_of(features: Iterable[Feature]) -> dict[str, Bucket]:
    """The rate limits of the core and of the features. Raises ValueError if an operation names one that is unknown."""
    features = tuple(features)
    buckets = combine("rate limits", (RATE_LIMITS, *(feature.limits for feature in features)))
    for feature in features:
        for operation in feature.routes:
            if operation.rate_limit and operation.rate_limit not in buckets:
                raise ValueError(f"{operation.method} {operation.path}: no rate limit {operation.rate_limit!r}.")
    return buckets
