"""Feature: the one shape that every part of the specification has in this server.

A feature is a module of `homeserver/features/` that ends with `FEATURE = Feature(…)`; `homeserver/features/__init__.py`
lists them, and `homeserver/server.py` wires the list: tables, routes, EDUs, `/sync` sections, federation queries.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import islice
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import msgspec

from homeserver.api.filters import Filter
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
from homeserver.limits import RATE_LIMITS, Bucket
from homeserver.limits.peers import EDU_PARTS_MAX
from homeserver.resources import ForgetFiles, ForgetRoom, ForgetUser, Resources

P = TypeVar("P")
T = TypeVar("T")

JsonObject = dict[str, Any]

THREAD_SUBSCRIPTIONS = "io.element.msc4308.thread_subscriptions"
"""The extension of sliding sync that tells a user's thread subscriptions. Its limit is how many."""
PresenceState = Literal["online", "unavailable", "offline"]


class RoomSection(msgspec.Struct):
    """What features add to one joined room of a `/sync` answer, see `SyncContext`.

    since: the position up to which the client knows the room; 0 if it knows nothing about it.
    members_changed: whether members have joined, left or changed since, in a room that the client knows.
    """

    since: int
    members_changed: bool = False
    ephemeral: list[JsonObject] = msgspec.field(default_factory=list)
    account_data: list[JsonObject] = msgspec.field(default_factory=list)
    summary: JsonObject | None = None
    unread_notifications: JsonObject | None = None
    unread_thread_notifications: JsonObject | None = None


@dataclass(slots=True)
class SyncContext:
    """A `/sync` answer under construction, in one read: the user, the span of the stream, and what features have added.

    The span is since < position ≤ upto; `since` is 0 on an initial sync, and with `is_anew` if the client knows another
    history, see `SyncStart`. Each room in `rooms` has a `since` of its own,
    and `rooms_by_since` groups the rooms by it: 0 for those new to the client. `left` are rooms that the user has left,
    of which only the account data is used. `ignored` are the users whose messages the user does not want, if the caller
    has read them. `filter` is the request's. The engine
    applies it to account data, ephemeral events and presence, so a feature needs it only to avoid work.

    Features add two kinds of things, in two functions:

    - `Feature.sync` adds news, which ends the wait of a long-polling client: `account_data`, `presence`, `to_device`,
      `extra` (any other top-level part, such as `device_lists`), and in each room `ephemeral`, `account_data` and
      `summary`.
      News for extensions of sliding sync go to `extension_news`; `extensions` has those that are on, with their limits.
    - `Feature.sync_always` adds what every answer includes but what alone does not cause an answer: `always` (top-level
      parts, such as the number of one-time keys), and in each room `unread_notifications` and
      `unread_thread_notifications`. It is called after all news is known. `rooms_told` are the rooms of which the
      answer has events or the state; the counts of other rooms may be added too.

    Everything that features add must follow from what is committed up to `upto`, and each change to it must wake the
    user or the room, by `tx.next_position(user_id)` or `tx.next_position(room_id)`: a quiet sync is answered without
    calling the features again. `always` may depend on the user and the device only, and must not change
    because of messages. A feature that counts the messages of rooms has a `recount` too, see `Recount`.

    `Feature.sync` is not called if all positions of the span are those of messages in rooms that the client knows, for
    then nothing else has changed. So it must not derive news from messages.

    A feature whose news is a queue may tell only the first of it, and leave the rest to the next sync: what it tells is
    in queue_since < position ≤ upto, and it lowers `queue_upto` to the last position that it has told. Only one feature
    may do so.
    """

    user_id: UserID
    device_id: str
    since: int
    upto: int
    filter: Filter
    rooms: dict[RoomID, RoomSection]
    queue_since: int
    queue_upto: int
    is_anew: bool = False
    ignored: frozenset[str] | None = None
    left: dict[RoomID, RoomSection] = field(default_factory=dict)
    account_data: list[JsonObject] = field(default_factory=list)
    presence: list[JsonObject] = field(default_factory=list)
    to_device: list[JsonObject] = field(default_factory=list)
    extra: JsonObject = field(default_factory=dict)
    extensions: Mapping[str, int] = field(default_factory=dict)
    extension_news: JsonObject = field(default_factory=dict)
    rooms_told: frozenset[RoomID] = frozenset()
    always: JsonObject = field(default_factory=dict)
    rooms_by_since: dict[int, list[RoomID]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for room_id, section in self.rooms.items():
            self.rooms_by_since.setdefault(section.since, []).append(room_id)


class SyncStart(msgspec.Struct, frozen=True):
    """The start of a device's sync. The device has received everything up to `since`; 0 on an initial sync.

    queue_since: up to where it has received its queue, of which answers may have had only the first: at most `since`.
    is_anew: the device has synced before, but with another history, so that `since` is 0: see `database.generations`.
    """

    user_id: UserID
    device_id: str
    since: int
    queue_since: int
    set_presence: PresenceState
    is_anew: bool = False


UNTIL_NEWS_MS = 60 * 1000


def _ask_each_time(tx: Transaction, start: SyncStart) -> int:
    return 0


class BeforeSync(msgspec.Struct, frozen=True):
    """What a feature writes when a sync starts, before the answer is read, such as an acknowledgement.

    is_due(tx, start): returns whether there is anything to write. It is called in the read that answers the sync, so
    that a sync without changes costs no write, and once more in the write.
    write(tx, start): called if the write is due, in one transaction for all features.
    idle_ms(tx, start): called after `is_due` returned False. For how many milliseconds it will return False for this
    device and `set_presence`, whatever its token is, unless the user has news: UNTIL_NEWS_MS if only news can change
    that. Syncs that may be quiet do not ask it again meanwhile; a sync that is told everything always does.

    While the database takes no writes, syncs are answered without this one: `Feature.sync` must not rely on it.
    """

    is_due: Callable[[Transaction, SyncStart], bool]
    write: Callable[[Transaction, SyncStart], None]
    idle_ms: Callable[[Transaction, SyncStart], int] = _ask_each_time


class OutgoingEdu(msgspec.Struct, frozen=True):
    """The content of an EDU to send to the servers in `room_id` and to those in `destinations`.

    position: the position of the change, for durable EDUs. It says up to where a destination has everything. Without
    one an EDU is delivered as if its type were not durable: after the events of its span, which it is about.
    """

    content: JsonObject
    room_id: RoomID | None = None
    destinations: tuple[ServerName, ...] = ()
    position: int | None = None


EduSource = Callable[[Transaction, int, int], Iterable[OutgoingEdu]]


class EduQueue(msgspec.Struct, frozen=True):
    """Rows that a durable type of EDU keeps for each destination, until the destination has acknowledged them.

    list_first(tx, server, since, upto, limit): the first `limit` EDUs for one server with since < position ≤ upto, in
    order. No two of them may have the same position. It must cost no more than what it finds.
    acknowledge(tx, server, upto): the server has everything up to this position, so its rows are deleted.
    """

    list_first: Callable[[Transaction, ServerName, int, int, int], Iterable[OutgoingEdu]]
    acknowledge: Callable[[Transaction, ServerName, int], None]


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
    source(tx, since, upto): yields the EDUs that local changes in since < position ≤ upto call for. It need not be
    called if all positions of the span are those of messages, so it must not derive EDUs from messages.
    coalesce_by: what a part is the latest news of. An EDU that waits for a slow destination is dropped if a newer one
    of its type has news of all that it is about.
    short_lived: of no use to a server that was away, so left out when it catches up.
    durable: reaches its destination however long that is away, before the events of the same position and of all later
    ones: keys before what they decrypt. Nothing replaces it, so it can be neither short-lived nor coalesced.
    queue: where a durable type keeps what destinations lack, if it has rows for each of them. Without one, `source` is
    asked for what a destination has missed.
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
    queue: EduQueue | None = None

    def __post_init__(self) -> None:
        if self.durable and (self.short_lived or self.coalesce_by is not None):
            raise ValueError("A durable EDU must arrive, so it can be neither short-lived nor replaced by a newer one.")
        if self.queue is not None and not self.durable:
            raise ValueError("Only a durable EDU has a queue: all others are read from what they tell about.")

    def parse(self, content: JsonObject) -> Iterator[P]:
        """Yields the parts of a content, no matter who sent it. Raises InvalidEdu if it is malformed."""
        try:
            if isinstance(self.content, type):
                yield msgspec.convert(content, self.content)
            else:
                yield from self.content(content)
        except ValueError as error:  # msgspec.ValidationError and InvalidIdentifier are ValueErrors
            raise InvalidEdu(str(error)) from None

    def parts_from(self, origin: ServerName, content: JsonObject) -> list[P]:
        """Returns the parts that speak for users of the origin, at most EDU_PARTS_MAX. Raises InvalidEdu.

        The caller must check whether the origin may speak in their rooms.
        """
        return list(islice((part for part in self.parse(content) if self._is_from(origin, part)), EDU_PARTS_MAX))

    def subjects(self, content: JsonObject) -> frozenset[Hashable]:
        """Returns what a content is the latest news of, by `coalesce_by`; empty if it does not replace others."""
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
Recount = Callable[[Transaction, Sequence[int]], Callable[[UserID, JsonObject], JsonObject | None] | None]
"""recount(tx, positions): of new messages of one room. Returns what they do to `unread_notifications`: a function of a
member who sent none of them and ignores no sender, and of the counts before. They are those of clients that do not ask
for the counts of threads. Either function returns None if the counts must be counted again, by `sync_always`.
"""


class Ephemeral(NamedTuple):
    """Something that application services are told, and that is not stored as an event.

    event: as `/sync` has it. It is for those that are interested in the room or, without one, in the user that it is
    about. private_to: it is only for those that act for this user.
    """

    event: JsonObject
    room_id: RoomID | None = None
    about: UserID | None = None
    private_to: UserID | None = None


class RoomShare(Protocol):
    """What a feature tells all members of a room alike, or nearly."""

    def tell(self, tx: Transaction, user_id: UserID, ignored: frozenset[str]) -> list[bytes] | None:
        """Returns the member's ephemeral events, as JSON; None if the member's answer has other news too.

        ignored: the users whom the member ignores.
        """


class Shared(msgspec.Struct, frozen=True):
    """News of a span of the stream that many get at once. positions: how many positions of the span it accounts for."""

    positions: int
    rooms: Mapping[RoomID, RoomShare]


Share = Callable[[Transaction, int, int], Shared]
"""share(tx, since, upto): what `sync` tells of since < position ≤ upto to clients that know their rooms, and have no
filter for ephemeral events. upto is the end of the stream.
"""
QueryHandler = Callable[[Resources, ServerName, Mapping[str, str]], Awaitable[JsonObject]]
Background = Callable[[Resources], Awaitable[None]]
Capability = Callable[[Config, Requester], JsonObject | None]
"""What `/capabilities` says of one capability; None if it is left out."""


class Follower(msgspec.Struct, frozen=True):
    """A tail: follows the change stream, see `homeserver.database.tail`.

    follow(hs, since, upto): called for everything committed, in order, in spans since < position ≤ upto. A span may be
    repeated. One cheap read should tell that there is nothing to do; rare work belongs on a worklist.
    name: the name under which its position is stored.
    wake_keys: the stream keys of all changes that concern it, so that others need not wake it. Without any, each commit
    does.
    rest: for how many times as long as a span took it rests afterwards, so that it gets what comes meanwhile together.
    from_now: whether a follower that has never run begins with the next change instead of the first one.
    is_on: whether it runs under a configuration.
    """

    name: str
    follow: Callable[[Resources, int, int], Awaitable[None]]
    wake_keys: tuple[str, ...] = ()
    rest: float = 0.0
    from_now: bool = False
    is_on: Callable[[Config], bool] = lambda _: True


class Worklist(msgspec.Struct, frozen=True):
    """Work that a write records in rows of its own, and that is done afterwards, after a restart if necessary.

    list_due(tx): returns the remaining items.
    finish(hs, item): does the work of one item and deletes its row. It may be repeated.
    wake_key: the stream key that a write wakes when it records an item. Without one, the list is read only at startup,
    for items that a crash has left, and when parked items are retried.
    """

    name: str
    list_due: Callable[[Transaction], Sequence[Any]]
    finish: Callable[[Resources, Any], Awaitable[None]]
    wake_key: str = ""


class Feature(msgspec.Struct, frozen=True):
    """A part of the specification: its tables, its routes, and its parts of sync and federation.

    edus: the EDUs that this feature sends and receives, by type. EDUs of undeclared types are ignored.
    before_sync, sync, sync_always: this feature's part in `/sync`, see `BeforeSync` and `SyncContext`.
    acknowledged(hs, start): called on the trio thread whenever a device says that it has everything up to
    `start.since`, which is every sync with a token. It must only touch memory.
    recount: does the same as `sync_always` for messages that many get at once. Only one feature may have it.
    ephemeral(tx, since, upto): yields what application services may get of since < position ≤ upto.
    share: does the same as `sync` for the feature's news in rooms, if that is all that it has: see `Share`.
    queries: handlers of `/_matrix/federation/v1/query/{type}`, by type.
    limits: the rate limit classes that only this feature's operations use.
    capabilities: entries of `/capabilities`, computed from the configuration and the requester.
    unstable_features: entries of `/versions`.
    tails, worklists, background: what runs while the server is open. Background tasks are those that wait for time.
    forget_user: deletes what this feature's tables and caches hold of a user whose account ends, see `ForgetUser`.
    forget_room: deletes what this feature's tables hold of the contents of a room, see `ForgetRoom`.
    forget_files: deletes files that only expired messages show, see `ForgetFiles`.
    """

    name: str
    spec: str
    schema: Schema | None = None
    routes: Routes = msgspec.field(default_factory=Routes)
    edus: Mapping[str, Edu[Any]] = msgspec.field(default_factory=dict)
    before_sync: BeforeSync | None = None
    sync: SyncSection | None = None
    sync_always: SyncSection | None = None
    acknowledged: Callable[[Resources, SyncStart], None] | None = None
    recount: Recount | None = None
    ephemeral: Callable[[Transaction, int, int], Iterable[Ephemeral]] | None = None
    share: Share | None = None
    queries: Mapping[str, QueryHandler] = msgspec.field(default_factory=dict)
    limits: Mapping[str, Bucket] = msgspec.field(default_factory=dict)
    capabilities: Mapping[str, Capability] = msgspec.field(default_factory=dict)
    unstable_features: Mapping[str, bool] = msgspec.field(default_factory=dict)
    tails: Sequence[Follower] = ()
    worklists: Sequence[Worklist] = ()
    background: Sequence[Background] = ()
    forget_user: ForgetUser | None = None
    forget_room: ForgetRoom | None = None
    forget_files: ForgetFiles | None = None


def combine(what: str, tables: Iterable[Mapping[str, T]]) -> dict[str, T]:
    """Merges the tables. Raises ValueError if two of them have an entry of the same name; `what` names the entries."""
    combined: dict[str, T] = {}
    for table in tables:
        if twice := combined.keys() & table.keys():
            raise ValueError(f"There are two {what} called {min(twice)!r}.")
        combined.update(table)
    return combined


def rate_limits_of(features: Iterable[Feature]) -> dict[str, Bucket]:
    """Returns the rate limits of the core and the features. Raises ValueError if an operation uses an unknown one."""
    features = tuple(features)
    buckets = combine("rate limits", (RATE_LIMITS, *(feature.limits for feature in features)))
    for feature in features:
        for operation in feature.routes:
            if operation.rate_limit and operation.rate_limit not in buckets:
                raise ValueError(f"{operation.method} {operation.path}: no rate limit {operation.rate_limit!r}.")
    return buckets
