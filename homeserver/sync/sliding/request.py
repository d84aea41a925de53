"""Requests of sliding sync, in the two shapes that clients send.

The merged proposal has everything in the body and `required_state` as an object; the shape that clients ship has `pos`
and `timeout` in the query, `ranges`, and `required_state` as pairs, where `$ME`, `$LAZY` and `*` have a meaning. Both
are converted to one SlidingRequest, and every list in them has a limit. Spec: MSC4186 (API)
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from homeserver import limits
from homeserver.authenticate import Requester
from homeserver.errors import invalid_param
from homeserver.feature import THREAD_SUBSCRIPTIONS, PresenceState, SyncStart
from homeserver.federation.identifiers import RoomID
from homeserver.sync.sliding.required_state import MEMBER, Element, RequiredState, RoomConfig, encode
from homeserver.users.sync_connections import ConnectionKey

_NAME = re.compile(r"[0-9A-Za-z._~-]+", re.ASCII)  # Spec: appendices/#opaque-identifiers
INDEX_MAX = 1 << 53

Range = tuple[int, int]


class RoomFilters(msgspec.Struct, frozen=True):
    """Which rooms a list has. `is_invite` is the name that clients ship for `is_invited`. Spec: SlidingRoomFilter"""

    is_dm: bool | None = None
    spaces: list[str] | None = None
    is_encrypted: bool | None = None
    is_invited: bool | None = None
    is_invite: bool | None = None
    room_types: list[str | None] | None = None
    not_room_types: list[str | None] | None = None
    tags: list[str] | None = None
    not_tags: list[str] | None = None

    def __post_init__(self) -> None:
        for listed in (self.spaces, self.room_types, self.not_room_types, self.tags, self.not_tags):
            if listed is not None and len(listed) > limits.users.SYNC_FILTER_LIST_MAX:
                raise ValueError(f"a list of a filter may have {limits.users.SYNC_FILTER_LIST_MAX} entries at most")

    @property
    def invited(self) -> bool | None:
        """Whether the list has only invites (True), or none (False)."""
        return self.is_invite if self.is_invited is None else self.is_invited


class RequiredStateBody(msgspec.Struct, frozen=True):
    """Spec: RequiredStateRequest"""

    include: list[dict[str, str]] = []
    exclude: list[dict[str, str]] = []
    lazy_members: bool = False


class SubscriptionBody(msgspec.Struct, frozen=True):
    """Spec: RoomSubscription"""

    timeline_limit: int = 0
    required_state: list[tuple[str, str]] | RequiredStateBody | None = None


class ListBody(SubscriptionBody, frozen=True):
    """Spec: SyncListConfig. `ranges` is what clients ship instead of `range`."""

    range: Range | None = None
    ranges: list[Range] | None = None
    filters: RoomFilters | None = None


class Extension(msgspec.Struct, frozen=True):
    """An extension about rooms: those of `lists` and `rooms`; None and "*" stand for all of the request."""

    enabled: bool = False
    lists: list[str] | None = None
    rooms: list[str] | None = None


class ToDeviceExtension(msgspec.Struct, frozen=True):
    """`since`: the `next_batch` of the last messages that the device has received."""

    enabled: bool = False
    since: str | None = None


class ThreadSubscriptionsExtension(msgspec.Struct, frozen=True):
    """limit: how many subscriptions an answer has at most. Spec: MSC4308"""

    enabled: bool = False
    limit: int = 100


class Extensions(msgspec.Struct, frozen=True):
    """The extensions of a request. Others are ignored, as servers do with those that they do not know."""

    to_device: ToDeviceExtension = ToDeviceExtension()
    e2ee: Extension = Extension()
    account_data: Extension = Extension()
    receipts: Extension = Extension()
    typing: Extension = Extension()
    thread_subscriptions: ThreadSubscriptionsExtension = msgspec.field(
        name=THREAD_SUBSCRIPTIONS, default=ThreadSubscriptionsExtension()
    )


class SlidingBody(msgspec.Struct, frozen=True):
    """The body of a request. `pos`, `timeout` and `set_presence` are in the query in the shape that clients ship."""

    conn_id: str = ""
    pos: str | None = None
    timeout: int = 0
    set_presence: PresenceState | None = None
    txn_id: str | None = None
    lists: dict[str, ListBody] | None = None
    room_subscriptions: dict[str, SubscriptionBody] | None = None
    extensions: Extensions | None = None


class ListConfig(msgspec.Struct, frozen=True):
    """A list: its windows into the user's rooms (None: all of them), and what to tell of the rooms in them."""

    ranges: tuple[Range, ...] | None
    filters: RoomFilters
    room: RoomConfig


class SlidingRequest(msgspec.Struct, frozen=True):
    """A decoded request. since: the position up to which the client knows the rooms in its view; None at first.

    serial: of the connection's state, see `homeserver.users.sync_connections`. queue_since: up to where the device has
    received its messages. told_extensions: which extensions about rooms the last answer had, see `extensions.py`.
    is_merged: whether the answer has the merged shape.
    """

    requester: Requester
    conn_id: str
    since: int | None
    serial: int
    told_extensions: int
    queue_since: int
    lists: Mapping[str, ListConfig]
    subscriptions: Mapping[RoomID, RoomConfig]
    extensions: Extensions
    timeout_ms: int = 0
    set_presence: PresenceState = "online"
    is_merged: bool = False

    @property
    def start(self) -> SyncStart:
        """The start of this sync, as features receive it."""
        device = (self.requester.user_id, self.requester.device_id)
        return SyncStart(*device, self.since or 0, self.queue_since, self.set_presence)

    @property
    def key(self) -> ConnectionKey:
        """The connection of the request."""
        return ConnectionKey(self.requester.user_id, self.requester.device_id, self.conn_id)


def parse_lists(body: SlidingBody, requester: Requester) -> dict[str, ListConfig]:
    """Returns the lists of a request. Raises MatrixError 400 if there is too much of anything."""
    lists = body.lists or {}
    _check_count("lists", lists, limits.users.SYNC_LISTS_MAX)
    return {_check_name(name): _parse_list(each, requester) for name, each in lists.items()}


def parse_subscriptions(body: SlidingBody, requester: Requester) -> dict[RoomID, RoomConfig]:
    """Returns the subscriptions of a request. Raises MatrixError 400 if there is too much of anything."""
    subscriptions = body.room_subscriptions or {}
    _check_count("room_subscriptions", subscriptions, limits.users.SYNC_SUBSCRIPTIONS_MAX)
    return {RoomID(room_id): _parse_config(each, requester) for room_id, each in subscriptions.items()}


def check_conn_id(conn_id: str) -> str:
    """Returns the name of a connection. Raises MatrixError 400 if it is too long or not text."""
    try:
        size = len(conn_id.encode())
    except UnicodeEncodeError:
        size = limits.users.SYNC_NAME_BYTES_MAX + 1
    if size > limits.users.SYNC_NAME_BYTES_MAX or "\0" in conn_id:
        raise invalid_param(f"conn_id may have {limits.users.SYNC_NAME_BYTES_MAX} bytes at most.")
    return conn_id


def _parse_list(body: ListBody, requester: Requester) -> ListConfig:
    ranges = body.ranges if body.range is None else [body.range]
    if ranges is not None:
        _check_count("ranges", ranges, limits.users.SYNC_RANGES_MAX)
        for first, last in ranges:
            if not 0 <= first <= last <= INDEX_MAX:
                raise invalid_param("A range has two indices of rooms, the first one not after the last one.")
    return ListConfig(
        None if ranges is None else tuple(ranges), body.filters or RoomFilters(), _parse_config(body, requester)
    )


def _parse_config(body: SubscriptionBody, requester: Requester) -> RoomConfig:
    if body.timeline_limit < 0:
        raise invalid_param("timeline_limit cannot be negative.")
    limit = min(body.timeline_limit, limits.users.SYNC_TIMELINE_MAX)
    stated = body.required_state
    if stated is None:
        return RoomConfig(limit)
    required = _parse_required(stated) if isinstance(stated, RequiredStateBody) else _parse_pairs(stated, requester)
    if len(encode((required,))) > limits.users.SYNC_CONFIG_BYTES_MAX:
        raise invalid_param(f"required_state may have {limits.users.SYNC_CONFIG_BYTES_MAX >> 10} KiB at most.")
    return RoomConfig(limit, (required,))


def _parse_required(stated: RequiredStateBody) -> RequiredState:
    _check_count("required_state", [*stated.include, *stated.exclude], limits.users.SYNC_REQUIRED_STATE_MAX)
    return RequiredState(
        _sorted({(each.get("type"), each.get("state_key")) for each in stated.include}),
        _sorted({(each.get("type"), each.get("state_key")) for each in stated.exclude}),
        stated.lazy_members,
    )


def _parse_pairs(pairs: list[tuple[str, str]], requester: Requester) -> RequiredState:
    """Returns the required state of pairs of type and state key, in which some values stand for others."""
    _check_count("required_state", pairs, limits.users.SYNC_REQUIRED_STATE_MAX)
    include: set[Element] = set()
    is_lazy = False
    for event_type, state_key in pairs:
        if (event_type, state_key) == (MEMBER, "$LAZY"):
            is_lazy = True
        else:
            key = requester.user_id if state_key == "$ME" else state_key
            include.add((None if event_type == "*" else event_type, None if key == "*" else key))
    return RequiredState(_sorted(include), (), is_lazy)


def _sorted(elements: Collection[Element]) -> tuple[Element, ...]:
    return tuple(sorted(elements, key=lambda element: (element[0] or "", element[1] or "", element.count(None))))


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name) or len(name) > limits.users.SYNC_NAME_BYTES_MAX:
        most = limits.users.SYNC_NAME_BYTES_MAX
        raise invalid_param(f"The name of a list has letters, digits and . _ ~ - only, and at most {most} of them.")
    return name


def _check_count(what: str, values: Collection[Any], most: int) -> None:
    if len(values) > most:
        raise invalid_param(f"{what} may have {most} entries at most.")
