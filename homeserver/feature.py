"""Feature: the one shape that every part of the specification has in this server.

A feature is a module of `homeserver/features/` that ends with `FEATURE = Feature(…)`; `homeserver/features/__init__.py`
lists them, and `homeserver/server.py` wires the list: tables, routes, EDUs, `/sync` sections, federation queries.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import islice
from typing import Any, Generic, Literal, TypeVar

import msgspec

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.config import Config
from homeserver.database import Schema, Transaction
from homeserver.federation.edus import InvalidEdu
from homeserver.federation.identifiers import (
    InvalidIdentifier,
    RoomID,
    ServerName,
    UserID,
    parse_room_id,
    parse_user_id,
)
from homeserver.limits import EDU_PARTS_MAX, RATE_LIMITS, Bucket
from homeserver.resources import ForgetUser, Resources

P = TypeVar("P")
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
    """The content of an EDU to send, to the servers in `room_id` and to those in `destinations`."""

    content: JsonObject
    room_id: RoomID | None = None
    destinations: tuple[ServerName, ...] = ()


EduSource = Callable[[Transaction, int, int], Iterable[OutgoingEdu]]


@dataclass(frozen=True, slots=True)
class Edu(Generic[P]):
    """A type of EDU: how to read its content, who may send it, and how to deliver it. Spec: server-server-api/#edus

    A content has parts, each of which speaks for one user, in one room or in none: m.receipt and m.presence have many,
    the content of most other types is a single part. The core leaves out every part that the origin may not send, so
    the handler never sees it.

    content: the type that a content with a single part is converted to; or a function that yields the parts. That
    function leaves out malformed parts, and raises ValueError if there is nothing to read.
    handler(hs, origin, parts): receives the allowed parts, at least one and at most EDU_PARTS_MAX.
    user: the user that a part speaks for, who must be of the origin. None if the type speaks for no user.
    room: the room that a part is about. This server and the origin must both be in it, and its server ACL must allow
    the origin. None if the type is about no room. `user` and `room` have no defaults, so that nobody forgets them.
    source(tx, since, upto): yields the EDUs that local changes in since < position ≤ upto call for.
    coalesce_by: what a part is the latest news of. An EDU that waits for a slow destination is dropped if a newer one
    of its type has news of all that it is about.
    short_lived: of no use to a server that was away, so left out when it catches up.
    durable: every single one must arrive, because the receiver cannot ask for what it lacks.
    """

    content: type[P] | Callable[[JsonObject], Iterable[P]]
    handler: Callable[[Resources, ServerName, Sequence[P]], Awaitable[None]]
    _: KW_ONLY
    user: Callable[[P], UserID] | None
    room: Callable[[P], RoomID] | None
    source: EduSource | None = None
    coalesce_by: Callable[[P], Hashable] | None = None
    short_lived: bool = False
    durable: bool = False

    def parse(self, content: JsonObject) -> Iterator[P]:
        """Yields the parts of a content, whoever sent it. Raises InvalidEdu if it is malformed."""
        try:
            if isinstance(self.content, type):
                yield msgspec.convert(content, self.content)
            else:
                yield from self.content(content)
        except ValueError as error:  # msgspec.ValidationError and InvalidIdentifier are ValueErrors
            raise InvalidEdu(str(error)) from None

    def parts_from(self, origin: ServerName, content: JsonObject) -> list[P]:
        """Returns the parts that speak for users of the origin, the first EDU_PARTS_MAX. Raises InvalidEdu.

        Whether the origin may speak in their rooms is for the caller to find out.
        """
        return list(islice((part for part in self.parse(content) if self._is_from(origin, part)), EDU_PARTS_MAX))

    def subjects(self, content: JsonObject) -> frozenset[Hashable]:
        """Returns what a content is the latest news of, by `coalesce_by`; nothing if it replaces no other."""
        if self.coalesce_by is None:
            return frozenset()
        return frozenset(map(self.coalesce_by, self.parse(content)))

    def _is_from(self, origin: ServerName, part: P) -> bool:
        try:
            if self.user is not None:
                user_id = self.user(part)
                if user_id.partition(":")[2] != origin:
                    return False
                parse_user_id(user_id)
            if self.room is not None:
                parse_room_id(self.room(part))
        except InvalidIdentifier:
            return False
        return True


SyncSection = Callable[[Transaction, SyncContext], None]
QueryHandler = Callable[[Resources, ServerName, Mapping[str, str]], Awaitable[JsonObject]]
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

    edus: by type, the EDUs that this feature sends and receives. EDUs of a type that no feature declares are ignored.
    sync: adds this feature's changes to a `/sync` answer. queries: `/_matrix/federation/v1/query/{type}` handlers.
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
    edus: Mapping[str, Edu[Any]] = field(default_factory=dict)
    sync: SyncSection | None = None
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
